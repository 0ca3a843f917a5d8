# SPDX-License-Identifier: GPL-3.0-or-later
"""What lies over the main screen for a while."""
