"""`pmarray.linalg` against NumPy, and what it promises of accuracy, passes and memory."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import pmarray
from pmarray import linalg
from pmarray.backends.files.region import FileRegion
from pmarray.errors import BudgetError, LayoutError, LoanError, SelectionError
from pmarray.linalg import _blocks
from pmarray.linalg._blocks import Matrix, tiles
from pmarray.linalg._plans import pair_tiles, plan_panel, plan_tile
from pmarray.testing import layouts

AnyArray = NDArray[Any]
numbers = st.sampled_from(
    ["float64", "float32", "complex128", "complex64", "float16", "int32", "uint8", "int64", "bool"]
)
extents = st.sampled_from([0, 1, 2, 3, 5, 17, 40])
memories = st.sampled_from([2000, 5000, 20_000, "1 MiB"])
"""Small ones leave a few items a tile."""


def values(shape: tuple[int, ...], dtype: Any, seed: int) -> AnyArray:
    """Small whole numbers, so that sums are exact in any order but for overflow."""
    source = np.random.default_rng(seed)
    result = source.integers(0 if np.dtype(dtype).kind in "bu" else -3, 4, shape).astype(dtype)
    if result.dtype.kind == "c":
        result += (1j * source.integers(-3, 4, shape)).astype(dtype)
    return result


def normal(shape: tuple[int, ...], dtype: Any = "float64", seed: int = 0) -> AnyArray:
    source = np.random.default_rng(seed)
    result = source.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        result = result + 1j * source.standard_normal(shape)
    return result.astype(dtype)


def stored(model: AnyArray, layout: Any, url: str = "dram:") -> pmarray.PMArray:
    array = pmarray.open(url, model.shape, model.dtype, layout=layout)
    array[...] = model
    return array


def same(found: Any, expected: Any) -> None:
    assert np.shape(found) == np.shape(expected)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


# -- products ------------------------------------------------------------------------------------


@given(extents, extents, extents, numbers, numbers, layouts(), memories, st.data())
def test_multiplies_like_numpy(
    m: int, k: int, n: int, first: str, second: str, layout: Any, memory: Any, data: st.DataObject
) -> None:
    x, y = values((m, k), first, 1), values((k, n), second, 2)
    a = stored(x, layout)
    same(linalg.matmul(a, y, memory=memory), x @ y)
    b = stored(y, data.draw(layouts()))
    same(linalg.matmul(x, b, memory=memory), x @ y)
    same(linalg.matmul(a, b, memory=memory), x @ y)
    expected = x @ y
    order: Any = data.draw(st.sampled_from(["C", "F"]))
    out = np.full((2 * m, n), 7, expected.dtype, order=order)[::2]
    assert linalg.matmul(a, y, out=out, memory=memory) is out
    same(out, expected)
    target = stored(np.full_like(expected, 1), data.draw(layouts()))
    for left, right in ((a, y), (x, b), (a, b), (x, y)):
        target[...] = 1
        linalg.matmul(left, right, out=target, memory=memory)
        same(target[...], expected)


@given(extents, extents, numbers, numbers, layouts(), memories)
def test_multiplies_vectors_like_numpy(
    m: int, k: int, first: str, second: str, layout: Any, memory: Any
) -> None:
    x, y, z = values((m, k), first, 1), values((k,), second, 2), values((m,), second, 3)
    a = stored(x, layout)
    same(linalg.matmul(a, y, memory=memory), x @ y)
    same(linalg.matmul(z, a, memory=memory), z @ x)
    b, c = stored(y, layout), stored(z, layout)
    same(linalg.matmul(x, b, memory=memory), x @ y)
    same(linalg.matmul(c, a, memory=memory), z @ x)
    same(linalg.matmul(b, y, memory=memory), y @ y)
    target = stored((x @ y), layout)
    target[...] = 1
    linalg.matmul(a, b, out=target, memory=memory)
    same(target[...], x @ y)


@pytest.mark.parametrize("layout", ["row", "col"])
def test_views_are_operands(layout: Any) -> None:
    x, z = values((30, 20), "float64", 1), values((30, 3), "float64", 2)
    a = stored(x, layout)
    same(linalg.matmul(a.T, z, memory=3000), x.T @ z)
    same(linalg.matmul(z.T, a, memory=3000), z.T @ x)
    same(
        linalg.matmul(a.view[3:20:2, ::-1].T, z[3:20:2], memory=3000), x[3:20:2, ::-1].T @ z[3:20:2]
    )
    same(linalg.gram(a.T, memory=10_000), x @ x.T)
    with pytest.raises(LayoutError, match="one of the operands"):
        linalg.matmul(a.T, np.ones((30, 30)), out=a.T)


@pytest.mark.parametrize("fits", [True, False])
def test_two_that_do_not_fit_make_tiles(fits: bool) -> None:
    x, y = values((70, 90), "float64", 1), values((90, 80), "float64", 2)
    a, b = stored(x, "col"), stored(y, "row")
    target = stored(np.zeros((70, 80)), "row")
    linalg.matmul(a, b, out=None if fits else target, memory=30_000)
    same(linalg.matmul(a, b, memory=30_000) if fits else target[...], x @ y)


def test_half_precision_is_summed_in_single() -> None:
    x = np.full((4, 5000), 1, "float16")
    assert (linalg.matmul(stored(x, "col"), np.ones(5000, "float16"), memory=2000) == 5000).all()
    assert (linalg.gram(stored(x, "row"), side="rows", memory=2000) == 5000).all()


def test_bfloat16_comes_as_numpy_has_it() -> None:
    pytest.importorskip("ml_dtypes")
    a = pmarray.open("dram:", (40, 5), "bfloat16", layout="col")
    a[...] = values((40, 5), "float32", 1)
    same(linalg.matmul(a, np.ones(5, "float32"), memory=2000), a[...] @ np.ones(5, "float32"))


@given(extents, extents, numbers, layouts(), st.sampled_from(["columns", "rows"]), st.booleans())
def test_grams_like_numpy(
    m: int, n: int, dtype: str, layout: Any, side: Any, centered: bool
) -> None:
    x = values((m, n), dtype, 1)
    a = stored(x, layout)
    if side == "rows":
        x = x.T
    expected = x.T @ x.conj() if side == "rows" else x.conj().T @ x
    center = None
    if centered:
        center = values((x.shape[1],), dtype, 3)
        moved = x.astype(expected.dtype) ^ center if dtype == "bool" else x - center
        expected = moved.T @ moved.conj() if side == "rows" else moved.conj().T @ moved
    if centered and dtype == "bool":
        return  # NumPy has no difference of truth values
    found = linalg.gram(a, side=side, center=center, memory=30_000)
    same(found, expected)
    out = np.zeros_like(expected)
    assert linalg.gram(a, side=side, center=center, out=out, memory=30_000) is out
    same(out, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
@pytest.mark.parametrize("memory", [20_000, 200_000])
def test_gram_is_exactly_symmetric(dtype: str, memory: int) -> None:
    x = normal((300, 31), dtype)
    found = linalg.gram(stored(x, "col"), memory=memory)
    same(found, found.conj().T)
    np.testing.assert_allclose(found, x.conj().T @ x, rtol=1e-3, atol=1e-3)


# -- norms ---------------------------------------------------------------------------------------


@given(
    extents, extents, numbers, layouts(),
    st.sampled_from([None, "fro", 0, 1, 3, -1, np.inf, -np.inf]),
    st.sampled_from([None, 0, 1, -1]), memories,
)  # fmt: skip
def test_norms_like_numpy(
    m: int, n: int, dtype: str, layout: Any, ord: Any, axis: int | None, memory: Any
) -> None:
    x = values((m, n), dtype, 1)
    a = stored(x, layout)
    if ord == -1 and axis is not None:
        return  # a division by zero in NumPy
    model = x.astype("complex128" if x.dtype.kind == "c" else "float64")
    try:
        expected = np.linalg.norm(model, ord, axis)
    except ValueError:
        with pytest.raises(ValueError, match=r"norm|ord|no items|zero-size"):
            linalg.norm(a, ord, axis, memory=memory)
        return
    found = linalg.norm(a, ord, axis, memory=memory)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("layout", ["row", "col"])
@pytest.mark.parametrize("size", [1e300, 1e-300, 1e-307, 1.0])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_norms_of_any_magnitude(layout: Any, size: float, axis: int | None) -> None:
    x = normal((40, 30))
    x[3] = 0
    a = stored(x * size, layout)
    expected = np.linalg.norm(x, axis=axis) * size
    np.testing.assert_allclose(linalg.norm(a, axis=axis, memory=3000), expected, 1e-13, 1e-320)


def test_norms_of_what_is_not_finite() -> None:
    x = np.ones((3, 4))
    x[0, 0], x[1, 1], x[:2, 2] = np.inf, np.nan, (np.inf, np.nan)
    found = linalg.norm(stored(x, "col"), axis=0)
    np.testing.assert_array_equal(found[:3], [np.inf, np.nan, np.nan])
    assert np.isnan(linalg.norm(stored(x, "col")))


# -- factorizations ------------------------------------------------------------------------------


@given(
    st.sampled_from([(0, 0), (0, 3), (3, 0), (1, 1), (9, 1), (40, 7), (200, 5), (5, 40), (8, 8)]),
    st.sampled_from(["float32", "float64", "complex64", "complex128", "int32", "float16"]),
    layouts(),
    st.sampled_from([1, 4]),
    st.booleans(),
)
def test_qr(shape: tuple[int, int], dtype: str, layout: Any, room: int, deficient: bool) -> None:
    x = normal(shape, dtype) if np.dtype(dtype).kind in "fc" else values(shape, dtype, 1)
    if deficient and shape[1] > 2:
        x[:, 2] = x[:, 0]
        x[:, 1] = 0
    a = stored(x, layout)
    k = min(shape)
    memory = max(1, room * 12 * k * k * 16)
    q, r = linalg.qr(a, memory=memory)
    eps = np.finfo(r.dtype).eps
    assert q.shape == (shape[0], k)
    assert q.dtype == r.dtype == np.linalg.qr(x.astype(r.dtype)).Q.dtype
    assert np.abs(q.conj().T @ q - np.eye(k)).max(initial=0) < 20 * eps
    assert np.abs(q @ r - x).max(initial=0) < 100 * eps * np.abs(x).max(initial=1)
    assert (np.tril(r, -1) == 0).all()
    assert (np.diagonal(r).real >= 0).all()
    assert (np.abs(np.diagonal(r).imag) <= eps * np.abs(np.diagonal(r))).all()
    only = linalg.qr(a, "r", memory=memory)
    assert only.Q is None
    np.testing.assert_allclose(only.R, r, atol=100 * eps * np.abs(x).max(initial=1))
    out = pmarray.open("dram:", q.shape, q.dtype, layout=layout)
    assert linalg.qr(a, out_q=out, memory=memory).Q is out
    same(out[...], q)


def test_qr_in_the_place_of_the_matrix() -> None:
    x = normal((500, 6))
    a = stored(x, "col")
    r = linalg.qr(a, out_q=a, memory=10_000).R
    q = a[...]
    np.testing.assert_allclose(q @ r, x, atol=1e-13)


def graded(m: int, n: int, condition: float) -> tuple[AnyArray, AnyArray]:
    """A matrix with singular values from 1 down to 1 / condition."""
    u, v = np.linalg.qr(normal((m, n), seed=1)).Q, np.linalg.qr(normal((n, n), seed=2)).Q
    s = np.logspace(0, -np.log10(condition), n)
    return (u * s) @ v.T, s


@pytest.mark.parametrize("condition", [10, 1e8, 1e15, np.inf])
def test_q_is_orthonormal_whatever_the_condition(condition: float) -> None:
    x, _ = graded(3000, 12, min(condition, 1e15))
    if condition == np.inf:
        x[:, 3:] = x[:, :1]
    q, r = linalg.qr(stored(x, "col"), memory=40_000)
    assert np.abs(q.T @ q - np.eye(12)).max() < 1e-13
    assert np.abs(q @ r - x).max() < 1e-13


@given(
    st.sampled_from([(0, 0), (0, 3), (3, 0), (1, 1), (9, 1), (60, 7), (7, 60), (8, 8)]),
    st.sampled_from(["float32", "float64", "complex64", "complex128", "int32"]),
    layouts(),
    st.sampled_from(["auto", "qr", "gram", "randomized"]),
    st.booleans(),
    st.booleans(),
)
def test_svd(
    shape: tuple[int, int], dtype: str, layout: Any, method: Any, cut: bool, out: bool
) -> None:
    x = (normal(shape, "complex128" if dtype.startswith("c") else "float64") * 9).astype(dtype)
    k = max(0, min(shape) - 3) if cut else min(shape)
    a = stored(x, layout)
    full = np.linalg.svd(x.astype(linalg.qr(a, "r").R.dtype), full_matrices=False)
    target = pmarray.open("dram:", (shape[0], k), full.U.dtype, layout=layout) if out else None
    u, s, vh = linalg.svd(
        a, k if cut else None, method=method, generator=1, memory=40_000, out_u=target
    )
    assert not out or u is target
    u = u[...]
    tolerance = 1e-4 if full.S.dtype == np.float32 else 1e-10
    assert (u.shape, s.shape, vh.shape) == ((shape[0], k), (k,), (k, shape[1]))
    assert (u.dtype, s.dtype, vh.dtype) == (full.U.dtype, full.S.dtype, full.Vh.dtype)
    np.testing.assert_allclose(s, full.S[:k], atol=tolerance * 30)
    best = (full.U[:, :k] * full.S[:k]) @ full.Vh[:k]
    np.testing.assert_allclose(u * s @ vh, best, atol=tolerance * 30)
    for rows in (u.conj().T, vh):
        np.testing.assert_allclose(rows @ rows.conj().T, np.eye(k), atol=tolerance * 30)


@pytest.mark.parametrize("layout", ["row", "col"])
@pytest.mark.parametrize("method", ["qr", "gram", "randomized"])
def test_error_of_singular_values(layout: Any, method: Any) -> None:
    """Bounds that hold on any processor.

    What is computed is exact for a matrix that is off by at most c m n eps |A| (Higham 2002,
    theorem 19.4, and 3.5 for products), and, as rounding errors of different signs add up, by
    about sqrt(m n) eps |A| (Higham and Mary 2019); no singular value moves by more (Weyl). Of the
    Gram matrix the eigenvalues s^2 move by that much, so that s moves by it divided by s, or by its
    root where s is smaller.
    """
    m, n = 2000, 16
    x, s = graded(m, n, 1e12)
    found = linalg.svd(stored(x, layout), method=method, generator=0, memory=60_000).S
    rounding = np.sqrt(m * n) * np.finfo(float).eps
    error = np.abs(found - s) / s[0]
    assert error.max() < (np.sqrt(rounding) if method == "gram" else rounding)
    large = s > np.sqrt(rounding)
    assert (error[large] < rounding / s[large]).all()


@pytest.mark.parametrize("rank", [None, 5])
def test_u_of_a_matrix_of_low_rank(rank: int | None) -> None:
    x = normal((400, 3)) @ normal((3, 20), seed=1)
    a = stored(x, "col")
    u, s, vh = linalg.svd(a, rank, method="qr", memory=100_000)
    np.testing.assert_allclose(u * s @ vh, x, atol=1e-12)
    wanted = np.eye(len(s))
    if rank is not None:
        wanted[3:] = 0  # nothing is there to divide
    np.testing.assert_allclose(u.T @ u, wanted, atol=1e-13)


def test_randomized_finds_the_leading_part() -> None:
    m, n, k = 3000, 200, 10
    u, v = np.linalg.qr(normal((m, n), seed=1)).Q, np.linalg.qr(normal((n, n), seed=2)).Q
    s = 1 / np.arange(1, n + 1)
    a = stored((u * s) @ v.T, "col")
    found = linalg.svd(a, k, generator=3, memory="1 MiB")
    np.testing.assert_allclose(found.S, s[:k], rtol=1e-2)
    missing = np.linalg.norm(a[...] - found.U * found.S @ found.Vh, 2)
    assert missing < 1.2 * s[k]
    np.testing.assert_allclose(found.U.T @ found.U, np.eye(k), atol=1e-12)
    more = linalg.svd(a, k, generator=3, n_power_iterations=8, memory="1 MiB")
    np.testing.assert_allclose(more.S, s[:k], rtol=1e-6)
    again = linalg.svd(a, k, generator=np.random.default_rng(3), memory="1 MiB")
    same(again.S, found.S)


# -- plans ---------------------------------------------------------------------------------------


@given(
    st.integers(1, 10**7), st.integers(1, 10**5), st.sampled_from([1, 2, 4, 8, 16]),
    st.integers(0, 8), st.integers(1, 1 << 30), st.sampled_from(["lines", "fast"]),
    st.integers(0, 10**4), st.integers(0, 10**4),
)  # fmt: skip
def test_tiles_fit_and_have_long_runs(
    fast: int, lines: int, stored: int, more: int, nbytes: int, along: Any, per_fast: int,
    per_line: int,
) -> None:  # fmt: skip
    item = stored + more

    def cost(f: int, c: int) -> int:
        return f * c * item + f * per_fast + c * per_line

    try:
        f, c = plan_tile(
            fast, lines, stored=stored, item=item, nbytes=nbytes, along=along,
            per_fast=per_fast, per_line=per_line,
        )  # fmt: skip
    except BudgetError:
        assert cost(1, 1) > nbytes
        return
    assert 1 <= f <= fast
    assert 1 <= c <= lines
    assert cost(f, c) <= nbytes
    run = min(fast, (256 << 10) // stored)
    assert f >= run or cost(run, 1) > nbytes or c == 1


@given(st.integers(1, 500), st.integers(0, 1000), st.integers(1, 9), st.integers(0, 50))
def test_panels_fit(length: int, fixed: int, unit: int, least: int) -> None:
    nbytes = 1000
    try:
        rows = plan_panel(
            length, unit=unit, fixed=fixed, nbytes=nbytes, least=least, what="a panel"
        )
    except BudgetError:
        assert fixed + max(1, min(length, least)) * unit > nbytes
        return
    assert 1 <= rows <= length
    assert fixed + rows * unit <= nbytes


@given(
    st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 10**6),
    st.integers(10**4, 1 << 30), st.booleans(),
)  # fmt: skip
def test_tiles_of_two_fit(m: int, k: int, n: int, nbytes: int, direct: bool) -> None:
    high, inside, wide = pair_tiles(m, k, n, item=8, nbytes=nbytes, direct=direct)
    assert 1 <= high <= m
    assert 1 <= inside <= k
    assert 1 <= wide <= n
    panels = (high + wide) * inside * 8
    if direct and (high, wide) == (m, n) and inside >= min(k, 16):
        assert panels <= nbytes
    else:
        assert panels + 16 * high * wide <= nbytes * 1.01


@given(st.integers(1, 50), st.integers(1, 50), layouts(), st.integers(1, 60), st.integers(1, 60))
def test_tiles_cover_each_item_once(m: int, n: int, layout: Any, f: int, c: int) -> None:
    seen = np.zeros((m, n), int)
    matrix = Matrix.of(pmarray.open("dram:", (m, n), layout=layout))
    for along in (None, 0, 1):
        seen[...] = 0
        for tile in tiles(matrix, (f, c), along=along):
            seen[tile] += 1
        assert (seen == 1).all()


# -- passes and memory ---------------------------------------------------------------------------

ROWS, COLUMNS = 150_000, 24
MEMORY = 8 << 20


def every_operation(a: pmarray.PMArray) -> dict[str, tuple[int, Any]]:
    """Passes that each operation promises, and the operation."""
    m, n = a.shape
    z, y = np.ones((n, 2)), np.ones((2, m))
    return {
        "a @ z": (1, lambda: linalg.matmul(a, z, memory=MEMORY)),
        "y @ a": (1, lambda: linalg.matmul(y, a, memory=MEMORY)),
        "gram": (1, lambda: linalg.gram(a, memory=MEMORY)),
        "norm": (1, lambda: linalg.norm(a, memory=MEMORY)),
        "norm of columns": (1, lambda: linalg.norm(a, axis=0, memory=MEMORY)),
        "norm of rows": (1, lambda: linalg.norm(a, 1, axis=1, memory=MEMORY)),
        "qr": (1, lambda: linalg.qr(a, "r", memory=MEMORY)),
        "svd": (1, lambda: linalg.svd(a, memory=MEMORY)),
        "randomized": (
            5, lambda: linalg.svd(a, 3, method="randomized", n_oversamples=4, memory=MEMORY),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("layout", ["row", "col"])
def test_every_item_is_read_as_often_as_promised(
    scratch: Path, layout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by the kernel: bytes of the read calls, where no mapping is read beside."""
    monkeypatch.setattr(FileRegion, "keep_mapped", lambda self, nbytes: None)
    if not Path("/proc/self/io").exists():
        pytest.skip("this kernel does not count bytes read")
    model = normal((ROWS, COLUMNS))
    url = f"memmap:{scratch}/group?direct=no"
    stored(model, layout, url).close()
    a = pmarray.open(url, mode="r+")  # with nothing in its cache
    with a.transaction():
        for name, (passes, act) in every_operation(a).items():
            before = bytes_read()
            act()
            count = bytes_read() - before
            assert passes * a.nbytes <= count <= passes * a.nbytes * 1.05, name
    a.close()


