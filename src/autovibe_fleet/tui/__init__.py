# SPDX-License-Identifier: GPL-3.0-or-later
"""fleet steer: watch agents work and steer them, on a terminal.

text, wrap, model and history know nothing of Textual; link and feed speak with fleetd; the rest is the screen.
"""
