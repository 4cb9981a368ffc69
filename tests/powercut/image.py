"""The kernel, the root file system and the initial RAM disk of the machine that loses power.

All of it is Debian's: `debootstrap` makes the root, and the kernel's package is unpacked, not
installed. The kernel is taken out of its compressed image, since QEMU starts a plain ELF file
directly; unpacking it in the guest would take longer than all the rest of the boot.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.powercut.host import CannotRunError, sh

__all__ = ["Image"]

_SUITE = "bookworm"
_PACKAGES = (
    "busybox-static",
    "daxctl",
    "dmsetup",
    "e2fsprogs",
    "kmod",
    "libpmem1",
    "ndctl",
    "python3",
    "xfsprogs",
)
_EARLY = "virtio_pci virtio_blk ext4"
"""Modules that the initial RAM disk needs to reach the root."""
_MODULES = "nfit nd_pmem dax_pmem device_dax xfs dm_log_writes dm_snapshot brd"
"""And those that the boot loads from there."""
_MODULE_DIRECTORIES = (
    *("arch", "crypto", "lib", "fs/ext4", "fs/jbd2", "fs/xfs", "fs/mbcache.ko"),
    *("drivers/acpi", "drivers/block", "drivers/dax", "drivers/md", "drivers/nvdimm"),
    "drivers/virtio",
)

_INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev
for module in /modules/*; do $b insmod $module; done
$b mount -t ext4 -o ro,noload /dev/vda /root
for place in proc sys dev; do $b mount --move /$place /root/$place; done
exec $b chroot /root /bin/sh /boot/start
"""

_START = f"""#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
for place in tmp run root; do mount -t tmpfs $place /$place; done
mkdir /dev/shm; mount -t tmpfs shm /dev/shm
modprobe -a {_MODULES}
mount -o ro,noload /dev/vdb /packages
mount -o ro,noload /dev/vdc /source
export PYTHONPATH=/source:/packages PYTHONDONTWRITEBYTECODE=1
if [ -e /dev/vdg ]; then mount -o ro,noload /dev/vdg /more; PYTHONPATH=$PYTHONPATH:/more; fi
cd /source
python3 -m tests.powercut.agent /dev/ttyS1
echo "the agent ended with status $?"
sync
poweroff -f
"""


@dataclass(frozen=True, slots=True)
class Image:
    """What every machine of the rig has in common; built once, and read-only from then on."""

    directory: Path

    @property
    def kernel(self) -> Path:
        """The kernel, an ELF file."""
        return self.directory / "vmlinux"

    @property
    def initrd(self) -> Path:
        """The initial RAM disk."""
        return self.directory / "initrd"

    @property
    def root(self) -> Path:
        """The root file system, ext4."""
        return self.directory / "root.img"

    @staticmethod
    def key() -> str:
        """Return a digest of the recipe, which is this file."""
        return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]

    def build(self) -> None:
        """Make it, in some minutes; needs root and a mirror of Debian."""
        if os.geteuid() != 0:
            raise CannotRunError(
                "the machine's root file system is made with debootstrap: needs root"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        root, kernel, early = (self.directory / name for name in ("root", "kernel", "early"))
        try:
            sh("debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", _SUITE, root)
            _unpack_kernel(root, kernel)
            (image,) = (kernel / "boot").glob("vmlinuz-*")
            self.kernel.write_bytes(_decompress(image.read_bytes()))
            (version,) = os.listdir(kernel / "lib" / "modules")
            _install_modules(kernel, root, version)
            (root / "boot" / "start").write_text(_START)
            _make_initrd(root, early, version, self.initrd)
            for name in ("packages", "source", "more", "disk", "pmem"):
                (root / name).mkdir()
            for rubbish in ("var/cache/apt", "var/lib/apt", "usr/share/doc", "usr/share/locale"):
                shutil.rmtree(root / rubbish)
            sh("mkfs.ext4", "-q", "-F", "-d", root, self.root, "1G")
        finally:
            for directory in (root, kernel, early):
                shutil.rmtree(directory, ignore_errors=True)


def _unpack_kernel(root: Path, kernel: Path) -> None:
    # Not the kernel of the cloud images, which has no NVDIMMs. The package linux-image-amd64
    # is empty and depends on the newest one.
    depends = sh("chroot", root, "apt-cache", "depends", "linux-image-amd64")
    names = [word for word in depends.split() if word.startswith("linux-image-")]
    package = next(name for name in names if name != "linux-image-amd64")
    sh("chroot", root, "apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package)
    (archive,) = root.glob("linux-image-*.deb")
    sh("dpkg-deb", "-x", archive, kernel)
    archive.unlink()


def _decompress(image: bytes) -> bytes:
    """Take the kernel out of a bzImage: xz data after the code that would unpack it."""
    start = image.find(b"\xfd7zXZ\0")
    if start < 0:
        raise CannotRunError("the kernel is not compressed with xz")
    return lzma.LZMADecompressor().decompress(image[start:])


def _install_modules(kernel: Path, root: Path, version: str) -> None:
    source = kernel / "lib" / "modules" / version
    target = root / "lib" / "modules" / version
    target.mkdir(parents=True)
    for listing in source.glob("modules.*"):
        shutil.copy(listing, target)
    for name in _MODULE_DIRECTORIES:
        place = source / "kernel" / name
        if place.is_dir():
            shutil.copytree(place, target / "kernel" / name)
        else:
            shutil.copy(place, target / "kernel" / name)
    sh("chroot", root, "depmod", version)


def _make_initrd(root: Path, early: Path, version: str, initrd: Path) -> None:
    for name in ("bin", "proc", "sys", "dev", "root", "modules"):
        (early / name).mkdir(parents=True)
    shutil.copy(root / "bin" / "busybox", early / "bin")
    # Without the configuration, a hook of the package ndctl would stand in the place of a path.
    plan = sh(
        *("chroot", root, "modprobe", "-C", "/dev/null", "-S", version),
        *("--show-depends", "-a", *_EARLY.split()),
    )
    loads = [line.split()[1] for line in plan.splitlines() if line.startswith("insmod")]
    for number, path in enumerate(dict.fromkeys(loads)):
        copy = early / "modules" / f"{number:02}-{os.path.basename(path)}"
        shutil.copy(root / path.lstrip("/"), copy)
    init = early / "init"
    init.write_text(_INIT)
    init.chmod(0o755)
    inside = root / "early"
    early.rename(inside)
    sh(
        *("chroot", root, "/bin/sh", "-c"),
        "cd /early && find . | busybox cpio -o -H newc > /initrd",
    )
    shutil.move(root / "initrd", initrd)
    shutil.rmtree(inside)