def bytes_read() -> int:
    """Bytes that the process has asked the system for."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("layout", ["row", "col"])
def test_memory_is_bounded(scratch: Path, layout: Any, mapped: bool) -> None:
    model = normal((ROWS, COLUMNS))
    with pmarray.open_group(f"memmap:{scratch}/group", cache="1 MiB") as group:
        a = group.create("x", model.shape, model.dtype, layout=layout)
        a[...] = model
        group.flush()
        z = np.ones((COLUMNS, 2))
        out = np.empty((ROWS, 2))
        with a.transaction() if not mapped else group:
            for act in (
                lambda: linalg.matmul(a, z, out=out, memory=MEMORY),
                lambda: linalg.matmul(out.T, a, memory=MEMORY),
                lambda: linalg.gram(a, memory=MEMORY),
                lambda: linalg.norm(a, memory=MEMORY),
                lambda: linalg.qr(a, "r", memory=MEMORY),
                lambda: linalg.svd(a, 2, memory=MEMORY, out_u=out),
                lambda: linalg.svd(a, 2, method="gram", memory=MEMORY, out_u=out),
            ):
                tracemalloc.start()
                act()
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                assert peak < MEMORY + (1 << 20)


def test_pages_of_earlier_tiles_are_given_back(scratch: Path) -> None:
    """What is mapped counts as the process's memory: some tiles of it, and not the file."""
    psutil = pytest.importorskip("psutil")
    group = pmarray.open_group(f"memmap:{scratch}/group", cache="8 MiB")
    a = group.create("x", (400_000, 40), "float64", layout="col")
    for j in range(40):
        a[:, j] = j
    group.flush()
    resident = psutil.Process(os.getpid()).memory_info
    walk = _blocks.walk
    before, most = resident().shared, []
    order = tiles(Matrix.of(a), (20_000, 40), along=1)
    for _, sight in walk(Matrix.of(a), order):
        sight.block.sum()
        most.append(resident().shared - before)
    # A tile, what the cache's size lets stay of others, and the kernel's readahead.
    assert max(most) < (8 << 20) + 3 * 20_000 * 40 * 8 < a.nbytes
    group.close()


