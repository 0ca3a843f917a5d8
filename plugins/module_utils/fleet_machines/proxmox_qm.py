# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``qm`` is told to make a template on a Proxmox VE host: one pure function from what is there to what is next.

Every command can be cut off. So nothing is remembered between them: the next one is found from ``qm config`` alone.
"""

from __future__ import annotations

import posixpath
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleet_core.errors import Conflict, InvalidInput, ProcessFailed
    from fleet_core.machines import check_machine_name
    from fleet_core.quantities import format_size
else:
    try:
        from ..fleet_core.errors import Conflict, InvalidInput, ProcessFailed
        from ..fleet_core.machines import check_machine_name
        from ..fleet_core.quantities import format_size
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import Conflict, InvalidInput, ProcessFailed
        from fleet_core.machines import check_machine_name
        from fleet_core.quantities import format_size

Config = Mapping[str, str]
Version = tuple[int, int]

MIB = 1024**2
IMPORT_FROM: Version = (7, 2)  # the first that takes import-from
FOLDER = "/var/lib/vz/template/fleet"  # where downloaded images are kept on the host
DISK = "scsi0"
DRIVE = "ide2"

_ALGORITHMS = {"md5": 32, "sha1": 40, "sha224": 56, "sha256": 64, "sha384": 96, "sha512": 128}
_STORAGE = re.compile(r"[A-Za-z][A-Za-z0-9._-]*[A-Za-z0-9]")
_BRIDGE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,14}")
_SIZES = {"": 1, "K": 1024, "M": MIB, "G": 1024**3, "T": 1024**4}
_DRIVES = re.compile(r"(?:ide|sata|scsi|virtio|efidisk|tpmstate)\d+")

# One shell for all: an image that is there and right is not fetched again, one that was half fetched is continued. The
# address comes by standard input, because it may hold a password or a signature.
FETCH = """\
mkdir -p "$1" && cd "$1"
exec 9>>"$2.lock" && flock 9
right() { printf '%s  %s\\n' "$4" "$1" | "$3" --check --status -; }
if [ -f "$2" ] && right "$2" "$2" "$3" "$4"; then exit 0; fi
wget --no-verbose --continue --tries=3 --timeout=60 --output-document="$2.part" --input-file=- >&2 || exit 65
if ! right "$2.part" "$2" "$3" "$4"; then
    found=$("$3" "$2.part" | cut -d' ' -f1)
    rm -f "$2.part"
    echo "the checksum differs: expected $4, found $found" >&2
    exit 66
fi
# A disk that lies over another file would show a machine that file of the host.
if qemu-img info --output=json "$2.part" | grep -Eq '"(backing-filename|data-file)"'; then
    rm -f "$2.part"
    echo "the image needs another file beside it, and is not taken" >&2
    exit 67
fi
mv "$2.part" "$2"
"""
# The text of a snippet comes by standard input. pvesm knows where the storage keeps it.
PUT_SNIPPET = """\
path=$(pvesm path "$1")
umask 077
mkdir -p "$(dirname "$path")"
cat > "$path.new" && mv "$path.new" "$path"
"""
DROP_SNIPPET = 'rm -f "$(pvesm path "$1")"'


@dataclass(frozen=True)
class Command:
    """One command on the host. text: what it does, for people. gives, drops: what of ``qm config`` it changes, as far
    as that is known before."""

    text: str
    argv: tuple[str, ...]
    stdin: str = field(default="", repr=False)
    gives: Mapping[str, str] = field(default_factory=dict)
    drops: tuple[str, ...] = ()

    def after(self, config: Config | None) -> dict[str, str]:
        """Return the configuration that is expected afterwards."""
        return {**{key: value for key, value in (config or {}).items() if key not in self.drops}, **self.gives}


@dataclass(frozen=True)
class Template:
    """A template, or a machine that becomes one. source: where the disk comes from: https://… with a checksum
    ("sha256:…"), or an absolute path on the host. memory, disk: bytes; disk 0: as large as the source.

    snippet: a volume ("local:snippets/x.yml") with user data, empty for none. cloud_init: whether it has a cloud-init
    drive. keep: of the downloaded images, where they are on the host.
    """

    vmid: int
    name: str
    source: str
    checksum: str = ""
    storage: str = "local-lvm"
    bridge: str = "vmbr0"
    cpu: int = 2
    memory: int = 2048 * MIB
    disk: int = 0
    tags: tuple[str, ...] = ()
    description: str = ""
    snippet: str = ""
    cloud_init: bool = True
    folder: str = FOLDER

    def __post_init__(self) -> None:
        check_machine_name(self.name)
        what = f'template "{self.name}"'
        if not 100 <= self.vmid <= 999999999:
            raise InvalidInput(f"{what}: expected an id from 100 to 999999999, found {self.vmid}")
        for key, value, form in (("storage", self.storage, _STORAGE), ("bridge", self.bridge, _BRIDGE)):
            if not form.fullmatch(value):
                raise InvalidInput(f"{what}: {key}: expected the name of one, found {value!r}")
        if self.memory < 16 * MIB or self.memory % MIB:
            raise InvalidInput(f"{what}: memory: expected whole MiB, found {format_size(self.memory)}")
        if self.downloaded:
            check_url(what, self.source)
            checksum_parts(what, self.checksum)
        elif not self.source.startswith("/") or "\n" in self.source:
            raise InvalidInput(f"{what}: source: expected https://… or an absolute path on the host")

    @property
    def downloaded(self) -> bool:
        return "://" in self.source

    @property
    def path(self) -> str:
        """Where the image is on the host."""
        if not self.downloaded:
            return self.source
        return posixpath.join(self.folder, file_name(self.source, self.checksum))


def check_url(what: str, url: str) -> str:
    """Return the address if it is one that is fetched. A checksum makes plain http safe too."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname or re.search(r"[\s\x00-\x1f]", url):
        raise InvalidInput(
            f"{what}: base: expected https://… without blanks, found an address of {parts.scheme or '?'}"
        )
    return url


