"""Damage the journal of a group that has crashed: it is refused, or read as it would have been.

``python -m tests.crash.damage --seed 1 --minutes 10``, or ``make damage SEED=1 MINUTES=10``.

1. A scenario is run on record (`tests.crash.check`), and crashed at a random instant: killed, so
   that the newest state is there, or by a power cut that loses and tears what it may.
2. One fault is put into the journal: a flipped bit, a block that is zeros or noise, a cut; or a bit
   is flipped in a superblock of a pool.
3. The group is opened by a reader, and recovered by a writer. Either refuses it with
   `DamagedError`, or finds a state that had been promised.
4. A group that was refused is recovered by force; afterwards it opens, and `verify` is content.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pmarray
from pmarray._formats.pool import COPY_OFFSET, SUPERBLOCK_BYTES
from pmarray._url import URL
from pmarray.backends import open_backend
from pmarray.backends.shelf.poolbackend import PoolBackend
from pmarray.errors import DamagedError
from pmarray.testing import State
from tests.crash.check import record, scratch
from tests.crash.choices import forget_pages
from tests.crash.events import Mark
from tests.crash.images import PowerCut
from tests.crash.scenarios import SCENARIOS, GroupScenario
from tests.crash.stage import Stage

__all__ = ["FAULTS", "Outcome", "damage_and_open", "main"]

_BLOCK_BYTES = 4096
FAULTS = (
    "bit", "bit", "bit", "zeros", "noise", "sector", "cut", "empty", "gone", "blank", "superblock",
)  # fmt: skip
_FILE_FAULTS = ("cut", "empty", "gone")
_SUPERBLOCKS = (0, COPY_OFFSET, _BLOCK_BYTES, _BLOCK_BYTES + COPY_OFFSET)
_TEMPLATES = {
    "durable": "memmap",
    "uncached": "memmap",
    "pipelined": "memmap",
    "cached": "memmap",
    "replacing": "memmap",
    "growing": "memmap",
    "columns-durable": "zarr",
    "columns-uncached": "zarr",
    "blocks-pipelined": "zarr",
    "shelf-durable": "shelf",
    "shelf-in-place": "shelf",
    "shelf-spilled": "shelf",
    "device-durable": "device",
    "device-in-place": "device",
    "device-spilled": "device",
    "device-growing": "device",
}
"""The scenarios, and what their journals are on."""


@dataclass(slots=True)
class Outcome:
    """What a campaign has seen."""

    tried: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Faults, by medium and kind."""
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Of those, which were refused."""
    wrong: list[str] = field(default_factory=list)
    """What should not have been found."""

    def __str__(self) -> str:
        lines = [
            f"{medium:8} {kind:7} {n:6} tried, {self.refused[medium, kind]:6} refused"
            for (medium, kind), n in sorted(self.tried.items())
        ]
        total, refused = sum(self.tried.values()), sum(self.refused.values())
        lines.append(f"{total} faults, {refused} refused, {len(self.wrong)} wrong")
        return "\n".join(lines)


def _pieces(url: str, root: Path) -> list[tuple[Path, int, int]]:
    """Return the file that the journal is in, and where in it: offset and length of each run."""
    backend = open_backend(URL.parse(url), writable=False)
    try:
        checkpoint = backend.load()
        if checkpoint is None or not checkpoint.generation:
            return []
        if isinstance(backend, PoolBackend):
            unit = backend._pool.unit_bytes
            place = Path(backend._pool.medium.path)
            runs = backend._pool.directory.files[0]
            return [(place, first * unit, count * unit) for first, count in runs]
    finally:
        backend.close()
    found = [one for one in root.rglob("journal") if one.is_file()]
    return [(one, 0, one.stat().st_size) for one in found]


def _used(pieces: list[tuple[Path, int, int]]) -> list[int]:
    """Return the offsets of the blocks that hold something, and of a few behind the last."""
    blocks: list[int] = []
    behind: list[int] = []
    for path, start, nbytes in pieces:
        data = path.read_bytes()[start : start + nbytes]
        for at in range(0, len(data), _BLOCK_BYTES):
            if data[at : at + _BLOCK_BYTES].strip(b"\0"):
                blocks.append(start + at)
                behind = []
            else:
                behind.append(start + at)
    return blocks + behind[:2]


def _inject(kind: str, pieces: list[tuple[Path, int, int]], rng: random.Random) -> str:
    """Put one fault into a journal; say which."""
    path, start, nbytes = pieces[0]
    block = rng.choice(_used(pieces))
    if kind == "gone":
        path.unlink()
        return kind
    if kind in ("cut", "empty"):
        # Most often near what is used: what is behind is zeros, and nobody's.
        to = (
            0
            if kind == "empty"
            else rng.choice([block + rng.randrange(4096), rng.randrange(nbytes)])
        )
        os.truncate(path, min(to, nbytes - 1))
        return f"{kind} to {to} of {nbytes}"
    with path.open("r+b") as file:
        if kind == "blank":
            for _, first, length in pieces:
                file.seek(first)
                file.write(bytes(length))
            return kind
        at, length = block, _BLOCK_BYTES
        if kind == "superblock":
            at, length = rng.choice(_SUPERBLOCKS) + rng.randrange(SUPERBLOCK_BYTES), 1
        if kind == "sector":
            at, length = block + 512 * rng.randrange(8), 512
        if kind == "bit":
            at, length = block + rng.randrange(_BLOCK_BYTES), 1
        file.seek(at)
        old = file.read(length)
        flipped = bytes([(old or b"\0")[0] ^ 1 << rng.randrange(8)])
        new = {
            "bit": flipped,
            "superblock": flipped,
            "zeros": bytes(length),
            "sector": bytes(length),
            "noise": rng.randbytes(length),
        }[kind]
        file.seek(at)
        file.write(new[: len(old)])
    return f"{kind} at {at - start} of {nbytes}"


def _look(url: str, mode: Any) -> State | DamagedError:
    """Return what is found by a reader, or after recovery by a writer, or why it is refused."""
    try:
        with pmarray.open_group(url, mode=mode) as group:
            if mode != "r":
                group._session.recover()
            return State.of_group(group)
    except DamagedError as error:
        return error


def _what_is_left(url: str, lost: str) -> str | None:
    """Say what is wrong with a group that was recovered by force, and told what is lost."""
    with pmarray.open_group(url, mode="r+") as group:
        group._session.recover()
        for name in group:
            try:
                group[name][...]
            except DamagedError as error:
                if f"{name}: {error}" not in lost:
                    return f"nothing was told of {error}"
    for finding in pmarray.verify(url):
        if finding.damaged and finding.message not in lost:
            return f"nothing was told of {finding}"
    return None


def damage_and_open(
    scenario: GroupScenario, place: Path, marks: Sequence[Mark], kind: str, rng: random.Random
) -> tuple[bool, str] | None:
    """Put a fault into the crashed group at `place`, and open it.

    Returns whether it was refused, and what is wrong, if anything; None if no journal is in force.
    """
    url = scenario._place.url(place)
    try:
        pieces = _pieces(url, place)
    except pmarray.PMArrayError:
        return None
    if not pieces or not _used(pieces):
        return None
    what = _inject(kind, pieces, rng)
    reader, writer = _look(url, "r"), _look(url, "r+")
    for who, found in (("a reader", reader), ("recovery", writer)):
        if isinstance(found, DamagedError):
            continue
        objection = scenario.objection(found, marks)
        if objection is not None:
            return False, f"{scenario.name}, {what}: {who} found {objection}"
    if isinstance(reader, DamagedError) != isinstance(writer, DamagedError):
        return False, f"{scenario.name}, {what}: refused by one of reader and writer only"
    if isinstance(writer, DamagedError):
        if not any(finding.damaged for finding in pmarray.verify(url)):
            return False, f"{scenario.name}, {what}: refused, and verify has nothing to say"
        done = pmarray.recover(url, force=True)
        if not done.lost:
            return False, f"{scenario.name}, {what}: forced, and nothing reported"
        left = _what_is_left(url, " ".join(done.lost))
        return True, f"{scenario.name}, {what}: {left}" if left else ""
    damage = [finding for finding in pmarray.verify(url) if finding.damaged]
    return False, f"{scenario.name}, {what}: left {damage}" if damage else ""


def crashed(
    name: str, seed: int, rng: random.Random, count: int
) -> Iterator[tuple[GroupScenario, Path, tuple[Mark, ...]]]:
    """Yield a scenario, a directory that shows what some crash has left, and what was promised."""
    scenario = SCENARIOS[name](seed)
    assert isinstance(scenario, GroupScenario)
    with scratch() as path:
        disk, events = record(scenario, path)
    with scratch() as shown, scenario.surroundings():
        stage = Stage(shown)
        chosen = sorted(rng.sample(range(len(events)), min(count, len(events))))
        marks: tuple[Mark, ...] = ()
        for i, event in enumerate(events):
            disk.apply(event)
            if isinstance(event, Mark):
                marks = (*marks, event)
            if i not in chosen:
                continue
            at = disk.copy()
            for later in events[i + 1 :]:
                if later.start < event.end:
                    at.begin(later)
            cut = PowerCut(at)
            image = cut.newest() if rng.random() < 0.5 else cut.random_image(rng, garbage=True)
            stage.show(image)
            yield scenario, shown, marks
    forget_pages()


def damage_campaign(
    names: Sequence[str], seed: int, outcome: Outcome, *, instants: int, until: float
) -> None:
    """Crash each scenario at some instants, and damage its journal in every way."""
    rng = random.Random(f"damage {seed}")
    for name in names:
        for scenario, shown, marks in crashed(name, seed, rng, instants):
            for kind in FAULTS:
                medium = _TEMPLATES[name]
                if time.monotonic() > until:
                    return
                if medium == "device" and kind in _FILE_FAULTS:
                    continue  # a pool has no file that could be cut
                if medium != "device" and kind == "superblock":
                    continue
                with scratch() as copy:
                    shutil.copytree(shown, copy / "it", symlinks=True)
                    try:
                        result = damage_and_open(scenario, copy / "it", marks, kind, rng)
                    except Exception as error:
                        result = False, f"{scenario.name}, {kind}: {error!r}"
                if result is None:
                    continue
                outcome.tried[medium, kind] += 1
                outcome.refused[medium, kind] += result[0]
                if result[1]:
                    outcome.wrong.append(f"seed {seed}: {result[1]}")


def main() -> int:
    """Run for the time given; print what was tried, and what was wrong; 1 if anything was."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.damage", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--scenario", choices=_TEMPLATES, action="append")
    parser.add_argument("--instants", type=int, default=10)
    arguments = parser.parse_args()
    until = time.monotonic() + 60 * arguments.minutes
    outcome, seed = Outcome(), arguments.seed
    while time.monotonic() < until:
        names = arguments.scenario or list(_TEMPLATES)
        damage_campaign(names, seed, outcome, instants=arguments.instants, until=until)
        seed += 1
        print(f"seeds {arguments.seed} to {seed - 1}\n{outcome}", flush=True)
        for line in outcome.wrong[:20]:  # last, where logs are cut
            print(line[:1500], flush=True)
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
