"""Cost of a step and of a draw by weights, rank, cache and device, and a model fitted to it.

A step of n weights takes ``a + b n + c (4 n / B)`` seconds: calls, passes over memory, and the
time of a device that writes B bytes a second (none in ``dram:``). A draw of s from rank K takes
``a + b s n K + c (4 n K / B)``: calls, multiplications, and one reading of the trajectory. The
three parameters are fitted to this machine; what they say of another one is a prediction.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import pmarray
import swag
from benchmarks._device import read_bandwidth, write_bandwidth
from benchmarks._harness import Contender, Result, race, record, results_of
from benchmarks._peers import drop_caches
from benchmarks._records import Record, Recording
from benchmarks._tables import Table, in_bytes, in_ms

__all__ = ["fit", "measure", "tables"]

_DRAWS = (1, 32)
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
    caches: Sequence[str],
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
        Iterates that are drawn from, of the middle size.
    caches
        Of the group, at the middle size.
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
        cases: list[dict[str, Any]] = [
            *({"weights": n, "scheme": s, "cache": "auto"} for n in weights for s in _SCHEMES),
            *({"weights": middle, "scheme": "memmap", "cache": cache} for cache in caches),
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
        _draws(run, weights, ranks, middle, where)


def tables(run: Recording) -> list[Table]:
    """Lay out a run: steps, draws, what the models make of them, what they predict."""
    limits = run.of("limit")
    written = statistics.median(one["written"] for one in limits)
    read = statistics.median(one["read"] for one in limits)
    steps = [(one, result) for one in _cases(run) for result in results_of(run.records, **one)]
    of_model = [(one, result.seconds) for one, result in steps if one["cache"] == "auto"]
    terms = np.array([_step_terms(one, written) for one, _ in of_model])
    a_step = fit(terms, np.array([seconds for _, seconds in of_model]))
    draws = run.of("draw")
    draw_terms = np.array([_draw_terms(one, read) for one in draws])
    a_draw = fit(draw_terms, np.array([one["seconds"] for one in draws]))
    return [
        _table_of_steps(steps, a_step, written),
        _table_of_draws(draws, a_draw, read),
        _predictions(a_step, a_draw),
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


_SCHEMES = ("dram", "memmap")


def _contender(case: dict[str, Any], where: Path) -> Contender:
    @contextmanager
    def start() -> Iterator[_Collection]:
        scratch = (
            nullcontext("") if case["scheme"] == "dram" else tempfile.TemporaryDirectory(dir=where)
        )
        with (
            scratch as path,
            pmarray.open_group(f"{case['scheme']}:{path}", cache=case["cache"]) as group,
        ):
            model = _Weights(case["weights"])
            with swag.SWAG(model, store=group) as posterior:
                yield _Collection(posterior, model)

    return Contender(f"{case['weights']:,}, {case['scheme']}:, cache {case['cache']}", start)


def _draws(
    run: Recording, weights: Sequence[int], ranks: Sequence[int], middle: int, where: Path
) -> None:
    """Time draws, out of the page cache, of every size at one rank and of one at every rank."""
    cases = dict.fromkeys([(n, ranks[0]) for n in weights] + [(middle, rank) for rank in ranks])
    for n, rank in cases:
        run.report(f"draws: {n:,} weights, rank {rank}")
        with tempfile.TemporaryDirectory(dir=where) as path:
            model = _Weights(n)
            with swag.SWAG(model, store=f"memmap:{path}") as posterior:
                for _ in range(rank):
                    model.change()
                    posterior.update_parameters(model)
            for draws in _DRAWS:
                drop_caches(Path(path))
                with swag.load(f"memmap:{path}") as stored:
                    started = time.perf_counter()
                    stored.sample(draws, generator=0)
                    seconds = time.perf_counter() - started
                run.add("draw", weights=n, rank=rank, draws=draws, seconds=seconds)


def _cases(run: Recording) -> list[dict[str, Any]]:
    keys = ("weights", "scheme", "cache")
    found = dict.fromkeys(tuple(one[key] for key in keys) for one in run.of("timing"))
    return [dict(zip(keys, values, strict=True)) for values in found]


def _step_terms(case: Record, bandwidth: float) -> list[float]:
    on_device = 0.0 if case["scheme"] == "dram" else 4 * case["weights"] / bandwidth
    return [1.0, float(case["weights"]), on_device]


def _draw_terms(case: Record, bandwidth: float) -> list[float]:
    items = float(case["weights"]) * case["rank"]
    return [1.0, case["draws"] * items, 4 * items / bandwidth]


def _table_of_steps(
    steps: Sequence[tuple[dict[str, Any], Result]], model: NDArray[np.float64], bandwidth: float
) -> Table:
    a, b, c = model
    table = Table(
        "A step of collection, without training",
        ["weights", "store", "cache", "ms", "rounds, ms", "model, ms", "residual", "x device"],
        note=f"Model: {a * 1e6:.0f} us + {b * 1e9:.3g} ns a weight + {c:.2f} x the device's time at"
        f" {in_bytes(bandwidth)}/s; fitted where the cache is automatic. Residual: measured over"
        " model, less 1. x device: over what the device takes for a column.",
    )
    for case, result in steps:
        terms = _step_terms(case, bandwidth)
        expected = float(np.dot(model, terms))
        table.rows.append(
            [
                f"{case['weights']:,}",
                f"{case['scheme']}:",
                case["cache"],
                in_ms(result.seconds),
                " to ".join(map(in_ms, result.range_seconds)),
                in_ms(expected),
                f"{result.seconds / expected - 1:+.0%}",
                f"{result.seconds / terms[2]:.2f}" if terms[2] else "-",
            ]
        )
    return table


def _table_of_draws(draws: Sequence[Record], model: NDArray[np.float64], bandwidth: float) -> Table:
    a, b, c = model
    table = Table(
        "Draws from memmap:, out of the page cache",
        ["weights", "rank", "draws", "ms", "model, ms", "residual", "x device"],
        note=f"Model: {a * 1e3:.2g} ms + {b * 1e9:.3g} ns a weight, column and draw + {c:.2f} x the"
        f" device's time at {in_bytes(bandwidth)}/s. x device: over one reading of the trajectory.",
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
        note="What the two models say with this machine's processors and the bandwidth supposed.",
    )
    for name, weights, bandwidth in _FUTURE:
        case = {"scheme": "memmap", "weights": weights, "rank": _FUTURE_RANK, "draws": 32}
        table.rows.append(
            [
                name,
                in_bytes(4 * weights * _FUTURE_RANK),
                f"{float(np.dot(a_step, _step_terms(case, bandwidth))):.3g}",
                f"{float(np.dot(a_draw, _draw_terms(case, bandwidth))):.3g}",
            ]
        )
    return table