def checksum_parts(what: str, checksum: str) -> tuple[str, str]:
    """Return the algorithm and the digits of "sha256:…"."""
    algorithm, colon, digits = checksum.strip().lower().partition(":")
    if not colon:
        algorithm, digits = "sha256", algorithm
    if algorithm not in _ALGORITHMS or not re.fullmatch(rf"[0-9a-f]{{{_ALGORITHMS.get(algorithm, 1)}}}", digits):
        raise InvalidInput(
            f'{what}: checksum: a base that is downloaded needs one, such as "sha256:" and 64 digits, '
            f"found {checksum[:80]!r}"
        )
    return algorithm, digits


def file_name(url: str, checksum: str) -> str:
    """Return what a downloaded image is called: by its checksum, so that another one never passes for it, and with
    the ending of its format, which Proxmox goes by. The .img of the distributions is qcow2."""
    _algorithm, digits = checksum_parts("image", checksum)
    base = posixpath.basename(urllib.parse.urlsplit(url).path)
    stem, ending = posixpath.splitext(base)
    ending = ending if ending in (".qcow2", ".raw", ".vmdk") else ".qcow2"
    stem = re.sub(r"[^A-Za-z0-9._+=-]+", "-", stem).strip(".-")[:80] or "image"
    return f"{stem}-{digits[:16]}{ending}"


def version_of(text: str) -> Version:
    """Return the version from what ``pveversion`` prints: pve-manager/7.4-3/9002ab8a (running kernel: …)."""
    found = re.search(r"pve-manager/(\d+)\.(\d+)", text)
    if found is None:
        raise ProcessFailed(f"pveversion: expected pve-manager/VERSION, found {text.strip()[:80]!r}")
    return int(found[1]), int(found[2])


def parse_config(text: str) -> dict[str, str]:
    """Return what ``qm config`` prints. It encodes the description, which may have many lines, like an address."""
    found = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon and re.fullmatch(r"[a-z][a-z0-9_-]*", key):
            found[key] = urllib.parse.unquote(value.strip()) if key == "description" else value.strip()
    return found


def next_command(template: Template, config: Config | None, version: Version) -> Command | None:
    """Return the next command towards a machine that only has to become a template, or None when it is one.

    config: what ``qm config`` says, None when there is no such machine. Raises Conflict when the id is another's.
    """
    if config is None:
        return _create(template)
    _check_ours(template, config)
    if config.get("template") == "1":
        return None
    if DISK not in config:
        return _disk(template, config, version)
    return _set(template, config) or _resize(template, config)


def fetch(template: Template) -> Command | None:
    """Return the command that brings the image to the host, or None when it is there already."""
    if not template.downloaded:
        return None
    algorithm, digits = checksum_parts(template.name, template.checksum)
    folder, name = posixpath.split(template.path)
    argv = ("sh", "-eu", "-c", FETCH, "sh", folder, name, f"{algorithm}sum", digits)
    return Command(f"fetch {name}", argv, template.source + "\n")


def convert(template: Template) -> Command:
    """Return the command that makes a template of the machine."""
    return Command(
        f"make a template of {template.name}", ("qm", "template", str(template.vmid)), gives={"template": "1"}
    )


def plan(template: Template, config: Config | None, version: Version) -> tuple[Command, ...]:
    """Return all commands that are left. The name of a volume that is not there yet is a guess."""
    found: list[Command] = []
    if config is None or (DISK not in config and "unused0" not in config):
        first = fetch(template)
        found += [first] if first else []
    while True:
        command = next_command(template, config, version)
        if command is None:
            break
        found.append(command)
        config = command.after(config)
    if config is not None and config.get("template") != "1":
        found.append(convert(template))
    return tuple(found)


def cleaned(template: Template, config: Config) -> Command | None:
    """Return the command that takes away what machines made from the template must not inherit."""
    there = [key for key in ("cicustom", "cipassword", "sshkeys") if key in config]
    if not template.cloud_init and DRIVE in config:
        there.append(DRIVE)
    if not there:
        return None
    argv = ("qm", "set", str(template.vmid), "--delete", ",".join(there))
    return Command(f"clean {template.name}", argv, drops=tuple(there))


