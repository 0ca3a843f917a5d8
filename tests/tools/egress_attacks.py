# SPDX-License-Identifier: GPL-3.0-or-later
"""Write docs/egress-attacks.md from the table that the tests run. ``--check`` only says whether it is out of date."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))

from tests.system.network import attacks, uses  # noqa: E402

PAGE = REPOSITORY / "docs" / "egress-attacks.md"
EVENTS = REPOSITORY / "tests" / "system" / "network" / "test_attack_events.py"
INTRO = """\
<!-- Written by tests/tools/egress_attacks.py from tests/system/network: change it there. -->
# What a machine tries to get out

Each row below is tried with real packets, from machines on a real bridge, against the backends nftables and iptables
and in each mode of a policy: {tries} tries in all. What can is tried without a fence first, where it gets through.
`make system ARGS='-k attack'` does it on your computer, in network namespaces that have no way out.

- **closed**: it did not get through; the last column says what stops it.
- **open**: it gets through in that mode, by nature. The number is that of the reason in [what stays
  open](#what-stays-open).

What a policy may say, and what the modes mean, is in [Egress policies](egress.md).
"""
LIMITS = """\
## What these tests do not say

- The kernel, dnsmasq and squid are those of the host that runs them. A resolver older than dnsmasq 2.90 cannot take TXT
  and HTTPS records out of answers: what is asked for below an allowed name may then carry more.
- What is allowed is a way out for whoever owns the other end. A name that anybody can write to (a public repository, a
  paste, a package index with uploads) is such an end, and no fence knows which bytes are secret.
- When allowed connections are made, and in which order, carries data too. Only mode `locked` closes that.
- How much a machine may do is not limited here: neither packets a second nor connections.
- Root of the gateway can do everything, and so can whoever gets out of a virtual machine into it.
"""


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the page is out of date")
    options = parser.parse_args()
    text = page()
    if options.check:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
            sys.exit(f"{PAGE.relative_to(REPOSITORY)}: out of date; run: python tests/tools/egress_attacks.py")
        return
    PAGE.write_text(text, encoding="utf-8")


def page() -> str:
    """Return the whole page."""
    rows, allowed = attacks.table(), uses.table()
    reasons = list(dict.fromkeys(reason for row in rows for reason in row.opened.values()))
    tries = (len(rows) + len(allowed)) * len(attacks.MODES) * len(attacks.BACKENDS)
    lines = [INTRO.format(tries=f"{tries:,}")]
    for group in attacks.GROUPS.values():
        lines += [f"## {group}", ""]
        lines += _attacks([row for row in rows if row.group == group], reasons)
        lines.append("")
    lines += ["## While things happen", "", "Against both backends.", ""]
    lines += [f"- {sentence}" for sentence in events()]
    lines += ["", "## What still works", ""]
    lines += _uses(allowed)
    lines += ["", "## What stays open", ""]
    for number, reason in enumerate(reasons, 1):
        modes = [mode for mode in attacks.MODES if any(row.opened.get(mode) == reason for row in rows)]
        lines.append(f"{number}. {_capital(reason)} (mode {', '.join(modes)}).")
    lines += ["", LIMITS.rstrip()]
    return "\n".join(lines) + "\n"


def _attacks(rows: list[attacks.Attack], reasons: list[str]) -> Iterator[str]:
    yield f"| what the machine does | {' | '.join(attacks.MODES)} | what stops it |"
    yield f"|---|{'---|' * len(attacks.MODES)}---|"
    for row in rows:
        cells = [
            f"open [{reasons.index(row.opened[mode]) + 1}](#what-stays-open)" if mode in row.opened else "closed"
            for mode in attacks.MODES
        ]
        yield f"| {row.title} | {' | '.join(cells)} | {row.closed_by} |"


def _uses(rows: tuple[uses.Use, ...]) -> Iterator[str]:
    yield f"| what the machine does | {' | '.join(attacks.MODES)} |"
    yield f"|---|{'---|' * len(attacks.MODES)}"
    for row in rows:
        yield f"| {row.title} | {' | '.join('works' if mode in row.modes else '' for mode in attacks.MODES)} |"


def events() -> Iterator[str]:
    """Yield what the tests of events say of themselves."""
    for node in ast.parse(EVENTS.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield " ".join((ast.get_docstring(node) or "").split())


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


if __name__ == "__main__":
    main()
