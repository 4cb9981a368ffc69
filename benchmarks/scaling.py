"""Cost of a step and of a draw by weights, rank, cache and device, and a model fitted to it.

A step of n weights takes ``max(a + b n, c 4 n / B)`` seconds: calls and passes over memory, beside
which a device writes B bytes a second. To tell one from the other takes a slower device: a cgroup
slows this one down, and ``b`` is found in processor time. Drawing s networks from rank K takes
``a s n + b s n K + c (4 n K / B)``: random numbers and results, multiplications, and one reading of
the trajectory. The parameters are fitted to this machine; what they say of another one is a
prediction.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import pmarray
import swag
from benchmarks import _cgroup
from benchmarks._device import read_bandwidth, write_bandwidth
from benchmarks._harness import Contender, Result, race, record, results_of
from benchmarks._peers import drop_caches
from benchmarks._records import Record, Recording
from benchmarks._tables import Table, in_bytes, in_ms, spread

__all__ = ["fit", "fit_of_steps", "measure", "tables"]

_DRAWS = (1, 32)
_MANY_DRAWS = 128
"""Of the second size alone, whose results are small."""
_FUTURE = (
    ("one NVMe drive, 6 GB/s", 1_000_000_000, 6e9),
    ("a stripe of four, 24 GB/s", 1_000_000_000, 24e9),
    ("CXL memory, 30 GB/s", 1_000_000_000, 30e9),
    ("sharded over 64 hosts, a drive each", 1_000_000_000 // 64, 6e9),
)
"""Weights of a process, and the bandwidth supposed."""
_FUTURE_RANK = 1000


class _Weights(nn.Module):
    """Nothing but weights, one of which differs at each step: no iterate is a repeated one."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(count))

    def change(self) -> None:
        self.theta.data[0] += 1


class _Collection:
    def __init__(self, posterior: swag.SWAG, model: _Weights) -> None:
        self._posterior, self._model = posterior, model
        self.finish = posterior.flush

    def step(self) -> None:
        """Collect what has changed a little."""
        self._model.change()
        self._posterior.update_parameters(self._model)


