"""What kind of file system something is on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pmarray._system.filesystems import is_local

TRIED = {"ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "devtmpfs"}


def test_the_mounts_say_the_same() -> None:
    if not Path("/proc/self/mountinfo").exists():
        pytest.skip("this system does not list its mounts")
    found = set()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        place, kind = fields.split()[4], rest.split()[0]
        try:
            fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:  # a file, or not for everybody
            continue
        try:
            device = os.fstat(fd).st_dev
            if fields.split()[2] == f"{os.major(device)}:{os.minor(device)}":  # not hidden
                assert is_local(fd) == (kind in TRIED), (place, kind)
                found.add(kind)
        finally:
            os.close(fd)
    if not found:
        pytest.skip("the mounts that it lists are not here, as in a chroot")
    assert len(found) > 1  # /proc is one, if nothing else is


def test_in_a_chroot_whose_mount_nobody_lists(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    outside = is_local(fd)
    os.close(fd)
    script = (
        "import os, sys; from pmarray._system.filesystems import is_local; os.chroot(sys.argv[1]);"
        "os.chdir('/'); print(is_local(os.open('/', os.O_RDONLY)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    if "PermissionError" in done.stderr:
        pytest.skip("only root may make a chroot")
    assert done.stdout.strip() == str(outside), done.stderr
