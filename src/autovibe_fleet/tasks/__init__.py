# SPDX-License-Identifier: GPL-3.0-or-later
"""Task lists from files, on this computer or on another machine over OpenSSH."""
