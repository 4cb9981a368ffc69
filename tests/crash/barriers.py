"""Leaves out each barrier of the library in turn; some power cut has to show it.

``python -m tests.crash.barriers --seed 1 --minutes 30``, or ``make barriers``: all of them, in the
order that the seed gives. The suite tries some.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

from tests.crash.check import Campaign, scratch
from tests.crash.choices import forget_pages
from tests.crash.mutation import barrier_sites, without_barrier
from tests.crash.recorder import Recorder
from tests.crash.scenarios import SCENARIOS

__all__ = ["FAMILIES", "Barrier", "Family", "barriers_of", "is_missed"]


@dataclass(frozen=True, slots=True)
class Family:
    """The barriers of one medium."""

    scenarios: tuple[str, ...]
    """In which they come up."""
    calls: frozenset[str]
    """What they call."""
    unseen: frozenset[str] = frozenset()
    """Those whose absence no cut shows."""
    slow: frozenset[str] = frozenset()
    """Those whose absence it takes longer campaigns to see than this one."""
    only: str = ""
    """Part of the site of those that no other family has."""
    recovering: str = ""
    """A scenario whose recovery has barriers that come up only after a crash."""
    again: float = 0
    """The share of images that are crashed again."""
    limit: int = 16
    """Images tried of an instant."""


FAMILIES = {
    "files": Family(
        scenarios=("durable", "uncached", "pipelined", "flushes", "growing"),
        calls=frozenset({"fdatasync", "fsync_directory"}),
        unseen=frozenset({
            # What is put back was made durable before the data were touched; only a sector that a
            # power cut garbles while recovery writes it again could tell, and the checkpoint that
            # follows covers it.
            "fdatasync _commits/committer.py recover",
            "fdatasync _commits/committer.py roll_back",
        }),
        recovering="uncached",
        limit=32,
    ),
    "hierarchy": Family(
        scenarios=("columns-durable", "columns-flushes"),
        calls=frozenset({"fdatasync", "fsync_directory"}),
        unseen=frozenset({
            # Removes the journal of a session that was closed. It takes three crashes in a row to
            # see it again: before that, before the next one has a journal of its own, and after.
            "fsync_directory zarr/local.py _become_writer",
            # For what other programs have written into the hierarchy; our own is durable already.
            "fdatasync zarr/files.py <listcomp>",
            "fdatasync zarr/files.py _make_way",
        }),
        slow=frozenset({
            "fdatasync zarr/local.py checkpoint",
            "fsync_directory zarr/local.py checkpoint",
            "fsync_directory zarr/local.py _flush_for_good",
            "fsync_directory zarr/local.py put_back",
        }),
        only="zarr/",
        again=0.01,
        limit=8,
    ),
    **{
        kind: Family(
            scenarios=tuple(
                f"{kind}-{name}" for name in ("flushes", "in-place", "flushes-cached", "spilled")
            ),
            calls=calls,
            unseen=frozenset({
                # The header of a data file is for other programs; shapes are those of the metadata.
                "store shelf/dax.py make_durable",
                # What is put back is durable when it is stored; what else is noted there belonged
                # to the transaction that is being undone.
                "persist shelf/stores.py put_back",
                # In a file an fsync follows where it was just opened, and else a persist of the
                # same bytes.
                "store shelf/dax.py put_back",
                # The units of a pool are zeros when a file gets them.
                "store _grow begin",
                "store _clear begin",
                # The header of the journal is followed by a barrier of the same bytes.
                "store _write_header begin",
                # Matters where somebody stores through a tensor while its before-image is torn.
                "persist shelf/stores.py begin",
                # The process id of the writer, for messages.
                "store shelf/pool.py become_writer",
                # A superblock is stored twice, one after the other, and either serves.
                "store shelf/pool.py _put_in_force",
                "store shelf/pool.py _vouch",
            }),
            slow=frozenset({
                # Two headers in a row have to be lost for the journal to have none.
                "store _replace_header checkpoint",
                "store _replace_header commit",
                *(["store _replace_header _journal_before"] if kind == "device" else []),
            }),
        )
        for kind, calls in {
            "shelf": frozenset({"store", "persist", "fdatasync", "fsync", "fsync_directory"}),
            "device": frozenset({"store", "persist"}),
        }.items()
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Barrier:
    """One place in the library at which a barrier is called."""

    family: Family
    site: str
    scenarios: tuple[str, ...]
    """In which it comes up."""

    def is_one_of(self, descriptions: Iterable[str]) -> bool:
        """Whether it is described, wherever its line is now: ``"fsync module.py function"``."""
        words = (description.split() for description in descriptions)
        return any(
            self.site.startswith(call)
            and self.site.endswith(f" {function}")
            and module in self.site
            for call, module, function in words
        )


def barriers_of(family: Family, *, slow: bool = False) -> list[Barrier]:
    """Return the barriers that some cut should show to be missing."""
    sites: dict[str, list[str]] = {}
    for name in family.scenarios:
        scenario = SCENARIOS[name](1)
        with scratch() as path, scenario.surroundings():
            scenario.prepare(path)
            with barrier_sites() as found, Recorder(path) as recorder:
                scenario.run(path, recorder)
        for site in found:
            sites.setdefault(site, []).append(name)
    if family.recovering:
        with barrier_sites() as found:
            Campaign(
                SCENARIOS[family.recovering](1), limit=4, samples=4, again=0.1, instants=0.1
            ).run()
        for site in found:
            if "recover" in site:
                sites.setdefault(site, [family.recovering])
    barriers = [
        Barrier(family, site, tuple(names)) for site, names in sites.items() if family.only in site
    ]
    left_out = family.unseen if slow else family.unseen | family.slow
    return [barrier for barrier in barriers if not barrier.is_one_of(left_out)]


def is_missed(barrier: Barrier) -> bool:
    """Whether some cut shows that a barrier is left out."""
    # A barrier of recovery may take a crash of recovery to be missed, which takes longer.
    tries = [barrier.family.again]
    if "recover" in barrier.site or " put_back" in barrier.site:
        tries.append(0.2)
    for again in tries:
        for name in barrier.scenarios:
            with without_barrier(barrier.site):
                report = Campaign(
                    SCENARIOS[name](1),
                    seed=1,
                    limit=barrier.family.limit,
                    samples=barrier.family.limit // 2,
                    again=again,
                    patience=1,
                ).run()
            forget_pages()
            if report.violations:
                return True
    return False


def main() -> int:
    """Try all barriers, or as many as there is time for; return 1 if one is not missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.barriers", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--family", choices=FAMILIES, action="append")
    arguments = parser.parse_args()
    until = time.monotonic() + 60 * arguments.minutes
    barriers = [
        barrier for name in arguments.family or FAMILIES for barrier in barriers_of(FAMILIES[name])
    ]
    random.Random(arguments.seed).shuffle(barriers)
    tried = unnoticed = 0
    for barrier in barriers:
        if time.monotonic() > until:
            break
        tried += 1
        if not is_missed(barrier):
            unnoticed += 1
            print(f"nothing shows that this is left out: {barrier.site}", flush=True)
    print(f"{tried} of {len(barriers)} barriers left out, {unnoticed} unnoticed", flush=True)
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
