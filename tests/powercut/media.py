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
    """One place.

    Once mounted, it is what it was when the power went: scripts and URL find it by themselves.
    """

    name: str
    about: str
    url: str
    format: str = "true"
    """A script that makes the file system."""
    mount: str = "true"
    """A script that mounts it."""
    made_first: bool = False
    """Whether the group is made before anything is cut: a bare device is formatted once."""

    @property
    def scheme(self) -> str:
        """Of the URL."""
        return self.url.partition(":")[0]


_DISK = "mkfs.ext4 -q -F -b 4096 /dev/vdd", "mount /dev/vdd /disk"
# Blocks of one page: without being told, mkfs takes smaller ones on a small device, and no DAX.
_EXT4_DAX = "mkfs.ext4 -q -F -b 4096 /dev/pmem0", "mount -o dax=always /dev/pmem0 /pmem"
_XFS_DAX = "mkfs.xfs -q -f -m reflink=0 /dev/pmem0", "mount -t xfs -o dax=always /dev/pmem0 /pmem"

MEDIA = {
    medium.name: medium
    for medium in (
        Medium("disk", "files, ext4 on a disk", "memmap:/disk/group", *_DISK),
        Medium("zarr", "Zarr, ext4 on a disk", "zarr:/disk/group", *_DISK),
        Medium("memmap-ext4", "files, ext4 with DAX", "memmap:/pmem/group", *_EXT4_DAX),
        Medium("memmap-xfs", "files, xfs with DAX", "memmap:/pmem/group", *_XFS_DAX),
        Medium("fsdax-ext4", "shelf, ext4 with DAX", "shelf:/pmem/group", *_EXT4_DAX),
        Medium("fsdax-xfs", "shelf, xfs with DAX", "shelf:/pmem/group", *_XFS_DAX),
        Medium("devdax", "shelf, a bare device", "shelf:/dev/dax1.0", made_first=True),
    )
}
