"""Trials by the thousand, each lot of them in a child process that may hang or die."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import IO, Any

from tests.crash.interrupts.aftermath import Violation
from tests.crash.interrupts.injected import Delivery
from tests.crash.interrupts.mutation import without
from tests.crash.interrupts.patience import patience
from tests.crash.interrupts.places import PLACES
from tests.crash.interrupts.scenarios import NAMES, find
from tests.crash.interrupts.trial import (
    MODES,
    Outcome,
    Trial,
    count_points,
    measure,
    run_trial,
)

__all__ = ["Lot", "Report", "lots", "run_lot", "run_one"]

HANG_SECONDS = 15
_IN_LIBRARY = 0.8
"""How many of the points are chosen in the library, and not in what it calls."""
_TWICE = 0.4
_MEAN_POINTS_BETWEEN = 15


@dataclass(frozen=True, slots=True)
class Lot:
    """Trials of one scenario in one place."""

    scenario: str
    place: str
    mode: str
    mutation: str | None = None
    """What the library does without, to see whether it is noticed."""

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """What there must be around them."""
        if self.mode == "threads":
            sys.setswitchinterval(1e-5)  # one has to stop for the other to raise anything in it
        with (
            PLACES[self.place].surroundings(),
            find(self.scenario).surroundings(),
            without(self.mutation),
        ):
            yield

    def size(self) -> Any:
        """How many points the operation has, or how many microseconds it takes."""
        return (count_points if self.mode == "points" else measure)(self.scenario, self.place)


@dataclass
class Report:
    """What was tried, and what was found."""

    trials: int = 0
    delivered: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Exceptions raised, by mode, scenario and place."""
    twice: int = 0
    returned: int = 0
    """Trials in which the operation returned all the same, or was not reached."""
    violations: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By kind and place in the library."""
    examples: dict[tuple[str, str], str] = field(default_factory=dict)
    scenarios: dict[tuple[str, str], set[str]] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        """Count one."""
        trial = outcome.trial
        self.trials += 1
        self.delivered[trial.mode, trial.scenario, trial.place] += outcome.delivered
        self.twice += len(outcome.deliveries) > 1
        self.returned += outcome.returned
        for violation in outcome.violations[:1]:
            twice = " (twice)" if len(outcome.deliveries) > 1 else ""
            key = violation.kind + twice, site(outcome)
            self.violations[key] += 1
            self.examples.setdefault(key, str(trial))
            self.scenarios.setdefault(key, set()).add(f"{trial.scenario}:{trial.place}")

    def summary(self) -> str:
        """Tell all of it, in a few lines and a line for each violation."""
        by_mode: Counter[str] = Counter()
        by_scenario: Counter[str] = Counter()
        by_place: Counter[str] = Counter()
        for (mode, scenario, place), count in self.delivered.items():
            by_mode[mode] += count
            by_scenario[scenario] += count
            by_place[place] += count
        kinds: Counter[str] = Counter()
        for (kind, _), count in self.violations.items():
            kinds[kind] += count
        twice = f"twice in {self.twice} trials"
        lines = [
            f"{self.trials} trials, {by_mode.total()} exceptions delivered, {twice}",
            f"in {self.returned} the operation returned",
            f"by mode: {_counts(by_mode)}",
            f"by scenario: {_counts(by_scenario)}",
            f"by place: {_counts(by_place)}",
            f"violations: {_counts(kinds) or 'none'}",
        ]
        for (kind, where), count in self.violations.most_common():
            key = kind, where
            among = sorted(self.scenarios[key])
            more = f" and {len(among) - 3} more" if len(among) > 3 else ""
            lines.append(
                f"  {count:5} {kind:16} {where}  [{', '.join(among[:3])}{more}]  "
                f"--trial {self.examples[key]}"
            )
        return "\n".join(lines)


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common())


def site(outcome: Outcome) -> str:
    """Where what was raised is to blame: in the library, the last delivery."""
    return outcome.deliveries[-1].inside if outcome.deliveries else "(nothing was raised)"


def lots(
    scenarios: list[str] | None = None,
    places: list[str] | None = None,
    modes: list[str] | None = None,
    mutation: str | None = None,
) -> Iterator[Lot]:
    """All that there are, in turn."""
    for name in scenarios or NAMES:
        for place in places or PLACES:
            scenario = find(name)
            if scenario.needs_readers and not PLACES[place].has_readers:
                continue
            for mode in modes or MODES:
                if mode != "storm" or scenario.repeats:
                    yield Lot(name, place, mode, mutation)


def _choose(lot: Lot, size: Any, seed: int) -> Trial:
    rng = random.Random(f"{lot} {seed}")
    again = rng.random() < _TWICE
    if lot.mode == "points":
        total, in_library = size
        if in_library and rng.random() < _IN_LIBRARY:
            first = rng.choice(in_library)
        else:
            first = rng.randint(1, max(total, 1))
        second = 1 + int(rng.expovariate(1 / _MEAN_POINTS_BETWEEN)) if again else 0
    elif lot.mode == "storm":
        first, second = size + size // 5, 0
    else:
        first = rng.randint(1, size + size // 5)
        second = 1 + int(rng.expovariate(4 / size)) if again else 0
    return Trial(lot.scenario, lot.place, lot.mode, first, second, seed)


_SIZES: dict[Lot, Any] = {}
"""Points of the operation, or microseconds, as measured once."""


def _work(lot: Lot, seeds: range, until: float, out: IO[str]) -> None:
    """In the child: try, and tell; stop at the first violation, which may have left anything."""
    with lot.surroundings():
        size = _SIZES.get(lot)
        if size is None:
            lot.size()  # the first time, modules are loaded and caches filled
            size = lot.size()
            _tell(out, {"size": size})
        for seed in seeds:
            if time.monotonic() > until:
                return
            trial = _choose(lot, size, seed)
            _tell(out, {"begin": _told(Outcome(trial))})
            if not _tried(trial, out):
                return


def _tried(trial: Trial, out: IO[str]) -> bool:
    outcome = run_trial(trial, lambda so_far: _tell(out, {"begin": _told(so_far)}))
    _tell(out, {"end": _told(outcome)})
    return not outcome.violations


def _told(outcome: Outcome) -> dict[str, Any]:
    return {**asdict(outcome), "trial": str(outcome.trial)}


def _heard(told: dict[str, Any]) -> Outcome:
    return Outcome(
        **{
            **told,
            "trial": Trial.parse(told["trial"]),
            "deliveries": [Delivery(**one) for one in told["deliveries"]],
            "violations": [Violation(**one) for one in told["violations"]],
        }
    )


def _tell(out: IO[str], what: Any) -> None:
    faulthandler.dump_traceback_later(patience(HANG_SECONDS), exit=True, file=_dump)
    out.write(json.dumps(what) + "\n")
    out.flush()


_dump: Any = None


def preload(places: list[str] | None = None, scenarios: list[str] | None = None) -> None:
    """Load in the parent what every child needs, and begin nothing there."""
    for name in scenarios or NAMES:
        find(name)
    schemes = {PLACES[name].scheme for name in places or PLACES}
    for scheme, module in (("zarr", "zarr"), ("icechunk", "icechunk")):
        if scheme in schemes:
            with contextlib.suppress(ImportError):
                importlib.import_module(module)


def _in_child(work: Any) -> Iterator[dict[str, Any]]:
    """Yield what a child tells; lastly {"died": why} if it did."""
    global _dump
    reading, writing = os.pipe()
    with tempfile.TemporaryFile("w+") as dump, open(reading) as messages:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setpgid(0, 0)
                os.close(reading)
                null = os.open(os.devnull, os.O_RDONLY)
                os.dup2(null, 0)
                _dump = dump
                gc.freeze()
                faulthandler.enable(dump)
                with open(writing, "w") as out:
                    work(out)
                code = 0
            except BaseException:
                traceback.print_exc(file=dump)
                dump.flush()
            finally:
                os._exit(code)
        os.close(writing)
        try:
            for line in messages:
                yield json.loads(line)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            raise
        finally:  # it has told all, or is dead: what it exits with is still to come
            _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code:
            dump.seek(0)
            yield {"died": dump.read() or f"exit status {code}"}


def _outcomes(messages: Iterator[dict[str, Any]], lot: Lot) -> Iterator[Outcome]:
    trying = Outcome(Trial(lot.scenario, lot.place, lot.mode, 0, 0, 0))
    for message in messages:
        if "size" in message:
            _SIZES[lot] = message["size"]
        elif "begin" in message:
            trying = _heard(message["begin"])
        elif "end" in message:
            yield _heard(message["end"])
        else:
            told = message["died"]
            trying.violations.append(Violation("hang" if "Timeout" in told else "rig", told))
            yield trying


def run_lot(lot: Lot, seeds: range, until: float = float("inf")) -> Iterator[Outcome]:
    """Try all of these, in as many children as it takes."""
    at = seeds.start
    while at < seeds.stop and time.monotonic() < until:
        rest = range(at, seeds.stop)
        again = at
        for outcome in _outcomes(_in_child(lambda out, r=rest: _work(lot, r, until, out)), lot):
            yield outcome
            at = max(at, outcome.trial.seed) + 1
        if at == again:
            return


def run_one(trial: Trial, mutation: str | None = None) -> Iterator[Outcome]:
    """Try one again."""
    lot = Lot(trial.scenario, trial.place, trial.mode, mutation)

    def work(out: IO[str]) -> None:
        with lot.surroundings():
            for _ in range(2):  # as in a campaign, so that the points are the same
                lot.size()
            _tell(out, {"begin": _told(Outcome(trial))})
            _tried(trial, out)

    yield from _outcomes(_in_child(work), lot)


def describe(outcome: Outcome) -> str:
    """A line for each violation of a trial."""
    at = " then ".join(str(delivery) for delivery in outcome.deliveries) or "nowhere"
    how = "returned" if outcome.returned else outcome.error or "?"
    return "\n".join(
        f"{outcome.trial}: {violation.kind}: {violation.detail} (raised at {at}; {how})"
        for violation in outcome.violations
    )
