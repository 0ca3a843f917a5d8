# SPDX-License-Identifier: GPL-3.0-or-later
"""Host images: Debian with systemd, built from packages with mmdebstrap, imported into a podman image store.

An image is named by a hash of all that goes into it (packages, script, apt configuration), so a change of any
of them builds a new one and nothing else does. The tar file and the store live in `cache_folder()`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SUITES = {"debian12": "bookworm", "debian13": "trixie"}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# systemd and what logins and user units need; what Ansible and the application need; the services under test.
PACKAGES = [
    *["systemd", "systemd-sysv", "dbus", "dbus-user-session", "libpam-systemd", "openssh-server", "sudo"],
    *["iproute2", "iputils-ping", "nftables", "procps", "ca-certificates", "curl"],
    *["python3", "python3-apt", "python3-venv", "python3-pip"],
    *["postgresql", "redis-server", "nginx-light"],
]
# Images with more in them, by name: the suite, further packages, and the script that finishes them.
VARIANTS = {
    "network-debian12": ("bookworm", ["ifupdown2", "netplan.io", "network-manager"], "customize-network"),
    "firewall-debian13": ("trixie", [], "customize-firewall"),
}


class LabError(Exception):
    """The lab cannot do what was asked; the message says why."""


@dataclass(frozen=True)
class Image:
    """A host image: `name` is the distribution, `tag` its content."""

    name: str
    tag: str

    @property
    def reference(self) -> str:
        return f"localhost/fleet-lab/{self.name}:{self.tag}"


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "autovibe-fleet" / "lab"


def store_folder() -> Path:
    """The podman image store that all labs share, read-only for them."""
    return cache_folder() / "store"


def apt_sources(suite: str) -> str:
    """`suite`'s sources.list lines, at the mirrors that this machine's own apt uses for its own suite."""
    release = Path("/etc/os-release").read_text()
    own = next(line.split("=")[1].strip('"') for line in release.splitlines() if line.startswith("VERSION_CODENAME="))
    targets = _output("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)")
    lines = []
    for target in dict.fromkeys(targets.splitlines()):
        uri, name, component, *origin = target.split(maxsplit=3)
        if origin == ["Debian"] and component == "main" and name.split("-")[0] == own:
            lines.append(f"deb [signed-by={KEYRING}] {uri} {name.replace(own, suite)} main")
    if not lines:
        raise LabError(f'apt on this machine knows no Debian mirror for "{own}": run apt-get update, or use Debian')
    return "\n".join(dict.fromkeys(lines)) + "\n"


def apt_options() -> list[str]:
    """This machine's settings of how packages are fetched (proxy, certificates, date checks)."""
    wanted = ("Acquire::Check-", "Acquire::http::", "Acquire::https::", "Acquire::Retries")
    lines = _output("apt-config", "dump", "--no-empty").splitlines()
    return [line.rstrip(";") for line in lines if line.startswith(wanted)]


def find_image(name: str) -> Image:
    """The image `name` (debian12, debian13) as it would be built now, built or not."""
    if name not in (*SUITES, *VARIANTS):
        raise LabError(f'no image "{name}": have {", ".join((*SUITES, *VARIANTS))}')
    suite, more, script = VARIANTS.get(name, (SUITES.get(name, ""), [], ""))
    inputs = [suite, PACKAGES + more, apt_sources(suite), apt_options(), (HERE / "customize").read_text()]
    inputs += [(HERE / script).read_text()] if script else []
    return Image(name, hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:12])


def ensure_image(name: str) -> Image:
    """Build the image if it is not there: about two minutes on two cores, once."""
    image = find_image(name)
    cache_folder().mkdir(parents=True, exist_ok=True)
    with _lock(cache_folder() / f"{name}.lock"):
        if not _is_stored(image):
            archive = cache_folder() / f"{name}-{image.tag}.tar"
            if not archive.exists():
                _build(image, archive)
                for old in set(cache_folder().glob(f"{name}-*.tar")) - {archive}:
                    old.unlink()
            _store(image, archive)
    return image


def _build(image: Image, archive: Path) -> None:
    suite, more, script = VARIANTS.get(image.name, (SUITES.get(image.name, ""), [], ""))
    with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
        sources = Path(scratch, "sources.list")
        sources.write_text(apt_sources(suite))
        partial = Path(scratch, "image.tar")
        command = ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=tar", "--quiet"]
        command += ["--skip=cleanup/apt/lists", f"--include={','.join(PACKAGES + more)}"]
        command += [f"--aptopt={option}" for option in apt_options()]
        # The services under test bring their own data; Debian's main cluster would only be removed again.
        command += [
            '--essential-hook=mkdir -p "$1/etc/postgresql-common"',
            '--essential-hook=echo "create_main_cluster = false" > "$1/etc/postgresql-common/createcluster.conf"',
            f"--customize-hook={HERE / 'customize'}",
            *([f"--customize-hook={HERE / script}"] if script else []),
        ]
        _run(*command, suite, str(partial), str(sources))
        partial.rename(archive)


def _store(image: Image, archive: Path) -> None:
    with _lock(cache_folder() / "store.lock"):
        changes = ['CMD ["/sbin/init"]', "STOPSIGNAL SIGRTMIN+3", "ENV container=podman"]
        options = [word for change in changes for word in ("--change", change)]
        _run(*_store_podman(), "import", "--quiet", *options, str(archive), image.reference)


def _is_stored(image: Image) -> bool:
    return (
        subprocess.run(
            [*_store_podman(), "image", "exists", image.reference], capture_output=True, check=False
        ).returncode
        == 0
    )


def _store_podman() -> list[str]:
    """podman on the shared store; importing needs no namespace of its own."""
    run = cache_folder() / "run"
    options = ["--root", str(store_folder()), "--runroot", str(run), "--tmpdir", str(run / "libpod")]
    options += ["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]
    return ["podman", *options]


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _run(*command: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"{command[0]} failed with exit code {done.returncode}: {done.stderr.strip()[-2000:]}")
