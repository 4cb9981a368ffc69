"""Where a group can be in the guest: how the place is made, mounted and called."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MEDIA", "NAMESPACES", "Medium"]

NAMESPACES = """
for region in /sys/bus/nd/devices/region*; do
    # The larger one of the two NVDIMMs carries a file system, the other is a bare device.
    mode=devdax
    if [ $(cat $region/size) -gt 300000000 ]; then mode=fsdax; fi
    # --map=mem keeps the kernel's notes on the pages out of the NVDIMM.
    ndctl create-namespace -f -e namespace${region##*region}.0 -m $mode --map=mem
done
test -b /dev/pmem0 && test -c /dev/dax1.0
"""
"""A script that divides blank NVDIMMs into what `media` speak of."""


@dataclass(frozen=True, slots=True)
class Medium:
    """One place."""

    name: str
    about: str
    url: str
    device: str
    """What it lies on: a disk, or an NVDIMM."""
    format: str = "true"
    """A script that makes the file system."""
    options: str = ""
    """For mounting it."""
    directory: str = ""
    """Where it is mounted; empty for a bare device."""

    @property
    def mount(self) -> str:
        """A script that mounts it, as the last power cut left it."""
        return f"mount {self.options} {self.device} {self.directory}" if self.directory else "true"

    @property
    def is_disk(self) -> bool:
        """Whether everything reaches it in requests, which the kernel can log."""
        return self.device == _DISK


_DISK, _PMEM = "/dev/vdd", "/dev/pmem0"
_ON_DISK = _DISK, f"mkfs.ext4 -q -F -b 4096 {_DISK}", "", "/disk"
# Blocks of one page: without being told, mkfs takes smaller ones on a small device, and no DAX.
_EXT4_DAX = _PMEM, f"mkfs.ext4 -q -F -b 4096 {_PMEM}", "-o dax=always", "/pmem"
_XFS_DAX = _PMEM, f"mkfs.xfs -q -f -m reflink=0 {_PMEM}", "-o dax=always", "/pmem"

MEDIA = {
    medium.name: medium
    for medium in (
        Medium("disk", "files, ext4 on a disk", "memmap:/disk/group", *_ON_DISK),
        Medium("zarr", "Zarr, ext4 on a disk", "zarr:/disk/group", *_ON_DISK),
        Medium("memmap-ext4", "files, ext4 with DAX", "memmap:/pmem/group", *_EXT4_DAX),
        Medium("memmap-xfs", "files, xfs with DAX", "memmap:/pmem/group", *_XFS_DAX),
        Medium("fsdax-ext4", "shelf, ext4 with DAX", "shelf:/pmem/group?engine=dax", *_EXT4_DAX),
        Medium("fsdax-xfs", "shelf, xfs with DAX", "shelf:/pmem/group?engine=dax", *_XFS_DAX),
        Medium("devdax", "shelf, a bare device", "shelf:/dev/dax1.0", "/dev/dax1.0"),
    )
}
