"""Windows, centring and draws against explicit deviation matrices in float64."""

from __future__ import annotations

import copy
import math
import pickle
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

import pmarray
import swag
from swag._moments import Moments, OnDemand
from swag._trajectory import BLOCK_ROWS, row_blocks
from swag.errors import WindowError
from swag.posterior import Posterior
from swag.sampling import Center, Gaussian, Part
from tests.swag.conftest import Reading
from tests.swag.nets import network, steps

Matrix = NDArray[np.float64]


class Vector(nn.Module):
    """A model that is two vectors of weights, so that a test can say what each iterate is."""

    def __init__(self, values: Matrix) -> None:
        super().__init__()
        cut = len(values) // 2
        self.tail = nn.Parameter(torch.tensor(values[cut:], dtype=torch.float32))
        self.head = nn.Parameter(torch.tensor(values[:cut], dtype=torch.float32))


def random_walk(n: int, count: int, seed: int = 0, offset: float = 0.0) -> Matrix:
    """Iterates, shape (n, count), exact in float32; they start away from zero and drift."""
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal((n, count)) * 0.1 + 0.05
    steps[:, 1:2] += offset
    walk = rng.standard_normal((n, 1)) + steps.cumsum(axis=1)
    return np.asarray(walk.astype(np.float32), np.float64)


def collect(
    iterates: Matrix, location: str | pmarray.Group | None = None, **options: Any
) -> swag.SWAG:
    location = location or f"dram:{uuid.uuid4()}"
    posterior = swag.SWAG(Vector(iterates[:, 0]), store=location, **options)
    for column in iterates.T:
        posterior.update_parameters(Vector(column))
    return posterior


def joined(tensors: dict[str, torch.Tensor]) -> Matrix:
    """Draws as rows, the weights in the order of `random_walk`."""
    return torch.cat([tensors["head"], tensors["tail"]], dim=-1).double().numpy()


def deviations(used: Matrix, k: int, center: Center) -> Matrix:
    """The last k columns less what they deviate from, written as the paper does."""
    n = used.shape[1]
    if center == "mean":
        return np.asarray(used[:, n - k :] - used.mean(axis=1, keepdims=True))
    running = used.cumsum(axis=1) / np.arange(1, n + 1)
    return np.asarray((used - running)[:, n - k :])


# -- centring happens in the coefficients ---------------------------------------------------------


