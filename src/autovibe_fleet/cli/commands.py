# SPDX-License-Identifier: GPL-3.0-or-later
"""What Typer's commands lack: a usage line in the field's notation, and a command line after `--`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand


class Command(TyperCommand):
    """A command whose usage reads NAME for what must be given and [NAME] for what may be."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        pieces = [self.options_metavar or ""]
        for argument in self.params:
            if argument.param_type_name == "argument":
                text = argument.metavar or str(argument.name).upper()
                pieces.append(text if argument.required or text.startswith("[") else f"[{text}]")
        return pieces


class AfterDashes(Command):
    """A command that keeps what follows `--` apart, in context.obj["command"]."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.obj = {"command": args[at + 1 :]}
            args = args[:at]
        return super().parse_args(ctx, args)


class Noun(typer.Typer):
    """A group of commands on one noun."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """Add a command of class Command."""
        return super().command(name, **{"cls": Command, **settings})
