# SPDX-License-Identifier: GPL-3.0-or-later
"""Real packets in network namespaces: what the fence lets through, and what it does not."""