def measure(
    run: Recording,
    *,
    weights: Sequence[int],
    ranks: Sequence[int],
    caches: Sequence[int],
    slowed: Sequence[float],
    rounds: int,
    steps: int,
    most_seconds: float,
    probe_bytes: int,
    directory: Path,
) -> None:
    """Time steps and draws.

    Parameters
    ----------
    run
        Where the figures go.
    weights
        Sizes of networks.
    ranks
        Iterates that are drawn from, of the second size.
    caches
        Of the group, at the middle size: columns that it may hold.
    slowed
        Bytes a second that the device is slowed down to, at the middle size.
    rounds, steps, most_seconds
        See `benchmarks._harness.race`.
    probe_bytes
        Written and read once a round to see the device's bandwidth.
    directory
        Where files are written.
    """
    middle = weights[len(weights) // 2]
    with tempfile.TemporaryDirectory(dir=directory, prefix="scaling-") as scratch:
        where = Path(scratch)
        speeds = _possible(run, where, slowed)
        cases: list[dict[str, Any]] = [
            *(_case(n, scheme) for n in weights for scheme in _SCHEMES),
            *(_case(middle, "memmap", cache=4 * middle * columns) for columns in caches),
            *(_case(middle, "memmap", slowed=speed) for speed in speeds),
        ]

        def probe() -> None:
            run.add(
                "limit",
                written=write_bandwidth(where, nbytes=probe_bytes),
                read=read_bandwidth(where, nbytes=probe_bytes),
            )

        results = race(
            [_contender(case, where) for case in cases],
            rounds=rounds,
            steps=steps,
            warm_up=3,
            most_seconds=most_seconds,
            directory=where,
            between=probe,
            report=run.report,
        )
        for case, result in zip(cases, results, strict=True):
            record(run, [result], **case)
        _draws(run, weights, ranks, rounds, where)


def tables(run: Recording) -> list[Table]:
    """Lay out a run: steps, draws, what the models make of them, what they predict."""
    limits = run.of("limit")
    written = statistics.median(one["written"] for one in limits)
    read = statistics.median(one["read"] for one in limits)
    steps = [(one, result) for one in _cases(run) for result in results_of(run.records, **one)]
    of_model = [(one, result) for one, result in steps if _is_modelled(one)]
    a_step = fit_of_steps(
        np.array([float(one["weights"]) for one, _ in of_model]),
        np.array([_on_device(one, written) for one, _ in of_model]),
        np.array([result.seconds for _, result in of_model]),
        np.array([result.cpu_seconds for _, result in of_model]),
    )
    draws = _medians(run.of("draw"))
    draw_terms = np.array([_draw_terms(one, read) for one in draws])
    a_draw = fit(draw_terms, np.array([one["seconds"] for one in draws]))
    predictions = _predictions(a_step, a_draw)
    predictions.note += "".join(f" {one['text']}." for one in run.of("note"))
    return [
        _table_of_steps(steps, a_step, written),
        _table_of_draws(draws, a_draw, read),
        predictions,
    ]


def fit(terms: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit seconds as a sum of terms, each times a factor that is zero or more.

    Relative errors are squared and summed, so that a short time counts as much as a long one. There
    are few terms: every set of them is tried.

    Parameters
    ----------
    terms
        Shape (measurements, terms).
    seconds
        Shape (measurements,), positive.

    Returns
    -------
    numpy.ndarray
        A factor for each term.

    Examples
    --------
    >>> terms = np.array([[1, 1, 0], [1, 2, 0], [1, 4, 3], [1, 8, 1]], float)
    >>> fit(terms, terms @ [0.5, 2, 0]).round(6).tolist()
    [0.5, 2.0, 0.0]
    """
    scaled = terms / seconds[:, None]
    best, least = np.zeros(terms.shape[1]), np.inf
    for count in range(1, terms.shape[1] + 1):
        for chosen in combinations(range(terms.shape[1]), count):
            factors = np.linalg.lstsq(scaled[:, chosen], np.ones(len(seconds)), rcond=None)[0]
            error = float(np.square(scaled[:, chosen] @ factors - 1).sum())
            if (factors >= 0).all() and error < least:
                least = error
                best = np.zeros(terms.shape[1])
                best[list(chosen)] = factors
    return best


def fit_of_steps(
    weights: NDArray[np.float64],
    on_device: NDArray[np.float64],
    seconds: NDArray[np.float64],
    cpu_seconds: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Fit seconds a step as the larger of ``a + b weights`` and ``c on_device``.

    What a weight costs the processor (``b``) is fitted to processor time: where the device is
    slower, elapsed time does not tell it. The other two are the best of a grid, for elapsed time;
    relative errors are squared and summed.

    Parameters
    ----------
    weights, on_device, seconds, cpu_seconds
        Shape (measurements,): weights; seconds that the device needs for them; seconds that a step
        took; processor time in it.

    Returns
    -------
    numpy.ndarray
        The three parameters.

    Examples
    --------
    >>> n, device = np.array([1e5, 1e7, 1e7]), np.array([4e-4, 0.04, 0.4])
    >>> processor = 2e-3 + 3e-9 * n
    >>> found = fit_of_steps(n, device, np.maximum(processor, 0.9 * device), processor)
    >>> [f"{parameter:.1e}" for parameter in found]
    ['2.0e-03', '3.0e-09', '9.0e-01']
    """
    b = fit(np.stack([np.ones_like(weights), weights], axis=1), cpu_seconds)[1]
    a = np.geomspace(1e-5, 1, 500)[:, None, None]
    c = np.geomspace(0.1, 10, 400)[None, :, None]
    errors = np.square(np.maximum(a + b * weights, c * on_device) / seconds - 1).sum(axis=2)
    row, column = np.unravel_index(errors.argmin(), errors.shape)
    return np.array([float(a[row, 0, 0]), float(b), float(c[0, column, 0])])


_SCHEMES = ("dram", "memmap")


def _case(
    weights: int, scheme: str, *, cache: str | int = "auto", slowed: float | None = None
) -> dict[str, Any]:
    return {"weights": weights, "scheme": scheme, "cache": cache, "slowed": slowed}


def _is_modelled(case: Record) -> bool:
    return bool(case["scheme"] == "memmap" and case["cache"] == "auto")


def _possible(run: Recording, where: Path, slowed: Sequence[float]) -> Sequence[float]:
    """Return the speeds, or none and a note where the device cannot be slowed down."""
    try:
        for speed in slowed[:1]:
            with _cgroup.slowed(where, speed):
                pass
    except _cgroup.CgroupError as error:
        text = f"The device's share is a guess: {error}"
        run.add("note", text=text)
        return ()
    return slowed


def _contender(case: dict[str, Any], where: Path) -> Contender:
    @contextmanager
    def start() -> Iterator[_Collection]:
        with ExitStack() as stack:
            path = ""
            if case["scheme"] != "dram":
                path = stack.enter_context(tempfile.TemporaryDirectory(dir=where))
            group = stack.enter_context(
                pmarray.open_group(f"{case['scheme']}:{path}", cache=case["cache"])
            )
            model = _Weights(case["weights"])
            posterior = stack.enter_context(swag.SWAG(model, store=group))
            if case["slowed"] is not None:
                stack.enter_context(_cgroup.slowed(where, case["slowed"]))
            yield _Collection(posterior, model)

    speed = "" if case["slowed"] is None else f", {in_bytes(case['slowed'])}/s"
    return Contender(
        f"{case['weights']:,}, {case['scheme']}:, cache {_said(case['cache'])}{speed}", start
    )


def _said(cache: str | int) -> str:
    return cache if isinstance(cache, str) else in_bytes(cache)


def _draws(
    run: Recording, weights: Sequence[int], ranks: Sequence[int], rounds: int, where: Path
) -> None:
    """Time draws, out of the page cache, of every size at one rank and of one at every rank."""
    second = weights[min(1, len(weights) - 1)]
    cases = dict.fromkeys([(n, ranks[0]) for n in weights] + [(second, rank) for rank in ranks])
    for n, rank in cases:
        run.report(f"collected to be drawn from: {n:,} weights, rank {rank}")
        model = _Weights(n)
        with swag.SWAG(model, store=f"memmap:{where / f'{n}-{rank}'}") as posterior:
            for _ in range(rank):
                model.change()
                posterior.update_parameters(model)
    for turn in range(rounds):
        for n, rank in cases:
            path = where / f"{n}-{rank}"
            for draws in (*_DRAWS, _MANY_DRAWS) if n == second else _DRAWS:
                run.report(f"round {turn + 1} of {rounds}: {draws} of {n:,} weights, rank {rank}")
                drop_caches(path)
                with swag.load(f"memmap:{path}") as stored:
                    started = time.perf_counter()
                    stored.sample(draws, generator=0)
                    seconds = time.perf_counter() - started
                run.add("draw", round=turn, weights=n, rank=rank, draws=draws, seconds=seconds)


def _medians(draws: Sequence[Record]) -> list[Record]:
    """Of each size, rank and number of draws the median of the rounds, and their range."""
    keys = ("weights", "rank", "draws")
    found: dict[tuple[int, ...], list[float]] = {}
    for one in draws:
        found.setdefault(tuple(one[key] for key in keys), []).append(one["seconds"])
    return [
        {
            **dict(zip(keys, case, strict=True)),
            "seconds": statistics.median(seconds),
            "range": spread(seconds, 1e3),
        }
        for case, seconds in found.items()
    ]


def _cases(run: Recording) -> list[dict[str, Any]]:
    keys = ("weights", "scheme", "cache", "slowed")
    found = dict.fromkeys(tuple(one[key] for key in keys) for one in run.of("timing"))
    return [dict(zip(keys, values, strict=True)) for values in found]


def _on_device(case: Record, bandwidth: float) -> float:
    return float(4 * case["weights"] / (case["slowed"] or bandwidth))


def _a_step(model: NDArray[np.float64], case: Record, bandwidth: float) -> float:
    a, b, c = model
    return float(max(a + b * case["weights"], c * _on_device(case, bandwidth)))


def _draw_terms(case: Record, bandwidth: float) -> list[float]:
    items = float(case["weights"]) * case["rank"]
    drawn = float(case["draws"]) * case["weights"]
    return [drawn, drawn * case["rank"], 4 * items / bandwidth]


def _table_of_steps(
    steps: Sequence[tuple[dict[str, Any], Result]], model: NDArray[np.float64], bandwidth: float
) -> Table:
    a, b, c = model
    table = Table(
        "A step of collection, without training",
        ["weights", "store", "cache", "device", "ms", "rounds, ms", "model, ms", "residual",
         "x device"],
        note=f"Model: {a * 1e6:.0f} us + {b * 1e9:.3g} ns a weight, or {c:.2f} x the time that the"
        " device takes for a column, whichever is more; fitted to `memmap:` where the cache is"
        " automatic, the time of a weight to processor time. Residual: measured over model, less 1."
        f" x device: measured over the device's time. The device writes {in_bytes(bandwidth)}/s;"
        " where less stands there, a cgroup has slowed it down.",
    )  # fmt: skip
    for case, result in steps:
        is_on_device = case["scheme"] != "dram"
        expected = _a_step(model, case, bandwidth)
        table.rows.append(
            [
                f"{case['weights']:,}",
                f"{case['scheme']}:",
                _said(case["cache"]),
                f"{in_bytes(case['slowed'] or bandwidth)}/s" if is_on_device else "-",
                in_ms(result.seconds),
                " to ".join(map(in_ms, result.range_seconds)),
                in_ms(expected) if is_on_device else "-",
                f"{result.seconds / expected - 1:+.0%}" if is_on_device else "-",
                f"{result.seconds / _on_device(case, bandwidth):.2f}" if is_on_device else "-",
            ]
        )
    return table


def _table_of_draws(draws: Sequence[Record], model: NDArray[np.float64], bandwidth: float) -> Table:
    a, b, c = model
    table = Table(
        "Draws from memmap:, out of the page cache",
        ["weights", "rank", "draws", "ms", "rounds, ms", "model, ms", "residual", "x device"],
        note=f"Model: {a * 1e9:.3g} ns a weight and draw + {b * 1e9:.3g} ns a weight, draw and"
        f" column + {c:.2f} x the time that the device takes to read the trajectory once, at"
        f" {in_bytes(bandwidth)}/s. x device: measured over that time.",
    )
    for one in draws:
        terms = _draw_terms(one, bandwidth)
        expected = float(np.dot(model, terms))
        table.rows.append(
            [
                f"{one['weights']:,}",
                str(one["rank"]),
                str(one["draws"]),
                in_ms(one["seconds"]),
                one["range"],
                in_ms(expected),
                f"{one['seconds'] / expected - 1:+.0%}",
                f"{one['seconds'] / terms[2]:.2f}",
            ]
        )
    return table


def _predictions(a_step: NDArray[np.float64], a_draw: NDArray[np.float64]) -> Table:
    table = Table(
        f"Predictions, not measurements: 1,000,000,000 weights, rank {_FUTURE_RANK:,}",
        ["", "trajectory of a process", "a step, s", "32 draws, s"],
        note="What the two models say with this machine's processors and the bandwidth supposed:"
        " nobody has measured it. It is far outside of what was fitted. Supposed, too, is that each"
        " host of the 64 has a drive and processors like these, and waits for no other.",
    )
    for name, weights, bandwidth in _FUTURE:
        case = {**_case(weights, "memmap"), "rank": _FUTURE_RANK, "draws": 32}
        table.rows.append(
            [
                name,
                in_bytes(4 * weights * _FUTURE_RANK),
                f"{_a_step(a_step, case, bandwidth):.3g}",
                f"{float(np.dot(a_draw, _draw_terms(case, bandwidth))):.3g}",
            ]
        )
    return table
