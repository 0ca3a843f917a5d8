# SPDX-License-Identifier: GPL-3.0-or-later
"""A bridge for the clients of gcluster: they apply and steer as they always did, and fleetd does the work."""