def destroy(vmid: int) -> Command:
    """Return the command that removes a stopped machine and all the disks in its configuration."""
    return Command(f"remove {vmid}", ("qm", "destroy", str(vmid), "--purge", "1"))


def disk_size(config: Config) -> int:
    """Return the bytes of the disk, 0 when they are not known."""
    found = re.search(r"(?:^|,)size=(\d+(?:\.\d+)?)([KMGT]?)(?:,|$)", config.get(DISK, ""))
    return int(float(found[1]) * _SIZES[found[2]]) if found else 0


def is_base(config: Config) -> bool:
    """Tell whether a template's disks are base volumes, which machines can be cloned from."""
    disks = [value for key, value in config.items() if _DRIVES.fullmatch(key) and "media=cdrom" not in value]
    return bool(disks) and all(re.search(r"(?:^|[:/])base(?:vol)?-\d+-", value.split(",")[0]) for value in disks)


def _check_ours(template: Template, config: Config) -> None:
    name = config.get("name", "")
    if name != template.name:
        raise Conflict(
            f'template "{template.name}": id {template.vmid} is taken by {name!r}; choose another id, or remove it'
        )
    if template.tags and not set(template.tags) <= set(re.split(r"[;, ]+", config.get("tags", ""))):
        raise Conflict(f'template "{template.name}": {template.vmid} has its name, but was not made by the fleet')
    if config.get("lock"):
        raise Conflict(
            f'template "{template.name}": {template.vmid} is locked ({config["lock"]}): another task works on it, or '
            f"was killed; then `qm unlock {template.vmid}` frees it"
        )


def _create(template: Template) -> Command:
    options = {
        "name": template.name,
        "ostype": "l26",
        "cores": str(template.cpu),
        "memory": str(template.memory // MIB),
        "scsihw": "virtio-scsi-pci",
        "net0": f"virtio,bridge={template.bridge}",
        "agent": "enabled=1",
        "serial0": "socket",
        "vga": "serial0",
    }
    if template.tags:
        options["tags"] = ";".join(template.tags)
    if template.description:
        options["description"] = template.description
    return Command(f"create {template.name}", ("qm", "create", str(template.vmid), *_options(options)), gives=options)


def _disk(template: Template, config: Config, version: Version) -> Command:
    vmid, storage = str(template.vmid), template.storage
    if "unused0" in config:  # what importdisk left
        return _volume(template, config["unused0"])
    if version >= IMPORT_FROM:
        value = f"{storage}:0,import-from={template.path}"
        gives = {DISK: f"{storage}:vm-{vmid}-disk-0"}
        return Command(f"import the disk of {template.name}", ("qm", "set", vmid, f"--{DISK}", value), gives=gives)
    argv = ("qm", "importdisk", vmid, template.path, storage)
    return Command(f"import the disk of {template.name}", argv, gives={"unused0": f"{storage}:vm-{vmid}-disk-0"})


def _volume(template: Template, volume: str) -> Command:
    argv = ("qm", "set", str(template.vmid), f"--{DISK}", volume)
    return Command(f"attach the disk of {template.name}", argv, gives={DISK: volume}, drops=("unused0",))


def _set(template: Template, config: Config) -> Command | None:
    wanted = {"boot": f"order={DISK}"}
    gives = dict(wanted)
    if template.cloud_init or template.snippet:
        wanted.update({DRIVE: f"{template.storage}:cloudinit", "ipconfig0": "ip=dhcp"})
        gives.update({DRIVE: f"{template.storage}:vm-{template.vmid}-cloudinit,media=cdrom", "ipconfig0": "ip=dhcp"})
    if template.snippet:
        wanted["cicustom"] = gives["cicustom"] = f"user={template.snippet}"
    missing = {
        key: value for key, value in wanted.items() if (key not in config if key == DRIVE else config.get(key) != value)
    }
    if not missing:
        return None
    argv = ("qm", "set", str(template.vmid), *_options(missing))
    return Command(f"set up the boot of {template.name}", argv, gives={key: gives[key] for key in missing})


def _resize(template: Template, config: Config) -> Command | None:
    there = disk_size(config)
    if not template.disk or there >= template.disk:
        return None
    size = _whole(template.disk)
    volume = config[DISK].split(",")[0]
    argv = ("qm", "resize", str(template.vmid), DISK, size)
    return Command(
        f"enlarge the disk of {template.name} to {format_size(template.disk)}",
        argv,
        gives={DISK: f"{volume},size={size}"},
    )


def _whole(size: int) -> str:
    """Return a size as qm takes it: in the largest unit that needs no decimal."""
    for unit, factor in (("T", 1024**4), ("G", 1024**3), ("M", MIB), ("K", 1024)):
        if size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def _options(values: Mapping[str, str]) -> list[str]:
    return [word for key, value in values.items() for word in (f"--{key}", value)]
