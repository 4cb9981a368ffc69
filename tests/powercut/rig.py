"""All that is made once and used for every cut: images, formatted disks, and a snapshot.

Each lies in the home directory under a name with a digest of what it was made from, so it is made
again when that changes, and only then.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tests.powercut import media
from tests.powercut.guest import Guest
from tests.powercut.host import CannotRunError, home, obstacle, sh
from tests.powercut.image import Image
from tests.powercut.media import MEDIA, NAMESPACES, Medium
from tests.powercut.packages import PackageSet, SourceTree
from tests.powercut.qemu import DISKS, Machine, Monitor, Snapshot

__all__ = ["Rig", "copy_disks"]

_KEPT = 3
"""Of each kind of thing in the home directory, that many are kept,"""
_KEPT_S = 3600
"""and what was used in the last hour, perhaps by a rig that runs now."""

_SET_APART = f"memmap=128M%512M-1+{0xEFFFFFFF:#x}"
"""For the kernel: 128 MiB from 512 MiB on are of type "soft reserved", in place of type RAM."""


class Rig:
    """Machines to cut the power of.

    Making one builds what is missing: minutes the first time, seconds after a change of the source.

    Parameters
    ----------
    say
        Told what is being built.

    Raises
    ------
    CannotRunError
        The rig cannot run here.
    """

    def __init__(self, say: Callable[[str], object] = lambda _: None) -> None:
        if reason := obstacle():
            raise CannotRunError(reason)
        self._home = home()
        self._say = say
        self._home.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._build()

    def fresh(self, medium: Medium, directory: Path) -> None:
        """Put new disks into a directory, formatted for `medium`."""
        os.utime(self._formatted)
        copy_disks(self._formatted / medium.name, directory)

    def start(self, disks: Path) -> Guest:
        """Return a guest that has these disks and is ready for orders."""
        return _restored(self.machine, self._snapshot, disks)

    def start_with_memory_set_apart(self, disks: Path) -> Guest:
        """The same, with a part of the guest's memory that its firmware calls special-purpose.

        The kernel makes a DAX device of it, ``/dev/dax0.0`` on ``hmem.0``, once ``dax_hmem`` is
        loaded. As in all memory, what is in it at the start is what a boot has left there.
        """
        machine = replace(self.machine, kernel_arguments=_SET_APART)
        with self._locked():
            snapshot = self._snapshot_of(machine)
        return _restored(machine, snapshot, disks)

    def boot(self, disks: Path, extra: PackageSet, memory_bytes: int) -> Guest:
        """The same with more packages and memory; takes as long as a boot does."""
        with self._locked():
            image = self._made(f"packages-{extra.key}", extra.build)
        return self._booted(replace(self.machine, extra=image, memory_bytes=memory_bytes), disks)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other rigs from building the same."""
        with (self._home / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _build(self) -> None:
        image = Image(self._made(f"image-{Image.key()}", lambda place: Image(place).build()))
        packages = PackageSet.of_pmarray()
        source = SourceTree()
        self.packages = packages
        self.machine = Machine(
            image,
            self._made(f"packages-{packages.key}", packages.build),
            self._made(f"source-{source.key}", source.build),
        )
        recipe = Path(media.__file__).read_bytes() + repr(DISKS).encode()
        key = _digest(Image.key().encode() + recipe)
        self._blank = self._made(f"disks-{key}", self._divide)
        emulator = sh("qemu-system-x86_64", "--version")
        self._parts = (Image.key(), packages.key, source.key, key, emulator)
        self._snapshot = self._snapshot_of(self.machine)
        self._formatted = self._made(f"formatted-{key}", self._format)

    def _made(self, name: str, make: Callable[[Path], object]) -> Path:
        """Return the file or directory of that name, made if it is not there."""
        place = self._home / name
        if not place.exists():
            self._say(f"building {place}")
            unfinished = self._home / f"unfinished-{name}"
            _remove(unfinished)
            try:
                make(unfinished)
                unfinished.rename(place)
            finally:
                _remove(unfinished)
        os.utime(place)  # used just now
        kind = name.partition("-")[0]
        used = sorted((path.stat().st_mtime, path) for path in self._home.glob(f"{kind}-*"))
        for then, old in used[:-_KEPT]:
            if then < time.time() - _KEPT_S:
                _remove(old)
        return place

    def _divide(self, place: Path) -> None:
        place.mkdir()
        for name, size in DISKS.items():
            with (place / name).open("wb") as file:
                file.truncate(size)
        with self._booted(self.machine, place) as guest:
            guest.do("shell", script=NAMESPACES + "\nsync")

    def _snapshot_of(self, machine: Machine) -> Snapshot:
        """Return one of a machine that differs from the rig's in what its kernel is told."""
        key = _digest(" ".join((*self._parts, machine.kernel_arguments)).encode())
        kind = "snapshot" if machine == self.machine else "variant"
        return Snapshot(self._made(f"{kind}-{key}", lambda place: self._record(machine, place)))

    def _record(self, machine: Machine, place: Path) -> None:
        place.mkdir()
        disks = place / "disks"
        copy_disks(self._blank, disks)
        snapshot = Snapshot(place)
        with Guest(machine.recording(disks, snapshot), disks) as guest:
            guest.wait_for("ready")
            with Monitor(disks) as monitor:
                monitor.save(snapshot)
        shutil.rmtree(disks)

    def _format(self, place: Path) -> None:
        for medium in MEDIA.values():
            disks = place / medium.name
            copy_disks(self._blank, disks)
            with self.start(disks) as guest:
                guest.do("shell", script=medium.format + "\nsync")

    def _booted(self, machine: Machine, disks: Path) -> Guest:
        with contextlib.ExitStack() as on_error:
            guest = on_error.enter_context(Guest(machine.booting(disks), disks))
            guest.wait_for("ready")
            _wake(guest)
            on_error.pop_all()
        return guest


def _restored(machine: Machine, snapshot: Snapshot, disks: Path) -> Guest:
    os.utime(snapshot.directory)
    with contextlib.ExitStack() as on_error:
        guest = on_error.enter_context(Guest(machine.restoring(disks, snapshot), disks))
        with Monitor(disks) as monitor:
            monitor.restore(snapshot)
        _wake(guest)
        on_error.pop_all()
    return guest


def _wake(guest: Guest) -> None:
    guest.do("wake", now=time.time(), entropy=os.urandom(64).hex())


def _digest(recipe: bytes) -> str:
    return hashlib.sha256(recipe).hexdigest()[:12]


def copy_disks(source: Path, target: Path) -> None:
    """Copy the disks of a machine into another directory; holes stay holes."""
    target.mkdir(parents=True, exist_ok=True)
    sh("cp", "--sparse=always", *(source / name for name in DISKS), target)


def _remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
