"""The disks that a power cut could leave: all of them where they are few, else a sample."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from tests.crash.choices import UNITS, all_contents, garbled, kept_whole, subsets, torn
from tests.crash.events import Entries
from tests.crash.pages import Content
from tests.crash.simdisk import ROOT, Disk, File, Pending, Tree, walk, with_changes

__all__ = ["Image", "PowerCut", "images"]


@dataclass(frozen=True, slots=True)
class Image:
    """The whole of a directory, as it is found after a crash."""

    tree: Tree
    contents: Mapping[int, Content]
    """Of the files in the tree, by number."""
    key: bytes
    """Equal for equal images."""

    @classmethod
    def of(cls, tree: Tree, contents: Mapping[int, Content]) -> Image:
        """Make an image of what the tree can reach."""
        shown = {
            entry: contents[entry]
            for _, entry, is_directory in tree
            if isinstance(entry, int) and not is_directory
        }
        links: dict[int, int] = {}
        facts: list[tuple[str | int, ...]] = []
        for i, (path, entry, is_directory) in enumerate(tree):
            if is_directory or isinstance(entry, str):
                facts.append((path, is_directory or entry))
            else:
                content = shown[entry]
                facts.append((path, links.setdefault(entry, i), content.size, content.mark))
        key = hashlib.blake2b(repr(facts).encode(), digest_size=16).digest()
        return cls(tree, shown, key)

    def differences(self, other: Image) -> list[str]:
        """Say, for a person, how this image differs from the newest state."""
        lines = []
        mine, theirs = ({p: e for p, e, _ in image.tree} for image in (self, other))
        for path in sorted(mine.keys() | theirs.keys()):
            a, b = mine.get(path), theirs.get(path)
            if a is None or b is None:
                lines.append(f"{path}: {'missing' if a is None else 'there again'}")
            elif isinstance(a, str) or isinstance(b, str) or a not in self.contents:
                if a != b:
                    lines.append(f"{path}: is {a}, newest is {b}")
            else:
                one = self.contents[a]
                two = other.contents.get(b, Content(0, {}, 0))
                pages = sorted(
                    i
                    for i in one.pages.keys() | two.pages.keys()
                    if one.pages.get(i) != two.pages.get(i)
                )
                if a != b:
                    lines.append(f"{path}: is another file")
                if one.size != two.size:
                    lines.append(f"{path}: {one.size} bytes, newest {two.size}")
                if pages:
                    lines.append(f"{path}: pages {pages[:12]} are not the newest")
        return lines


class PowerCut:
    """What is pending at one instant, and the images it may turn into."""

    def __init__(self, disk: Disk, units: Sequence[int] = UNITS) -> None:
        self.disk = disk
        self._units = units
        self._reachable = self._possible_inodes()
        # Of files and directories that no name can lead to, nothing matters.
        self.changes: list[tuple[Pending, int, bool]] = []
        for inode in self._reachable & disk.files.keys():
            self.changes.extend((one, inode, False) for one in disk.files[inode].pending)
        for inode in self._reachable & disk.directories.keys():
            self.changes.extend((one, inode, True) for one in disk.directories[inode].pending)
        self.changes.sort(key=lambda change: change[0].event.end)
        self._settled = {
            inode: disk.files[inode].newest()
            for inode in self._reachable & disk.files.keys()
            if not disk.files[inode].pending
        }

    def _possible_inodes(self) -> set[int]:
        """Return the files and directories that are found in some image."""
        found: set[int] = set()
        stack = [ROOT]
        while stack:
            inode = stack.pop()
            if inode in found:
                continue
            found.add(inode)
            directory = self.disk.directories.get(inode)
            if directory is not None:
                stack.extend(e for e in directory.entries.values() if isinstance(e, int))
                for one in directory.pending:
                    assert isinstance(one.event, Entries)
                    stack.extend(e for _, e in one.event.changes if isinstance(e, int))
        return found

    def tree(self, is_kept: Callable[[Pending], bool]) -> Tree:
        """Return the names when just these pending changes took effect."""
        return walk(
            {
                inode: with_changes(d.entries, filter(is_kept, d.pending))
                for inode, d in self.disk.directories.items()
            }
        )

    def image(
        self,
        is_kept: Callable[[Pending], bool],
        content: Callable[[int, File], Content] | None = None,
    ) -> Image:
        """Return the image when just these pending changes took effect, or files of another kind.

        `content` decides about files; without it, they are whole subsets too.
        """
        tree = self.tree(is_kept)
        contents = {}
        for _, entry, is_directory in tree:
            if isinstance(entry, int) and not is_directory and entry not in contents:
                settled = self._settled.get(entry)
                if settled is not None:
                    contents[entry] = settled
                    continue
                file = self.disk.files[entry]
                contents[entry] = (
                    kept_whole(file, [is_kept(one) for one in file.pending])
                    if content is None
                    else content(entry, file)
                )
        return Image.of(tree, contents)

    def newest(self) -> Image:
        """Return the image in which nothing was lost."""
        return self.image(lambda _: True)

    # -- all of them ------------------------------------------------------------------------------

    def all_images(self, limit: int) -> tuple[list[Image], int] | None:
        """Return all images, and the unit into which writes were torn; None if they are too many.

        The unit is the smallest for which there are no more than `limit` images; 0 means that
        writes were not torn at all.
        """
        names = [change for change, _, is_name in self.changes if is_name]
        if 1 << len(names) > limit:
            return None
        trees: dict[Tree, None] = {}
        for bits in product((False, True), repeat=len(names)):
            kept = {id(one) for one, bit in zip(names, bits, strict=True) if bit}
            trees.setdefault(self.tree(lambda one, kept=kept: id(one) in kept))  # type: ignore[misc]
        # The smallest unit that is affordable: try the coarse ones first, they are cheap.
        best: tuple[dict[int, list[Content]], int] | None = None
        for unit in (0, *reversed(self._units)):
            contents = self._all_contents(unit, limit)
            if contents is not None and self._count(trees, contents) <= limit:
                best = contents, unit
            elif unit:
                break
        if best is None:
            return None
        contents, unit = best
        found = [
            Image.of(tree, dict(zip(files, chosen, strict=True)))
            for tree in trees
            for files in [_files(tree)]
            for chosen in product(*(contents[i] for i in files))
        ]
        return found, unit

    def _all_contents(self, unit: int, limit: int) -> dict[int, list[Content]] | None:
        result = {inode: [content] for inode, content in self._settled.items()}
        for inode in (self._reachable & self.disk.files.keys()) - self._settled.keys():
            file = self.disk.files[inode]
            # A unit holds one of the values it had. Where several writes share one, whole subsets
            # of them leave values that it never had: the second write without the first.
            some = all_contents(file, unit, limit) if unit else []
            if some is None:
                return None
            known = {(one.size, one.mark): one for one in some}
            whole = subsets(file, limit)
            if whole is None and not unit:
                return None
            known.update({(one.size, one.mark): one for one in whole or ()})
            result[inode] = list(known.values())
        return result

    @staticmethod
    def _count(trees: Mapping[Tree, None], contents: Mapping[int, list[Content]]) -> int:
        return sum(math.prod(len(contents[i]) for i in _files(tree)) for tree in trees)

    # -- some of them -----------------------------------------------------------------------------

    def telling_images(self) -> Iterator[Image]:
        """Yield all, nothing, and, for the latest changes, all but one and nothing but one."""
        yield self.newest()
        yield self.image(lambda _: False)
        for odd, _, _ in self.changes[-12:]:
            yield self.image(lambda one, odd=odd: one is not odd)  # type: ignore[misc]
            yield self.image(lambda one, odd=odd: one is odd)  # type: ignore[misc]

    def random_image(self, rng: random.Random, *, garbage: bool) -> Image:
        """Return one image, lost and torn at random."""
        style = rng.randrange(5)
        probability = rng.choice((0.1, 0.5, 0.9))
        if style == 0:  # a prefix in time, the last change torn
            stop = rng.randint(0, len(self.changes))
            kept = {id(one) for one, _, _ in self.changes[:stop]}
            last = self.changes[stop - 1][1] if stop else None
        elif style == 1:  # file by file, all or nothing
            owners = {inode for _, inode, _ in self.changes if rng.random() < 0.5}
            kept = {id(one) for one, inode, _ in self.changes if inode in owners}
            last = None
        else:  # any subset
            kept = {id(one) for one, _, _ in self.changes if rng.random() < probability}
            last = None
        tears = style >= 3

        def content(inode: int, file: File) -> Content:
            bits = [id(one) in kept for one in file.pending]
            if inode == last:
                partly = [
                    one for one, bit in zip(file.pending, bits, strict=True) if bit or one.settled
                ]
                result = torn(File(file.size, file.pages, tuple(partly)), rng, self._units)
            elif tears and rng.random() < 0.7:
                result = torn(file, rng, self._units)
            else:
                result = kept_whole(file, bits)
            return garbled(file, result, rng) if garbage and rng.random() < 0.15 else result

        return self.image(lambda one: id(one) in kept, content)


def _files(tree: Tree) -> list[int]:
    return list(
        dict.fromkeys(e for _, e, is_directory in tree if isinstance(e, int) and not is_directory)
    )


def images(
    disk: Disk,
    rng: random.Random,
    *,
    limit: int = 1 << 12,
    samples: int = 32,
    garbage: bool = True,
    units: Sequence[int] = UNITS,
) -> Iterator[Image]:
    """Yield what a power cut at this instant may leave.

    All images if they are no more than `limit`, torn into the smallest units for which that is so;
    else the telling ones. Unless those were all there are, `samples` random ones follow. The medium
    writes one of `units` in one step, in bytes, the smallest first.
    """
    cut = PowerCut(disk, units)
    everything = cut.all_images(limit)
    if everything is None:
        yield from cut.telling_images()
    else:
        yield from everything[0]
    complete = everything is not None and everything[1] == units[0]
    if not cut.changes:
        return
    for _ in range(samples if not complete else samples // 4 if garbage else 0):
        yield cut.random_image(rng, garbage=garbage)