# -- refusals ------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused() -> None:
    a = stored(normal((30, 20)), "col")
    z = np.ones((20, 2))
    with pytest.raises(LayoutError, match="20 columns and 30 rows"):
        linalg.matmul(a, a)
    with pytest.raises(LayoutError, match=r"out has shape \(3, 3\), the result \(30, 2\)"):
        linalg.matmul(a, z, out=np.empty((3, 3)))
    with pytest.raises(TypeError, match="cannot hold"):
        linalg.matmul(a, z, out=np.empty((30, 2), int))
    with pytest.raises(LayoutError, match="one of the operands"):
        linalg.matmul(a, np.ones((20, 20)), out=a)
    with pytest.raises(LayoutError, match="no numbers"):
        linalg.matmul(pmarray.open("dram:", (3, 3), "S4"), np.ones((3, 3)))
    with pytest.raises(LayoutError, match="give a matrix"):
        linalg.gram(pmarray.open("dram:", (3, 3, 3)))
    with pytest.raises(TypeError, match=r"numpy\.matmul"):
        linalg.matmul(z, z.T)
    with pytest.raises(SelectionError):
        linalg.norm(a, axis=2)
    with pytest.raises(ValueError, match="svd"):
        linalg.norm(a, "nuc")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rank=21"):
        linalg.svd(a, 21)
    with pytest.raises(ValueError, match="memory=0"):
        linalg.gram(a, memory=0)


