# SPDX-License-Identifier: GPL-3.0-or-later
"""User data of a build machine whose base may lack the guest agent: what was given, and a part that installs it."""

from __future__ import annotations

from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText

# Appended to what is given, which keeps its own runcmd. https://cloudinit.readthedocs.io/en/latest/reference/merging.html
_MERGE = "list(append)+dict(no_replace,recurse_list)+str()"
_AGENT = """#cloud-config
runcmd:
  - |
    command -v qemu-ga >/dev/null 2>&1 || {
      if command -v apt-get >/dev/null 2>&1; then
        apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y qemu-guest-agent
      elif command -v dnf >/dev/null 2>&1; then dnf install -y -q qemu-guest-agent
      elif command -v zypper >/dev/null 2>&1; then zypper --non-interactive install qemu-guest-agent
      fi
    }
    systemctl start qemu-guest-agent.service || true
"""


def with_agent(user_data: str | None) -> str:
    """Return user data that also install and start the guest agent: what is given stays as it is, as a part of it.

    cloud-init tells by the first line what a part of type text/plain is.
    """
    whole = MIMEMultipart(boundary="==autovibe-fleet-user-data==")
    for text in (*([user_data] if user_data else []), _AGENT):
        part = MIMEText(text, "plain", "utf-8")
        part.add_header("Merge-Type", _MERGE)
        whole.attach(part)
    return whole.as_string()
