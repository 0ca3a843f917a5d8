# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a machine that has booted into what a golden image is taken of. Every adapter's build_image calls prepare."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .provider import Job, Ran

if TYPE_CHECKING:
    from fleet_core.errors import ProcessFailed
    from fleet_core.golden_images import sealing
    from fleet_core.images import ImageSpec
else:
    try:
        from ..fleet_core.errors import ProcessFailed
        from ..fleet_core.golden_images import sealing
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import ProcessFailed
        from fleet_core.golden_images import sealing

Run = Callable[[str], Ran]

# cloud-init ends with 2 for errors that it recovered from. An image without cloud-init has nothing to wait for.
CLOUD_INIT = """command -v cloud-init >/dev/null 2>&1 || exit 0
cloud-init status --wait >/dev/null 2>&1
code=$?
[ $code -ne 0 ] || exit 0
if [ $code -eq 2 ]; then echo 'cloud-init recovered from errors'; exit 0; fi
grep -a 'failed' /var/log/cloud-init-output.log 2>/dev/null | tail -n 1 | cut -c 1-300 >&2
exit $code
"""
# What a login would have: guest agents run scripts with less.
ENVIRONMENT = (
    "export HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
)
_LONGEST = 300  # characters of what a script said


def prepare(spec: ImageSpec, run: Run, job: Job) -> None:
    """Wait for cloud-init, run the commands, verify, remove what must not be in an image, and verify that as well.

    run: runs a shell script as root inside, as Provider.run does. Raises ProcessFailed, which names the image and the
    step. Afterwards nobody can log in any more: stop the machine, and take the image.
    """
    what = f'image "{spec.name}"'
    job.report("wait for cloud-init")
    job.check(f"{what}: it did not get to cloud-init")
    ran = run(CLOUD_INIT)
    if ran.code:
        raise ProcessFailed(f"{what}: cloud-init ended with {ran.code}: {said(ran)}")
    if ran.stdout.strip():
        job.report(said(ran))
    for number, command in enumerate(spec.commands, 1):
        shown = f"command {number} of {len(spec.commands)}"
        _step(shown, f"{what}: command {number}", f"{ENVIRONMENT}set -e\n{command}\n", run, job)
    for name, script in spec.checks.items():
        _step(f"check {name}", f'{what}: check "{name}"', f"{ENVIRONMENT}{script}\n", run, job)
    _step("seal it", f"{what}: sealing", sealing(), run, job)


def _step(shown: str, what: str, script: str, run: Run, job: Job) -> None:
    job.check(f"{what}: it was not come to")
    job.report(shown)
    ran = run(script)
    if ran.code:
        raise ProcessFailed(f"{what}: ended with {ran.code}: {said(ran)}")


def said(ran: Ran) -> str:
    """Return the last line that a script said, made fit for a message: a guest decides what is in it."""
    lines = (ran.stderr.strip() or ran.stdout.strip()).splitlines()[-1:]
    text = "".join(letter if letter.isprintable() else " " for letter in "".join(lines)).strip()
    return (text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "...") or "it said nothing"
