# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab by hand: python -m tests.system.lab --help (from the repository's root)."""

from __future__ import annotations

import argparse
import json
import os
import sys

from .images import HERE, SUITES, VARIANTS, LabError, ensure_image
from .lab import Lab, labs_folder, sweep
from .wheels import wheelhouse


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.system.lab", description="systemd hosts for tests")
    commands = parser.add_subparsers(dest="command", required=True)

    image = commands.add_parser("image", help="build host images that are not built yet")
    image.add_argument("names", nargs="*", choices=[*SUITES, *VARIANTS, []], metavar="|".join((*SUITES, *VARIANTS)))

    commands.add_parser("wheelhouse", help="fetch the wheels that hosts need; prints their folder")

    start = commands.add_parser("start", help="start a lab, or hosts that it lacks; prints Ansible inventory variables")
    start.add_argument("lab")
    start.add_argument("hosts", nargs="+", metavar="NAME=IMAGE", help="for example one=debian12")

    run = commands.add_parser("exec", help="run a program on a host")
    run.add_argument("lab")
    run.add_argument("host")
    run.add_argument("argv", nargs=argparse.REMAINDER)

    copy = commands.add_parser("copy", help="copy a file or folder to a host")
    for name in ("lab", "host", "source", "target"):
        copy.add_argument(name)

    connect = commands.add_parser("connect", help="ssh's ProxyCommand: standard input and output to a host's port")
    for name in ("lab", "host", "port"):
        connect.add_argument(name)

    stop = commands.add_parser("stop", help="stop a lab and all its hosts; fine if it does not run")
    stop.add_argument("lab")

    commands.add_parser("list", help="list running labs")

    options = parser.parse_args()
    try:
        return _run(options)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    if options.command == "image":
        for name in options.names or SUITES:
            print(ensure_image(name).reference)
    elif options.command == "wheelhouse":
        print(wheelhouse())
    elif options.command == "start":
        wanted = dict(host.split("=", 1) for host in options.hosts)
        lab = Lab.find_or_start(options.lab)
        hosts = [lab.find_or_start_host(name, image) for name, image in wanted.items()]
        for host in hosts:
            host.boot()
        print(json.dumps({host.name: host.ssh_options() for host in hosts}, indent=2))
    elif options.command == "connect":
        lab = Lab.find(options.lab)
        command = lab.wrap(sys.executable, str(HERE / "connect.py"), lab.get(options.host).address, options.port)
        os.execvp(command[0], command)
    elif options.command == "exec":
        argv = options.argv[1:] if options.argv[:1] == ["--"] else options.argv
        terminal = ["--interactive", *(["--tty"] if sys.stdin.isatty() else [])]
        command = [*Lab.find(options.lab).podman_command(), "exec", *terminal, options.host, *argv]
        os.execvp(command[0], command)
    elif options.command == "copy":
        Lab.find(options.lab).get(options.host).push(options.source, options.target)
    elif options.command == "stop":
        if (labs_folder() / options.lab).is_dir():
            Lab(labs_folder() / options.lab, 0).stop()
        sweep()
    elif options.command == "list":
        for folder in sorted(labs_folder().glob("*/")):
            print(folder.name, *sorted(host.stem for host in folder.glob("*.host")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
