# SPDX-License-Identifier: GPL-3.0-or-later
"""The process that carries the runs of one agent: standard library only, so that it starts fast and stays small."""