def test_what_does_not_fit_is_refused_with_its_size() -> None:
    a = stored(normal((30, 20)), "col")
    for act in (
        lambda: linalg.qr(a, memory=5000),
        lambda: linalg.svd(a, memory=5000),
        lambda: linalg.svd(a, method="gram", memory=5000),
        lambda: linalg.svd(a, 2, method="randomized", memory=500),
        lambda: linalg.gram(a, memory=50),
        lambda: linalg.matmul(a, np.ones((20, 2)), memory=3),
    ):
        with pytest.raises(BudgetError, match=r"\d (B|KiB)"):
            act()
    huge = pmarray.open("dram:", (10**7, 1), layout="col")
    with pmarray.config.set(max_result="1 MiB"):
        with pytest.raises(BudgetError, match=r"76\.3 MiB"):
            linalg.matmul(huge, [1.0])
        with pytest.raises(BudgetError, match="TiB"):
            linalg.gram(huge, side="rows")


def test_a_matrix_does_not_shrink_while_it_is_read() -> None:
    a = stored(normal((30, 20)), "col")
    walk = _blocks.walk
    with pytest.raises(LoanError):
        for _ in walk(Matrix.of(a), tiles(Matrix.of(a), (30, 5))):
            a.resize((30, 5))
    a.resize((30, 5))
