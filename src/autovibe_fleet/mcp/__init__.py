# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet for assistants: tools over the Model Context Protocol, by its Python SDK (https://modelcontextprotocol.io)."""
