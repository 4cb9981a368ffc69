"""Files as other programs see them, and files of other programs as we see them."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import pmarray
from pmarray._formats.npy import parse_header, write_header
from pmarray._geometry.layout import Layout
from pmarray.errors import (
    DamagedError,
    ForeignDataError,
    GroupLockedError,
    GroupNotFoundError,
    LayoutError,
    PMArrayError,
    TransactionError,
)
from pmarray.testing import array_dtypes, array_shapes, filled, layouts


class Trap:
    """Unpickling it leaves a mark."""

    sprung = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _spring, ()


def _spring() -> None:
    Trap.sprung = True


def stored(path: Path, model: NDArray[Any]) -> NDArray[Any]:
    """What NumPy alone finds, without the padding."""
    found: NDArray[Any] = np.load(path, mmap_mode="r" if model.size else None)
    if found.dtype != model.dtype:
        found = found.view(model.dtype)  # bfloat16 has no name in .npy
    return found[tuple(slice(0, n) for n in model.shape)] if model.ndim else found


@pytest.mark.parametrize("layout", ["row", "col"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((3, 4), "float32"),
        ((16_384, 2), "float32"),
        ((16_385, 3), "float32"),
        ((100_000, 2), "int8"),
        ((300, 70, 3), "float32"),
        ((40_000, 2), "bfloat16"),
        ((10_000, 2), [("a", "<f8"), ("b", "?")]),
        ((100_000,), "float64"),
        ((), "complex64"),
        ((0, 3), "float32"),
        ((20_000, 0), "float32"),
        ((5, 2), "U7"),
        ((5, 2), [("Temperatur in °C", "<f4"), ("b", "?")]),
        ((5, 2), [("温度", "<f4"), ("b", "?")]),
    ],
)
def test_numpy_reads_what_was_written(
    tmp_path: Path, shape: tuple[int, ...], dtype: Any, layout: Any
) -> None:
    shape = shape if layout == "col" else shape[::-1]
    with pmarray.open(tmp_path / "g", shape, dtype, layout=layout) as array:
        model = filled(shape, array.dtype, 1)
        array[...] = model
        array.flush()
        np.testing.assert_array_equal(stored(tmp_path / "g/array.npy", model), model)
        if model.ndim:
            line = model[..., :1] if layout == "col" else model[:1]
            array.append(line)
            model = np.concatenate([model, line], axis=-1 if layout == "col" else 0)
    path = tmp_path / "g/array.npy"
    np.testing.assert_array_equal(stored(path, model), model)
    assert path.is_symlink()
    assert path.resolve().parent == (tmp_path / "g/data").resolve()
    with path.open("rb") as file:
        assert parse_header(file.read(4096), "it").data_offset == 4096


def test_the_padding_rule_as_it_is_documented(tmp_path: Path) -> None:
    """`np.load(...)[:n]`, and a column on every block."""
    n = 20_001
    with pmarray.open(tmp_path / "g", (n, 3), "float32", layout="col") as array:
        array[...] = np.arange(3)
    found = np.load(tmp_path / "g/array.npy", mmap_mode="r")
    assert found.flags.f_contiguous
    assert found.shape == (20_480, 3)
    assert (found[:n] == [0, 1, 2]).all()
    assert (found[n:] == 0).all()


def test_links_follow_the_arrays(tmp_path: Path) -> None:
    foreign = tmp_path / "g/notes.npy"
    with pmarray.open_group(tmp_path / "g") as group:
        group.create("a", (3,))[:] = 1
        group.create("b", (3,))[:] = 2
        foreign.write_bytes(b"mine")
        group.flush()
        assert np.load(tmp_path / "g/a.npy").tolist() == [1, 1, 1]
        del group["a"]
        group.create("c", (2,))[:] = 3
        group["b"].resize((5,))
        group.flush()
    assert not (tmp_path / "g/a.npy").is_symlink()
    assert np.load(tmp_path / "g/b.npy").tolist() == [2, 2, 2, 0, 0]
    assert np.load(tmp_path / "g/c.npy").tolist() == [3, 3]
    assert foreign.read_bytes() == b"mine"
    assert len(list((tmp_path / "g/data").iterdir())) == 2


@given(array_shapes(2000), array_dtypes(), layouts())
def test_headers_go_round(shape: tuple[int, ...], dtype: Any, layout: Any) -> None:
    plan = Layout.plan(shape, dtype.itemsize, layout)
    header = write_header(plan, dtype, ndim=len(shape))
    assert len(header) == 4096
    parsed = parse_header(header + bytes(10), "it")
    assert parsed.data_offset == 4096
    assert parsed.shape == (plan.stored_shape if shape else ())
    assert parsed.order == layout
    assert parsed.dtype == dtype or dtype.name == "bfloat16"


# -- foreign files ---------------------------------------------------------------------------


FOREIGN: list[NDArray[Any]] = [
    np.arange(12.0).reshape(3, 4),
    np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    np.arange(24, dtype=">i4").reshape(2, 3, 4),
    np.asfortranarray(np.arange(60_000, dtype="<f4").reshape(20_000, 3)),
    np.arange(50_000, dtype="<f8"),
    np.array(3.5),
    np.array([(1, 2.5), (3, 4.5)], dtype=[("a", "<i2"), ("b", ">f8")]),
    np.array(["x", "yz"]),
    np.array(["2001-01-01"], "M8[D]"),
    np.zeros((0, 4)),
    np.zeros((4, 0), "F", order="F"),
    np.array([True, False]),
]


def save(path: Path, array: NDArray[Any], version: tuple[int, int] | None = None) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array(file, array, version=version)


@pytest.mark.parametrize("model", FOREIGN, ids=lambda a: f"{a.dtype.str}{a.shape}")
@pytest.mark.parametrize("version", [None, (2, 0), (3, 0)])
def test_a_foreign_file_opens_in_place(
    tmp_path: Path, model: NDArray[Any], version: tuple[int, int] | None
) -> None:
    path = tmp_path / "x.npy"
    save(path, model, version)
    before = path.read_bytes()
    with pmarray.open(path, mode="r") as array:
        assert (array.shape, array.dtype) == (model.shape, model.dtype)
        if min(model.shape, default=0) > 1 and model.ndim > 1:
            assert array.layout == ("col" if np.isfortran(model) else "row")
        np.testing.assert_array_equal(array[...], model)
        np.testing.assert_array_equal(np.asarray(array), model)
    assert path.read_bytes() == before
    changed = model[::-1].copy(order="K") if model.ndim else model + 1
    with pmarray.open(path) as array:
        array[...] = changed
    assert len(path.read_bytes()) == len(before)
    header = len(before) - model.nbytes
    assert path.read_bytes()[:header] == before[:header], "its header says the same as before"
    np.testing.assert_array_equal(np.load(path), changed)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("version", [None, (2, 0), (3, 0)])
def test_a_foreign_file_grows_and_shrinks(
    tmp_path: Path, order: Any, version: tuple[int, int] | None
) -> None:
    path = tmp_path / "x.npy"
    model = np.array(np.arange(12.0).reshape(3, 4), order=order)
    save(path, model, version)
    axis = 0 if order == "C" else 1
    line = model[:1] if order == "C" else model[:, :1]
    with pmarray.open(path, mode="r+") as array:
        for _ in range(20):
            array.append(line)
            model = np.concatenate([model, line], axis=axis)
        array.flush()
        np.testing.assert_array_equal(np.load(path), model)
        shape = (2, 4) if order == "C" else (3, 2)
        array.resize(shape)
        model = model[: shape[0], : shape[1]]
    np.testing.assert_array_equal(np.load(path), model)
    assert path.stat().st_size % 64 == model.nbytes % 64, "nothing follows the array"
    with pmarray.open(path) as array:  # and it is an ordinary foreign file still
        array.append(line)
    np.testing.assert_array_equal(np.load(path), np.concatenate([model, line], axis=axis))


def test_a_header_without_room_refuses_growth_and_nothing_changes(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (9,)}\n"
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    path.write_bytes(data + np.arange(9.0).tobytes())
    with pmarray.open(path) as array:
        array[0] = 5  # its own header would not fit either: it is not rewritten
        array.flush()
        for grow in (lambda: array.append(np.zeros(10_000)), lambda: array.resize(10_000)):
            with pytest.raises(LayoutError, match="cannot take shape"):
                grow()
            assert array.shape == (9,)
        with pytest.raises(LayoutError), array.appending(10_000):
            pass
        assert array.shape == (9,)
    assert path.read_bytes() == data + np.array([5, *range(1, 9)], "<f8").tobytes()


def test_what_follows_the_array_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "two.npy"
    with path.open("wb") as file:
        np.save(file, np.zeros(10))
        np.save(file, np.arange(10_000.0))
    before = path.read_bytes()
    with pmarray.open(path) as array:
        assert array.shape == (10,)
        array[3] = 0
        with pytest.raises(ForeignDataError, match="goes on after its array"):
            array.append([1.0])
        array.resize(5)
        array.resize(10)
    assert path.read_bytes() == before


def test_pickles_are_refused_and_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.array([Trap(), None], dtype=object), allow_pickle=True)
    for mode in ("r", "r+", "a"):
        with pytest.raises(ForeignDataError, match="never unpickles"):
            pmarray.open(path, mode=mode)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ForeignDataError, match="not a \\.npy file"):
        pmarray.open(path)
    np.savez(tmp_path / "y.npz", np.zeros(3))
    (tmp_path / "y.npz").rename(path)
    with pytest.raises(ForeignDataError, match="not a \\.npy file"):
        pmarray.open(path)
    assert not Trap.sprung


def test_one_file_is_one_array(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.arange(4))
    before = path.read_bytes()
    with pmarray.open_group(path) as group:
        assert list(group) == ["array"]
        with pytest.raises(ForeignDataError):
            group.create("b", (3,))
        with pytest.raises(ForeignDataError):
            del group["array"]
        with pytest.raises(ForeignDataError):
            group.attrs["a"] = 1
        with pytest.raises(TransactionError), group.transaction():
            pass
    with pytest.raises(ForeignDataError):
        pmarray.open(path, (4,), "int64", mode="w")
    with pytest.raises(ForeignDataError):
        pmarray.open_group(path, mode="w")
    with pytest.raises(GroupNotFoundError, match="only an existing"):
        pmarray.open(tmp_path / "missing.npy", (3,))
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.npy"]


def test_a_file_of_a_group_is_opened_through_the_group(tmp_path: Path) -> None:
    with pmarray.open(tmp_path / "g", (3,)) as array:
        array[:] = 1
    for path in (tmp_path / "g/array.npy", tmp_path / "g/data/000001.npy"):
        with pytest.raises(ForeignDataError, match="belongs to the group"):
            pmarray.open(path)
    (tmp_path / "g/figures").mkdir()
    np.save(tmp_path / "g/figures/x.npy", np.arange(3))
    with pmarray.open(tmp_path / "g/figures/x.npy", mode="r") as array:
        assert array.shape == (3,)


def test_one_writer_of_a_foreign_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(4))
    with pmarray.open(tmp_path / "x.npy") as first, pmarray.open(tmp_path / "x.npy") as second:
        first[0] = 7
        with pytest.raises(GroupLockedError, match="being written to"):
            second[1] = 8
        first.close()
        second[1] = 8
    assert np.load(tmp_path / "x.npy").tolist() == [7, 8, 2, 3]


# -- headers that lie --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "3",
        "{'descr': '<f8', 'fortran_order': False}",
        "{'descr': '<f8', 'fortran_order': 1, 'shape': (3,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-3,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (3.5,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (True,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': '12'}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': 3}",
        "{'descr': 'nonsense', 'fortran_order': False, 'shape': (3,)}",
        "{'descr': '<U0', 'fortran_order': False, 'shape': (3,)}",
        "{'descr': ('<f8', (2,)), 'fortran_order': False, 'shape': (3,)}",
        "{'descr': [], 'fortran_order': False, 'shape': (3,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1e999,)}",
        "(" * 5000,
        "__import__('os').system('touch sprung')",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1if 1 else 2,)}",
    ],
)
def test_a_header_that_makes_no_sense_is_damage(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.npy"
    raw = text.encode().ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw + bytes(100))
    with pytest.raises(DamagedError, match="header"):
        pmarray.open(path)


@pytest.mark.parametrize("shape", ["(14,)", "(2**40,)", "(10**30,)", "(3, 10**18, 10**18)"])
def test_a_header_that_promises_more_than_there_is(tmp_path: Path, shape: str) -> None:
    path = tmp_path / "x.npy"
    shape = repr(eval(shape))
    raw = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}".encode().ljust(117)
    path.write_bytes(b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + raw + b"\n" + bytes(104))
    before = path.read_bytes()
    for mode in ("r", "r+"):
        with pytest.raises(DamagedError, match=r"truncated|no integer|too large"):
            pmarray.open(path, mode=mode)
    assert path.read_bytes() == before


@given(st.binary(max_size=300), st.integers(1, 4))
def test_random_headers_are_refused_or_make_sense(junk: bytes, version: int) -> None:
    data = b"\x93NUMPY" + bytes([version, 0]) + junk
    try:
        parse_header(data, "junk")
    except PMArrayError:
        pass


@given(st.data())
def test_a_header_with_a_few_bytes_changed(data: st.DataObject) -> None:
    good = bytearray(write_header(Layout.plan((3, 4), 8, "row"), np.dtype("f8"), ndim=2))
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, 80))] = data.draw(st.integers(0, 255))
    try:
        header = parse_header(bytes(good), "it")
    except PMArrayError:
        return
    assert all(n >= 0 for n in header.shape)
    assert header.dtype.itemsize > 0


def test_a_header_that_is_too_long_is_no_damage(tmp_path: Path) -> None:
    fields = [(f"field_{i:06d}_{'x' * 30}", "i4") for i in range(2000)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that old NumPy cannot read it
        np.save(tmp_path / "x.npy", np.zeros(3, fields))
    with pytest.raises(ForeignDataError, match="max_header_size"):
        pmarray.open(tmp_path / "x.npy", mode="r")
    data = bytearray((tmp_path / "x.npy").read_bytes()[:200])
    (tmp_path / "y.npy").write_bytes(data)
    with pytest.raises(DamagedError, match="cannot be read"):
        pmarray.open(tmp_path / "y.npy", mode="r")
