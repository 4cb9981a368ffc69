"""What a place is, which durability it gets here, and why: ``pmarray doctor``."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass, field
from glob import glob
from typing import NamedTuple

from pmarray._sizes import format_bytes
from pmarray._system import osops, pmem
from pmarray._url import URL
from pmarray.backends._registry import known_schemes, open_backend
from pmarray.backends.files.memmap import METADATA_NAME
from pmarray.backends.shelf import devices, pymm
from pmarray.backends.shelf.engines import is_dax
from pmarray.backends.shelf.pool import Pool
from pmarray.errors import DamagedError, ForeignDataError, PMArrayError, StorageError

__all__ = ["Diagnosis", "examine", "examine_machine"]

_VOLATILE = ("tmpfs", "ramfs", "devtmpfs")
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs", "lustre")
_WITHOUT_BARRIERS = ("nobarrier", "barrier=0", "volatile", "fsync=volatile", "fsync_mode=nobarrier")
"""Options of mounts where `fsync` returns before the medium has everything, or does nothing."""
_MOUNTS = "/proc/self/mountinfo"
_DOMAINS = {
    "cpu_cache": "what has left the processor's core survives a power cut, its caches included",
    "memory_controller": "caches are lost in a power cut, so that lines have to be written back",
}


@dataclass(slots=True)
class Diagnosis:
    """Facts about a place, and what follows from them."""

    place: str
    """The path, or "this machine"."""
    facts: dict[str, str] = field(default_factory=dict)
    """What was found, by its name."""
    url: str | None = None
    """How to open it; None where it cannot be used."""
    durability: str = ""
    """What is promised there, and why."""


def examine(place: str) -> Diagnosis:
    """Find out what a place is; nothing on it is changed.

    Parameters
    ----------
    place
        A URL, as `pmarray.open_group` takes it: a directory, which need not exist yet, a DAX
        device, an object store.

    Returns
    -------
    Diagnosis
        With `Diagnosis.url` None where it cannot be used, and the reason in
        `Diagnosis.durability`.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     found = examine(place)
    >>> sorted(found.facts)[:3]
    ['DAX', 'O_DIRECT', 'file system']
    >>> examine("dram:").durability
    'none: it is memory; a block that raises is rolled back all the same'
    """
    url = URL.parse(place)
    if url.scheme not in known_schemes():
        open_backend(url, writable=False)  # raises, and says which there are
    path = url.local_path
    try:
        if path is None:
            return _examine_elsewhere(url)
        device = devices.find_device(path) if url.scheme in ("memmap", "shelf") else None
        if device is not None:
            return _examine_device(device)
        return _examine_path(path, url.scheme)
    except PMArrayError as error:
        return Diagnosis(path or place, durability=f"cannot be used: {error}")


def _examine_elsewhere(url: URL) -> Diagnosis:
    """What is in no directory: memory, and stores of objects."""
    found = Diagnosis(str(url), url=str(url._replace(name=None)))
    if url.scheme == "dram" or url.path.startswith("memory://"):
        found.facts["kind"] = "memory of this process"
        found.durability = "none: it is memory; a block that raises is rolled back all the same"
        if url.scheme == "zarr":
            found.durability = "none: it is memory, and has no transactions"
        return found
    open_backend(url, writable=False).close()  # what is wrong with the URL, it says
    found.facts["kind"] = "object store"
    found.durability = (
        "a commit takes place or not, and is as durable as the store; several writers may work"
        if url.scheme == "icechunk"
        else "each object is as durable as the store when flush returns; it has no transactions: "
        "icechunk: has"
    )
    return found


def _examine_path(path: str, scheme: str) -> Diagnosis:
    if path.endswith(".npy") and os.path.isfile(path):
        found = Diagnosis(path, {"kind": ".npy file"}, f"memmap:{path}")
        found.durability = "what was flushed survives power cuts; a single file has no transactions"
        return _as_far_as_allowed(found, path)
    if path.endswith(".zip") and scheme == "zarr":
        found = Diagnosis(path, {"kind": "zip archive"}, f"zarr:{path}")
        found.durability = "it is written once, and is durable when its group has been closed"
        return _as_far_as_allowed(found, path)
    found = _examine_directory(path)
    if scheme in ("zarr", "icechunk") and found.url is not None:
        found.url = f"{scheme}:{path}"
        found.facts["holds"] = _contents_of_hierarchy(path)
    return found


def _as_far_as_allowed(found: Diagnosis, path: str) -> Diagnosis:
    """Say what this user may not do with what is there."""
    if not os.path.exists(path):
        return found
    if not os.access(path, os.R_OK, effective_ids=True):
        found.url = None
        found.durability = "cannot be used: this user may not read it"
    elif not os.access(path, os.W_OK, effective_ids=True):
        found.durability = "read only: this user may not write here"
    return found


def _contents_of_hierarchy(path: str) -> str:
    for names, what in _HIERARCHIES.items():
        if any(os.path.exists(os.path.join(path, name)) for name in names):
            return what
    return "no group yet"


_HIERARCHIES = {
    ("zarr.json", ".zgroup", ".zarray"): "a Zarr hierarchy",
    ("refs", "repo", "snapshots"): "an Icechunk repository",
}


def _examine_device(device: devices.Device) -> Diagnosis:
    found = Diagnosis(device.path)
    found.facts |= {
        "kind": "DAX device" if device.volatile is None else f"DAX device: {device.volatile}",
        "size": format_bytes(device.nbytes),
        "alignment": format_bytes(device.alignment),
        "granularity": "cache line (64 B)",
        "stores": pmem.persistence() if pmem.libpmem() else "libpmem is missing",
    }
    if device.volatile is not None:
        found.url = f"dram:?device={device.path}"
        found.durability = (
            "none beyond a reboot: it is memory, and no persistent one; as a shelf, by "
            f"shelf:{device.path}?volatile=1, a commit survives kill -9"
        )
        return found
    pool = Pool(device, writable=False)
    found.facts["holds"] = pool.contents()
    try:
        pool.refresh()
    except (ForeignDataError, DamagedError):
        found.durability = "cannot be used: it holds something else, unless it is formatted"
        return found
    found.facts["free"] = format_bytes(pool.free_bytes)
    if pmem.libpmem() is None:
        found.durability = (
            "read only: stores to a device are made durable by libpmem alone (Debian: libpmem1)"
        )
        return found
    found.url = f"shelf:{device.path}"
    found.durability = (
        "a commit or flush survives kill -9 and power cuts: stores are written back from the "
        "processor's caches, and no file system is in the way"
    )
    return found


def _examine_directory(path: str) -> Diagnosis:
    found = Diagnosis(path)
    if os.path.exists(path) and not os.path.isdir(path):
        found.durability = "cannot be used: it is a file, and a group is a directory"
        return found
    place = path
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    mount = _mount_of(place)
    space = os.statvfs(place)
    dax = _is_dax(path)
    found.facts |= {
        "kind": "directory" if place == path else "does not exist yet",
        "file system": " over ".join(one.kind for one in mount.written_to()),
        "DAX": "yes: MAP_SYNC is granted" if dax else _why_no_dax(dax, mount),
        "granularity": "cache line (64 B)" if dax else "page (4 KiB)",
        "free": format_bytes(space.f_bavail * space.f_frsize),
        "O_DIRECT": "yes" if _takes_direct(place) else "no",
        "holds": (
            "a group of pmarray"
            if os.path.exists(os.path.join(path, METADATA_NAME))
            else "no group yet"
        ),
    }
    if dax:
        found.facts["stores"] = pmem.persistence()
        found.url = f"shelf:{path}"
        found.durability = (
            "a commit or flush survives kill -9 and power cuts: stores go to the medium itself, "
            + (
                "written back by libpmem"
                if pmem.libpmem()
                else "written back by msync, which is slower than libpmem (Debian: libpmem1)"
            )
        )
    else:
        found.url = f"memmap:{path}"
        found.durability = _durability_of_files(mount)
    return _as_far_as_allowed(found, place)


def _is_dax(path: str) -> bool | None:
    """Whether it is, or None where no file can be made to try it with."""
    try:
        return is_dax(path)
    except StorageError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return None


def _why_no_dax(dax: bool | None, mount: _Mount) -> str:
    if dax is None:
        return "not known: this user may make no file here to try"
    if mount.kind in ("ext4", "xfs") and not any(one.startswith("dax") for one in mount.options):
        return "no: MAP_SYNC is refused (on persistent memory, mount with -o dax=always)"
    return "no: MAP_SYNC is refused"


class _Mount(NamedTuple):
    """What the kernel says of a mount."""

    device: int
    kind: str
    options: tuple[str, ...] = ()

    def written_to(self) -> list[_Mount]:
        """Return it, and what is below it, as far as it can be seen from here."""
        upper = next((one for one in self.options if one.startswith("upperdir=")), "")
        # In a container it is a path of the host: not there, or something else, on the same mount.
        path = _unescaped(upper.removeprefix("upperdir="))
        below = _mount_of(path) if path and os.path.isdir(path) else self
        return [self] if below.device == self.device else [self, *below.written_to()]


def _unescaped(text: str) -> str:
    """A path as mountinfo has it, with blanks in octal digits, and as overlay was told it."""
    text = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
    return re.sub(r"\\(.)", r"\1", text)


def _durability_of_files(mount: _Mount) -> str:
    mounts = mount.written_to()
    kind = mounts[-1].kind
    if kind in _VOLATILE:
        return f"none beyond a reboot: {kind} is memory; a commit survives kill -9"
    for one in mounts:
        for option in one.options:
            if option in _WITHOUT_BARRIERS:
                return (
                    f"a commit or flush survives kill -9, and a power cut may lose it: {one.kind} "
                    f"is mounted with {option}, and does not wait for the medium"
                )
    if kind == "overlay":
        return (
            "a commit or flush survives kill -9; a power cut as far as what overlay writes to, "
            "which is not seen from here"
        )
    if kind in _NETWORK:
        return (
            f"that of the server, as far as {kind} passes fsync on; its locks may not keep a "
            "second writer out"
        )
    return "a commit or flush survives kill -9 and power cuts, by fsync, as far as the device obeys"


def _mount_of(directory: str) -> _Mount:
    """Return the mount that a directory is on."""
    device = os.stat(directory).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open(_MOUNTS, errors="surrogateescape") as file:
            for line in file:
                fields = line.split()
                if fields[2] == wanted:
                    dash = fields.index("-")
                    options = f"{fields[5]},{fields[dash + 3]}".split(",")
                    return _Mount(device, fields[dash + 1], tuple(options))
    except OSError:
        pass
    return _Mount(device, "unknown")


def _takes_direct(directory: str) -> bool:
    try:
        fd = osops.open_nameless(directory, direct=True)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EACCES, errno.EROFS, errno.EOPNOTSUPP):
            return False
        raise
    osops.close(fd)
    return True


def examine_machine() -> Diagnosis:
    """Find out what this machine has for persistent memory.

    Examples
    --------
    >>> "libpmem" in examine_machine().facts
    True
    """
    found = Diagnosis("this machine")
    library = pmem.libpmem()
    found.facts["libpmem"] = "no (Debian: apt install libpmem1)" if library is None else "yes"
    found.facts["PyMM"] = pymm.why_not() or "yes"
    for path in sorted(glob("/sys/bus/nd/devices/region*/persistence_domain")):
        with open(path) as file:
            domain = file.read().strip()
        region = os.path.basename(os.path.dirname(path))
        found.facts[region] = f"{domain}: {_DOMAINS.get(domain, 'unknown')}"
    devices = [f"/dev/{os.path.basename(path)}" for path in glob("/sys/bus/dax/devices/dax*")]
    found.facts["DAX devices"] = ", ".join(sorted(devices)) or "none"
    found.facts["DAX mounts"] = ", ".join(_dax_mounts()) or "none"
    volatile = [path for path in devices if _is_volatile(path)]
    found.facts["volatile DAX devices"] = ", ".join(sorted(volatile)) or "none"
    usable = len(devices) > len(volatile) or _dax_mounts()
    found.durability = (
        "persistent memory is there: `pmarray doctor PATH` says more of each place"
        if usable
        else "no persistent memory: shelf: works on any directory, by fsync"
    )
    return found


def _is_volatile(path: str) -> bool:
    try:
        device = devices.find_device(path)
    except PMArrayError:
        return False
    return device is not None and device.volatile is not None


def _dax_mounts() -> list[str]:
    try:
        with open(_MOUNTS, errors="surrogateescape") as file:
            lines = [line.split() for line in file]
    except OSError:
        return []
    return sorted(f[4] for f in lines if "dax" in f[-1].replace("dax=never", "").replace("=", ","))
