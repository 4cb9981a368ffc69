"""Read-only file systems with Python packages and with this source tree, for the guest.

Importing NumPy through a shared directory is slow on an emulated machine, so what the guest runs
is copied into images of its own, which are made anew when a version or a source file changes.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.powercut.host import sh

__all__ = ["PackageSet", "SourceTree"]

_REPOSITORY = Path(__file__).parent.parent.parent
_LIBRARIES = ("pmarray", "swag")
_INSIDE = ("__init__", "agent", "checker", "replayer", "states", "writelog", "writer")
"""The modules of the rig that run in the guest."""
_TESTING = ("hypothesis", "ml_dtypes")
"""Beside its own dependencies: `pmarray.testing` imports the one, and uses the other."""


class PackageSet:
    """Installed distributions and all that they depend on.

    Parameters
    ----------
    names
        Of distributions, as ``pip`` knows them.
    without
        Another set, whose distributions the guest has already.
    """

    distributions: dict[str, Distribution]

    def __init__(self, names: Iterable[str], without: PackageSet | None = None) -> None:
        found: dict[str, Distribution] = {}
        todo = list(names)
        while todo:
            name = canonicalize_name(todo.pop())
            if name in found or (without is not None and name in without.distributions):
                continue
            found[name] = distribution(name)
            todo += _required(found[name])
        self.distributions = dict(sorted(found.items()))

    @classmethod
    def of_pmarray(cls) -> PackageSet:
        """What ``import pmarray, pmarray.testing`` needs."""
        project = tomllib.loads((_REPOSITORY / "pyproject.toml").read_text())["project"]
        needed = [Requirement(line).name for line in project["dependencies"]]
        return cls([*needed, *_TESTING])

    @property
    def key(self) -> str:
        """A digest of the names and versions."""
        versions = [f"{name}=={d.version}" for name, d in self.distributions.items()]
        return hashlib.sha256("\n".join(versions).encode()).hexdigest()[:12]

    def build(self, image: Path) -> None:
        """Copy all files into a new ext4 image."""
        with tempfile.TemporaryDirectory(dir=image.parent) as scratch:
            root = Path(scratch)
            for package in self.distributions.values():
                for file in package.files or []:
                    # Programs lie outside of site-packages, and headers are of no use there.
                    if ".." in file.parts or "tests" in file.parts or "include" in file.parts:
                        continue
                    source = Path(str(file.locate()))
                    if source.is_file():
                        (root / file).parent.mkdir(parents=True, exist_ok=True)
                        shutil.copy2(source, root / file)
            _make_image(root, image)


class SourceTree:
    """The library and the guest's part of the rig, as they are in the working tree."""

    def __init__(self) -> None:
        library = [
            path.relative_to(_REPOSITORY)
            for name in _LIBRARIES
            for path in (_REPOSITORY / name).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        ]
        rig = [Path("tests", "powercut", f"{name}.py") for name in _INSIDE]
        self._files = sorted([*library, *rig])

    @property
    def key(self) -> str:
        """A digest of all that there is in it."""
        digest = hashlib.sha256()
        for path in self._files:
            content = (_REPOSITORY / path).read_bytes()
            digest.update(f"{path} {len(content)}\n".encode() + content)
        return digest.hexdigest()[:12]

    def build(self, image: Path) -> None:
        """Copy it into a new ext4 image."""
        with tempfile.TemporaryDirectory(dir=image.parent) as scratch:
            for path in self._files:
                copy = Path(scratch) / path
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(_REPOSITORY / path, copy)
            # The emulated machine would take half a minute, at every boot and for every program.
            sh(sys.executable, "-m", "compileall", "-q", scratch)
            _make_image(Path(scratch), image)


def _required(package: Distribution) -> list[str]:
    requirements = map(Requirement, package.requires or [])
    return [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]


def _make_image(root: Path, image: Path) -> None:
    used = sum(path.lstat().st_size + 4096 for path in root.rglob("*"))
    # No journal and no reserve; some room for inodes and block maps.
    size = f"{used * 5 // 4 // 1024 + 8192}k"
    sh("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-m", "0", "-d", root, image, size)