@given(
    n=st.integers(1, 60),
    data=st.data(),
    center=st.sampled_from(["running", "mean"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_coefficients_are_those_of_explicit_deviations(
    n: int, data: st.DataObject, center: Center, seed: int
) -> None:
    k = data.draw(st.integers(1, n))
    rng = np.random.default_rng(seed)
    columns, z = rng.standard_normal((4, n)), rng.standard_normal(k)
    moments = Moments(n, np.zeros(4, np.float32), np.zeros(4, np.float32))
    gaussian = Gaussian(None, None, OnDemand(moments), None, center)  # type: ignore[arg-type]
    of_columns, of_mean = gaussian.coefficients(z)
    got = columns[:, n - k :] @ of_columns + of_mean * columns.mean(axis=1)
    np.testing.assert_allclose(got, deviations(columns, k, center) @ z, rtol=1e-9, atol=1e-11)
    # Nothing changes when all columns and the mean move by one vector.
    assert math.isclose(
        of_columns.sum() + of_mean, 0, abs_tol=1e-9 * (1 + np.abs(of_columns).sum())
    )


def low_rank_part(posterior: Posterior, diagonal: Posterior, n: int, seed: int = 3) -> Matrix:
    """What the low-rank part adds to draws: the diagonal's numbers are the same at any rank."""
    options: dict[str, Any] = {"scale": 1.0, "generator": seed}
    return joined(posterior.sample(n, **options)) - joined(diagonal.sample(n, **options))


@pytest.mark.parametrize("center", ["running", "mean"])
@pytest.mark.parametrize(
    ("start", "every", "rank", "max_rank", "offset"),
    [
        (0, 1, None, None, 0.0),
        (0, 1, 7, None, 0.0),
        (11, 1, None, None, 0.0),
        (5, 3, None, None, 0.0),
        (4, 2, 5, None, 0.0),
        (30, 1, 2, None, 100.0),  # far from the anchor
        (0, 1, None, 6, 0.0),
        (0, 1, 4, 6, 100.0),
        (35, 2, None, 6, 0.0),
    ],
)
def test_a_draw_is_mean_plus_deviations_times_normal_numbers(
    center: Center,
    start: int,
    every: int,
    rank: int | None,
    max_rank: int | None,
    offset: float,
) -> None:
    iterates = random_walk(50, 41, offset=offset)
    used = iterates[:, start::every]
    with collect(iterates, max_rank=max_rank, checkpoint_every=4) as posterior:
        window = posterior.window(start, every, rank, center)
        diagonal = posterior.window(start, every, 0)
        k = min(x for x in (used.shape[1], rank, max_rank) if x is not None)
        assert (window.n_averaged, window.rank, diagonal.rank) == (used.shape[1], k, 0)
        scale = np.abs(iterates).max()
        np.testing.assert_allclose(joined(window.mean()), used.mean(axis=1), atol=4e-7 * scale)
        np.testing.assert_allclose(
            joined(window.variance()), used.var(axis=1), rtol=2e-5 * (1 + offset)
        )
        added = low_rank_part(window, diagonal, 3000)
        d = deviations(used, k, center)
        # The draws lie in the space of the deviations ...
        z, *_ = np.linalg.lstsq(d, added.T, rcond=1e-10)
        np.testing.assert_allclose(d @ z, added.T, atol=4e-6 * scale)
        # ... and have the covariance D D^T / (k - 1) there: whitened, sums of squares are
        # chi-square of as many degrees of freedom as D has directions, each mean within five sigma.
        u, s, _ = np.linalg.svd(d / math.sqrt(k - 1), full_matrices=False)
        u, s = u[:, s > 1e-4 * s[0]], s[s > 1e-4 * s[0]]
        white = (added @ u) / s
        spread = (white**2).mean(axis=0)
        assert np.abs(spread - 1).max() < 5 * math.sqrt(2 / len(white))
        assert np.abs(white.mean(axis=0)).max() < 5 / math.sqrt(len(white))


# -- windows --------------------------------------------------------------------------------------


@given(
    count=st.integers(1, 25),
    max_rank=st.sampled_from([None, 0, 1, 3]),
    start=st.integers(0, 26),
    every=st.integers(1, 5),
    rank=st.none() | st.integers(0, 30),
)
def test_a_window_has_what_was_kept_or_says_why_not(
    count: int, max_rank: int | None, start: int, every: int, rank: int | None
) -> None:
    iterates = random_walk(3, count)
    posterior = collect(iterates, max_rank=max_rank, checkpoint_every=2)
    used = range(count)[start::every]
    kept = range(0 if max_rank is None else max(0, count - max_rank), count)
    possible = len(used) > 0 and (set(used) <= set(kept) or len(used) == count)
    if not possible:
        with pytest.raises(WindowError):
            posterior.window(start, every, rank)
        return
    window = posterior.window(start, every, rank)
    held = [t for t in used if t in kept]
    assert window.iterates == used
    assert window.rank == (len(held) if rank is None else min(rank, len(held)))
    np.testing.assert_allclose(joined(window.mean()), iterates[:, used].mean(axis=1), rtol=1e-5)


def test_the_window_of_everything_is_the_posterior(location: str) -> None:
    with collect(random_walk(20, 30), location) as posterior:
        window = posterior.window()
        again = posterior.window(start=0, every=1).window(start=3).window()
        one = posterior.sample(4, generator=1)
        for other in (window, again):
            for name, values in other.sample(4, generator=1).items():
                assert torch.equal(values, one[name])


def test_moments_of_a_window_are_bitwise_those_of_collecting_it() -> None:
    iterates = random_walk(100, 30)
    whole, part = collect(iterates), collect(iterates[:, ::3])
    window = whole.window(every=3)
    for name, value in part.variance().items():
        assert torch.equal(value, window.variance()[name])
    for name, value in part.mean().items():
        assert torch.equal(value, window.mean()[name])


@given(
    start=st.integers(0, 6),
    every=st.integers(1, 3),
    center=st.sampled_from(["running", "mean"]),
    part=st.sampled_from(["both", "low-rank", "diagonal"]),
    dtype=st.sampled_from([None, torch.bfloat16]),
    checkpoint_every=st.sampled_from([4, 100]),
)
def test_moments_taken_in_the_pass_of_a_draw_are_those_of_their_own_pass(
    tmp_path_factory: pytest.TempPathFactory,
    start: int,
    every: int,
    center: Center,
    part: Part,
    dtype: torch.dtype | None,
    checkpoint_every: int,
) -> None:
    location = f"memmap:{tmp_path_factory.mktemp('moments')}/store"
    collect(random_walk(50, 14), location, checkpoint_every=checkpoint_every, dtype=dtype).close()
    options: dict[str, Any] = {"generator": 5, "part": part, "antithetic": True}
    with swag.load(location) as first, swag.load(location) as second:
        one, other = (each.window(start, every, center=center) for each in (first, second))
        variance = one.variance()  # in a pass of its own
        expected, got = one.sample(4, **options), other.sample(4, **options)
        for name in expected:
            assert torch.equal(got[name], expected[name])
            assert torch.equal(other.variance()[name], variance[name])


@given(
    known=st.integers(0, 9),
    dtype=st.sampled_from([None, torch.bfloat16, torch.float16]),
    memory_bytes=st.sampled_from([0, 1 << 18, 1 << 24]),
)
def test_moments_of_the_first_iterates_go_on_where_all_are_read(
    tmp_path_factory: pytest.TempPathFactory,
    known: int,
    dtype: torch.dtype | None,
    memory_bytes: int,
) -> None:
    """As those of a checkpoint of a ring that has room for more."""
    location = f"memmap:{tmp_path_factory.mktemp('moments')}/store"
    n = 2 * BLOCK_ROWS + 100
    collect(random_walk(n, 9), location, dtype=dtype).close()
    with swag.load(location) as posterior:
        columns_of = posterior._store.columns
        begun = OnDemand(Moments.none(n), columns_of(range(known)) if known else None).moments()
        expected = OnDemand(Moments.none(n), columns_of(range(9))).moments()
        on_demand = OnDemand(begun, columns_of(range(known, 9)) if known < 9 else None)
        columns = columns_of(range(9))
        blocks = list(row_blocks(n, 9, memory_bytes))
        assert on_demand.come_by(columns) == (known < 9)
        pieces, moments = on_demand.along(columns, blocks, memory_bytes)
        assert isinstance(moments, Moments) == (memory_bytes >= 16 * n)
        right = columns.pieces_of(blocks, memory_bytes)
        for (block, which, values), (*place, distances) in zip(pieces, right, strict=True):
            assert [block, which] == place
            np.testing.assert_array_equal(values, distances)
            if which.stop == 9:
                here, there = moments.rows(*block), expected.rows(*block)
                assert here.count == there.count
                np.testing.assert_array_equal(here.mean, there.mean)
                np.testing.assert_array_equal(here.sum_of_squares, there.sum_of_squares)


def test_a_draw_reads_a_trajectory_once(reading: Reading, tmp_path: Path) -> None:
    iterates = random_walk(70_000, 12)
    with collect(iterates, f"memmap:{tmp_path}/store") as collecting:
        assert (collecting.rank, collecting.n_averaged, reading.nbytes) == (12, 12, 0)
        assert collecting.stats().collected == 12
        assert reading.nbytes == 0
    with swag.load(f"memmap:{tmp_path}/store") as posterior:
        assert (posterior.rank, posterior.n_averaged, reading.nbytes) == (12, 12, 0)
        posterior.sample(3, generator=0)
        assert reading.nbytes == iterates.nbytes // 2
        posterior.mean()
        assert reading.nbytes == iterates.nbytes // 2  # the draw has taken the moments
        posterior.window(start=4).sample(3, generator=0)
        assert reading.nbytes == (iterates.nbytes + iterates[:, 4:].nbytes) // 2
    with swag.load(f"memmap:{tmp_path}/store") as posterior:
        reading.nbytes = 0
        posterior.sample(3, generator=0, memory_bytes=1 << 20)
        assert reading.nbytes == iterates.nbytes // 2
        posterior.mean()
        assert reading.nbytes == iterates.nbytes  # there was no memory to keep them


def test_what_is_collected_is_drawn_from_in_one_reading(reading: Reading, tmp_path: Path) -> None:
    iterates = random_walk(300, 24)
    column_nbytes = 300 * 4
    with collect(iterates[:, :8], f"memmap:{tmp_path}/store") as posterior:
        posterior.sample(2, generator=0)
        assert reading.nbytes == 8 * column_nbytes
        posterior.mean()
        assert posterior.window(every=2).rank == 4
        assert reading.nbytes == 8 * column_nbytes
        for column in iterates[:, 8:12].T:
            posterior.update_parameters(Vector(column))
        reading.nbytes = 0
        found = joined(posterior.mean())
        assert reading.nbytes == 4 * column_nbytes  # those that had been taken are not read again
        np.testing.assert_allclose(found, iterates[:, :12].mean(axis=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", ["rewound", "rolled back"])
def test_moments_taken_meanwhile_of_iterates_that_are_no_more_are_forgotten(
    tmp_path: Path, how: str
) -> None:
    """A thread draws while iterates are cut off, and others are collected in their place."""
    iterates = random_walk(40, 12)
    with (
        pmarray.open_group(f"memmap:{tmp_path}/store") as group,
        collect(iterates[:, :4], group) as posterior,
    ):
        if how == "rewound":
            for column in iterates[:, 4:8].T:
                posterior.update_parameters(Vector(column))
            begun = posterior._gaussian()
            moments = begun.on_demand.moments().copy()  # read before, told of after
            posterior._summing.moments = Moments.none(40)
            posterior.rewind(4)
        else:
            with pytest.raises(RuntimeError, match="on purpose"), group.transaction():
                for column in iterates[:, 4:8].T:
                    posterior.update_parameters(Vector(column))
                begun = posterior._gaussian()
                moments = begun.on_demand.moments().copy()
                posterior._summing.moments = Moments.none(40)
                raise RuntimeError("on purpose")
        others = np.hstack([iterates[:, :4], iterates[:, 8:12]])
        for column in others[:, 4:].T:
            posterior.update_parameters(Vector(column))
        assert begun.on_demand._learned is not None
        begun.on_demand._learned(moments)
        found = joined(posterior.mean())
        np.testing.assert_allclose(found, others.mean(axis=1), rtol=1e-5, atol=1e-6)


def test_what_no_moments_are_in_is_not_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two vectors as large as the model: of GPT-2's size they took longer than two draws."""
    collect(random_walk(50, 12), f"memmap:{tmp_path}/store").close()
    with swag.load(f"memmap:{tmp_path}/store") as posterior:
        for vector in ("_mean", "_squares"):
            monkeypatch.setattr(posterior._store, vector, None)
        expected = random_walk(50, 12).mean(axis=1)
        np.testing.assert_allclose(joined(posterior.mean()), expected, rtol=1e-5, atol=1e-6)


def test_a_window_is_of_the_iterates_there_were() -> None:
    iterates = random_walk(5, 20)
    posterior = collect(iterates[:, :10])
    window, later = posterior.window(), posterior.window(start=5)
    for column in iterates[:, 10:].T:
        posterior.update_parameters(Vector(column))
    np.testing.assert_allclose(joined(window.mean()), iterates[:, :10].mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(joined(later.mean()), iterates[:, 5:10].mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(joined(posterior.mean()), iterates.mean(axis=1), rtol=1e-6)


@pytest.mark.parametrize("value", [2.5, 20.0, "3", -1, float("nan")])
def test_what_counts_is_a_whole_number(value: Any) -> None:
    """As ``max_rank=epochs / 2``, which was taken, and failed at some iterate."""
    posterior = collect(random_walk(5, 4))
    model = Vector(random_walk(5, 1)[:, 0])
    for name in ("max_rank", "checkpoint_every", "start", "every", "expected"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number"):
            swag.SWAG(model, **{name: value})
    for name in ("start", "every", "rank", "stop"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number"):
            posterior.window(**{name: value})
    for name in ("samples", "batch_size", "draws_at_once"):
        options: dict[str, Any] = {"activation": "none", name: value}
        with pytest.raises(ValueError, match=f"{name} must be a whole number"):
            posterior.predict(model, torch.zeros(2, 5), **options)
    with pytest.raises(ValueError, match="n must be a whole number"):
        posterior.sample(value)


def test_numbers_of_numpy_count() -> None:
    three: Any = np.int64(3)  # whose stubs do not say that it is an int
    model = Vector(random_walk(5, 1)[:, 0])
    posterior = swag.SWAG(model, max_rank=three, checkpoint_every=three, every=three - 2)
    for column in random_walk(5, 7).T:
        posterior.update_parameters(Vector(column))
    assert (posterior.rank, type(posterior.rank)) == (3, int)
    drawn, same = (posterior.sample(three, generator=seed) for seed in (3, three))
    for name, value in drawn.items():
        assert torch.equal(value, same[name])


@pytest.mark.parametrize("seed", [1.5, "a", 2**64, -(2**63) - 1])
def test_what_is_no_seed_is_refused(seed: Any) -> None:
    with pytest.raises(ValueError, match="whole number of at most 64 bits"):
        collect(random_walk(5, 4)).sample(2, generator=seed)


@pytest.mark.parametrize("options", [{"start": -1}, {"every": 0}, {"rank": -1}, {"center": "last"}])
def test_wrong_windows_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        collect(random_walk(4, 3)).window(**options)


def test_one_column_makes_no_low_rank_part() -> None:
    posterior = collect(random_walk(6, 9))
    one, none = posterior.window(rank=1), posterior.window(rank=0)
    draws = one.sample(5, generator=2)
    for name, values in none.sample(5, generator=2).items():
        assert torch.equal(values, draws[name])


def test_a_single_iterate_is_drawn_as_it_is() -> None:
    iterates = random_walk(6, 1)
    draws = joined(collect(iterates).sample(3))
    np.testing.assert_array_equal(draws, np.repeat(iterates.T, 3, axis=0))


# -- scale ----------------------------------------------------------------------------------------


def test_scale_multiplies_the_whole_covariance() -> None:
    posterior = collect(random_walk(30, 12))
    mean = joined(posterior.mean())
    whole = joined(posterior.sample(2, scale=1.0, generator=5)) - mean
    for scale in (0.25, 0.5, 4.0):
        part = joined(posterior.sample(2, scale=scale, generator=5)) - mean
        np.testing.assert_allclose(part, whole * math.sqrt(scale), atol=1e-6)
    np.testing.assert_array_equal(joined(posterior.sample(2, scale=0)), np.tile(mean, (2, 1)))


def test_the_default_scale_is_half_with_a_low_rank_part_and_one_without() -> None:
    posterior = collect(random_walk(30, 12))
    for rank, scale in [(0, 1.0), (1, 1.0), (2, 0.5), (12, 0.5)]:
        window = posterior.window(rank=rank)
        default, told = window.sample(generator=1), window.sample(generator=1, scale=scale)
        assert torch.equal(default["head"], told["head"])


@pytest.mark.parametrize("scale", [-1.0, math.nan])
def test_a_covariance_is_not_negative(scale: float) -> None:
    with pytest.raises(ValueError, match="covariance"):
        collect(random_walk(4, 3)).sample(scale=scale)


# -- distribution ---------------------------------------------------------------------------------


def nagao(draws: Matrix, mean: Matrix, covariance: Matrix) -> float:
    """Probability of a covariance at least as different, were `covariance` the true one.

    Nagao 1973: N / 2 times the sum of squares of the whitened sample covariance less the identity
    is chi-square of p (p + 1) / 2 degrees of freedom for many draws.
    """
    root = np.linalg.cholesky(covariance)
    white = np.linalg.solve(root, (draws - mean).T)
    p, count = white.shape
    difference = white @ white.T / count - np.eye(p)
    statistic = count / 2 * (difference**2).sum()
    freedom = p * (p + 1) / 2
    return float(torch.special.gammaincc(torch.tensor(freedom / 2), torch.tensor(statistic / 2)))


@pytest.mark.parametrize("rank", [0, 2, 5, 15])
@pytest.mark.parametrize("center", ["running", "mean"])
def test_draws_have_the_covariance_of_diagonal_plus_low_rank(rank: int, center: Center) -> None:
    iterates = random_walk(14, 15, seed=4)
    posterior = collect(iterates).window(rank=rank, center=center)
    covariance = np.diag(iterates.var(axis=1))
    if rank > 1:
        d = deviations(iterates, rank, center)
        covariance = 0.5 * (covariance + d @ d.T / (rank - 1))
    draws = joined(posterior.sample(6_000, generator=11))
    mean = iterates.mean(axis=1)
    assert nagao(draws, mean, covariance) > 1e-4
    # The test has teeth: a covariance 8 % off, or the layers uncorrelated, is rejected.
    assert nagao(draws, mean, 1.08 * covariance) < 1e-4
    if rank > 1:
        apart = covariance.copy()
        apart[:7, 7:] = apart[7:, :7] = 0
        assert nagao(draws, mean, apart) < 1e-12


def test_parameters_of_different_layers_vary_together() -> None:
    # Two layers whose iterates are the same; 80,000 parameters lie in two blocks of random numbers.
    half = random_walk(40_000, 6, seed=1)
    half[3:] = half[:1]
    posterior = collect(np.concatenate([half, half]))
    sampled = posterior.sample(200, generator=1)
    draws = joined({name: values[:, :3] for name, values in sampled.items()})
    d = deviations(half[:3], 6, "running")
    covariance = 0.5 * d @ d.T / 5
    found = np.cov(draws.T)[:3, 3:]
    spread = 0.5 * (np.diag(half[:3].var(axis=1)) + d @ d.T / 5)
    sigma = np.sqrt((np.outer(spread.diagonal(), spread.diagonal()) + covariance**2) / 200)
    assert (np.abs(found - covariance) < 5 * sigma).all()
    assert (covariance.diagonal() > 3 * sigma.diagonal()).all()  # not to be taken for zero


# -- the same seed, the same draws ----------------------------------------------------------------


@pytest.fixture(scope="module")
def large() -> Matrix:
    """More rows than three blocks of random numbers."""
    rng = np.random.default_rng(0)
    walk = rng.standard_normal((3 * BLOCK_ROWS + 1, 7)).cumsum(axis=1)
    return np.asarray(walk.astype(np.float32), np.float64)


@pytest.mark.parametrize("max_rank", [None, 4])
def test_the_same_seed_gives_the_same_draws_on_any_budget_and_backend(
    location: str, large: Matrix, max_rank: int | None
) -> None:
    rank = max_rank or 7
    windows: list[dict[str, Any]] = [{}, {"rank": 2, "center": "mean"}, {"start": 3, "every": 2}]
    options: dict[str, Any] = {"max_rank": max_rank, "checkpoint_every": 4}
    with collect(large, location, **options) as posterior:
        assert posterior.rank == rank
    with collect(large, **options) as in_memory, swag.load(location) as stored:
        for window in windows:
            reference = in_memory.window(**window).sample(2, generator=8, scale=1.0)
            for memory_bytes in (0, 1 << 20, 1 << 30):
                draws = stored.window(**window).sample(
                    2, generator=8, scale=1.0, memory_bytes=memory_bytes
                )
                for name, values in reference.items():
                    torch.testing.assert_close(draws[name], values, rtol=0, atol=4e-6)


def test_draws_do_not_depend_on_how_many_are_made_at_a_time(large: Matrix) -> None:
    posterior = collect(large)
    together = posterior.sample(5, generator=8)["tail"]
    generator = torch.Generator().manual_seed(8)
    apart = [posterior.sample(n, generator=generator)["tail"] for n in (2, 0, 3)]
    torch.testing.assert_close(torch.cat(apart), together, rtol=0, atol=4e-6)


def test_seeds_make_a_difference_and_draws_differ() -> None:
    posterior = collect(random_walk(50, 9))
    draws = [posterior.sample(2, generator=g)["head"] for g in (1, 2, None, None)]
    rows = torch.cat(draws)
    assert len(torch.unique(rows, dim=0)) == len(rows)


def test_draws_have_the_dtype_and_shape_of_the_parameters() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        model = nn.Conv2d(2, 3, 5).to(dtype)
        posterior = swag.SWAG(model)
        posterior.update_parameters(model)
        for name, values in posterior.sample(4).items():
            assert values.dtype == dtype
            assert values.shape == (4, *model.get_parameter(name).shape)
            assert torch.equal(values[0], model.get_parameter(name))


@given(st.integers(0, 2**63 - 1))
def test_any_seed_will_do(seed: int) -> None:
    posterior = collect(random_walk(4, 3))
    assert posterior.sample(generator=seed)["head"].isfinite().all()


def test_a_draw_needs_a_count() -> None:
    posterior = collect(random_walk(4, 3))
    assert posterior.sample(0)["head"].shape == (0, 2)
    with pytest.raises(ValueError, match="n must be"):
        posterior.sample(-1)


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_posterior_is_given_to_others_by_its_url(
    scratch: Path, copied: Callable[[object], object]
) -> None:
    url = f"memmap:{scratch / 'p'}"
    model = nn.Linear(3, 1)
    with swag.SWAG(model, url) as posterior:
        posterior.update_parameters(model)
        with pytest.raises(TypeError, match=f"give the URL {url}"):
            copied(posterior)
    with swag.load(url) as stored, pytest.raises(TypeError, match=r"swag\.load"):
        copied(stored.window(0))


def test_more_draws_than_memory_holds_are_refused() -> None:
    model = network()
    posterior = swag.SWAG(model)
    for _ in steps(model, 4):
        posterior.update_parameters(model)
    many = 10**12
    with pmarray.config.set(max_result="1 kiB"):
        for drawn in (posterior, posterior.window(), swag.MultiSWAG([posterior, posterior])):
            with pytest.raises(pmarray.errors.BudgetError, match="iter_samples draws them one"):
                drawn.sample(many)
            assert drawn.sample(2)
