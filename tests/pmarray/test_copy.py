"""`pmarray.copy` and `pmarray.copy_group`: the items, the traffic, the memory, the failures."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import tempfile
import textwrap
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pmarray
from pmarray.errors import (
    ArrayExistsError,
    ArrayNotFoundError,
    GroupExistsError,
    GroupNotFoundError,
    LayoutError,
    ReadOnlyError,
    SnapshotExpiredError,
    URLError,
)
from pmarray.testing.strategies import array_dtypes, array_shapes, budgets, filled, layouts

SCHEMES = st.sampled_from(["dram", "memmap"])


def make(url: str, values: Any, layout: Any = "row", **options: Any) -> None:
    with pmarray.open(url, values.shape, values.dtype, layout=layout, mode="w", **options) as a:
        a[...] = values


def contents(url: Any) -> Any:
    with pmarray.open(url, mode="r") as a:
        return a[...]


# -- the items ----------------------------------------------------------------------------------


@given(
    shape=array_shapes(20_000),
    dtype=array_dtypes(),
    read=layouts(),
    written=st.one_of(st.none(), layouts()),
    schemes=st.tuples(SCHEMES, SCHEMES),
    cache=budgets(),
    seed=st.integers(0, 99),
)
def test_a_copy_holds_the_same_items(
    shape: Any, dtype: Any, read: str, written: Any, schemes: Any, cache: Any, seed: int
) -> None:
    values = filled(shape, dtype, seed)
    places = {"dram": str(uuid.uuid4()), "memmap": tempfile.mkdtemp()}
    source, target = (f"{scheme}:{places[scheme]}/{i}#x" for i, scheme in enumerate(schemes))
    steps: list[tuple[int, int]] = []
    try:
        make(source, values, read)
        pmarray.copy(
            source, target, layout=written, cache=cache, progress=lambda *step: steps.append(step)
        )
        with pmarray.open(target, mode="r") as copied:
            assert (copied.shape, copied.dtype, copied.layout) == (shape, dtype, written or read)
            np.testing.assert_array_equal(copied[...], values)
    finally:
        shutil.rmtree(places["memmap"])
    assert steps[0] == (0, values.nbytes)
    assert steps[-1] == (values.nbytes, values.nbytes)
    assert steps == sorted(steps)


def test_the_fill_value_comes_along_and_is_not_written_first(scratch: Path, calls: Any) -> None:
    make(f"{scratch}/a", np.ones((20_000, 8), "f4"), "col", fill_value=7)
    with pmarray.open_group(scratch / "b") as group, group.transaction():
        group.attrs["journal"] = "made once, and not counted"
    calls.log.clear()
    pmarray.copy(scratch / "a", scratch / "b")
    data = [n for _, n in calls.written() if n > 20_000]
    assert sum(data) == 8 * 81_920  # columns of 80,000 bytes in whole blocks, once
    with pmarray.open(scratch / "b") as b:
        b.resize((20_000, 9))
        assert (b[0] == [1] * 8 + [7]).all()


def test_a_view_and_what_is_not_written_out_yet(scratch: Path) -> None:
    with pmarray.open(scratch / "a", (300, 50), "int32", layout="col") as a:
        a[...] = np.arange(15_000).reshape(300, 50)
        pmarray.copy(a.view[10:250:3, ::-2].T, scratch / "b")
        np.testing.assert_array_equal(
            contents(scratch / "b"), np.arange(15_000).reshape(300, 50)[10:250:3, ::-2].T
        )
        pmarray.copy(a, f"{scratch}/a#turned", layout="row")  # through the writer's own handle
        assert a.group["turned"].layout == "row"
        np.testing.assert_array_equal(a.group["turned"][...], a[...])


def test_within_one_group_by_url(tmp_path: Path) -> None:
    make(f"{tmp_path}/g#a", np.arange(10))
    pmarray.copy(f"{tmp_path}/g#a", f"{tmp_path}/../{tmp_path.name}/g#b")
    np.testing.assert_array_equal(contents(f"{tmp_path}/g#b"), np.arange(10))


def test_a_reader_of_the_group_that_is_written_to(tmp_path: Path) -> None:
    values = np.arange(60_000.0).reshape(200, 300)
    make(f"{tmp_path}/g#a", values)
    with pmarray.open(f"{tmp_path}/g#a", mode="r") as a:
        with pytest.raises(ReadOnlyError, match="give the source as a URL"):
            pmarray.copy(a, f"{tmp_path}/g#b", layout="col")
        with pytest.raises(ReadOnlyError, match="give the source as a URL"):
            pmarray.from_array(a, f"{tmp_path}/g#b")
        np.testing.assert_array_equal(a[...], values)
    pmarray.copy(f"{tmp_path}/g#a", f"{tmp_path}/g#b", layout="col")
    np.testing.assert_array_equal(contents(f"{tmp_path}/g#b"), values)


def test_a_source_that_shrinks_meanwhile(tmp_path: Path) -> None:
    with pmarray.open(tmp_path / "a", (3_000_000,)) as a:

        def shrink(done: int, total: int) -> None:
            if 0 < done < total:
                a.resize(1000)

        with pytest.raises(LayoutError, match="has shrunk"):
            pmarray.copy(a, tmp_path / "b", progress=shrink)
    with pmarray.open_group(tmp_path / "b", mode="r") as b:
        assert not len(b)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("scheme", ["memmap", "zarr"])
@pytest.mark.parametrize("attempts", [4, 1000])
def test_a_source_whose_writer_is_fast(
    attempts: int, scheme: str, whole: bool, tmp_path: Path
) -> None:
    """What was there is kept until metadata are saved; then the copy is begun anew."""
    source = pmarray.open_group(f"zarr:{tmp_path}/a")
    source.attrs["of"] = "a"
    x = source.create("x", (1000, 50), chunks=(1000, 5))
    x[...] = 0
    source.flush()
    begun = 0

    def overtake(done: int, total: int) -> None:
        nonlocal begun
        begun += not done
        if begun < attempts and 0 < done < total:
            with source.transaction():
                x[...] = x[0, 0] + 1
            source.attrs["commits"] = begun
            source.flush()

    to = f"memmap:{tmp_path}/b" if scheme == "memmap" else f"zarr:memory://{tmp_path}"

    def copy() -> None:
        if whole:
            pmarray.copy_group(source.url, to, cache="128 KiB", progress=overtake)
        else:
            pmarray.copy(f"{source.url}#x", f"{to}#x", cache="128 KiB", progress=overtake)

    if attempts == 1000:
        with pytest.raises(SnapshotExpiredError, match="commits faster than it can be copied"):
            copy()
        with pmarray.open_group(to) as there:
            assert (len(there), len(there.attrs)) == (0, 0)
    else:
        copy()
        assert begun == attempts
        with pmarray.open_group(to, mode="r") as there:
            assert (there["x"][:] == x[0, 0]).all()
    source.close()


def test_an_npy_file_of_another_program(tmp_path: Path) -> None:
    values = np.asfortranarray(np.arange(600.0).reshape(20, 30))
    np.save(tmp_path / "x.npy", values)
    pmarray.copy(tmp_path / "x.npy", f"{tmp_path}/g#x")
    with pmarray.open(f"{tmp_path}/g#x", mode="r") as x:
        assert x.layout == "col"
        np.testing.assert_array_equal(x[...], values)
    with pytest.raises(GroupNotFoundError, match="new array goes into a directory"):
        pmarray.copy(f"{tmp_path}/g#x", tmp_path / "y.npy")


# -- groups -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [None, "row", "col"])
def test_a_group_comes_with_all_arrays_and_attributes(tmp_path: Path, layout: Any) -> None:
    name = f"dram:{uuid.uuid4()}"
    values = {"x": np.arange(12.0).reshape(3, 4), "y": np.array(5, "i2"), "z": np.zeros((0, 3))}
    with pmarray.open_group(name) as group:
        for key, value in values.items():
            group.create(key, value.shape, value.dtype, layout="col")[...] = value
        group.attrs["step"] = {"of": [1, 2]}
    steps: list[tuple[int, int]] = []
    pmarray.copy_group(
        name, tmp_path / "g", layout=layout, progress=lambda *step: steps.append(step)
    )
    with pmarray.open_group(tmp_path / "g", mode="r") as copied:
        assert list(copied) == list(values)
        assert dict(copied.attrs) == {"step": {"of": [1, 2]}}
        for key, value in values.items():
            np.testing.assert_array_equal(copied[key][...], value)
            assert copied[key].layout == layout or "col"
    assert steps[-1] == (98, 98)


def test_a_group_is_replaced_as_a_whole(tmp_path: Path) -> None:
    make(f"{tmp_path}/a#x", np.arange(3))
    with pmarray.open_group(tmp_path / "b") as b:
        b.create("old", (2,))
        b.attrs["old"] = 1
    with pytest.raises(GroupExistsError, match="mode='w' replaces"):
        pmarray.copy_group(tmp_path / "a", tmp_path / "b")
    with pmarray.open_group(tmp_path / "a", mode="r") as source:
        pmarray.copy_group(source, tmp_path / "b", mode="w")
        assert not source.closed
    with pmarray.open_group(tmp_path / "b", mode="r") as b:
        assert (list(b), dict(b.attrs)) == (["x"], {})


# -- refusals -----------------------------------------------------------------------------------


def test_what_is_there_is_replaced_on_demand_only(tmp_path: Path) -> None:
    make(f"{tmp_path}/a", np.arange(3))
    make(f"{tmp_path}/b", np.zeros((2, 2)))
    make(f"{tmp_path}/b#other", np.ones(2))
    with pytest.raises(ArrayExistsError, match="mode='w' replaces it"):
        pmarray.copy(tmp_path / "a", tmp_path / "b")
    assert contents(tmp_path / "b").shape == (2, 2)
    pmarray.copy(tmp_path / "a", tmp_path / "b", mode="w")
    np.testing.assert_array_equal(contents(tmp_path / "b"), np.arange(3))
    assert contents(f"{tmp_path}/b#other").all()
    with pytest.raises(ValueError, match="mode='a'"):
        pmarray.copy(tmp_path / "a", tmp_path / "b", mode="a")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["w-", "w"])
def test_a_source_is_not_its_own_destination(tmp_path: Path, mode: Any) -> None:
    make(f"{tmp_path}/g#a", np.arange(3))
    (tmp_path / "link").symlink_to(tmp_path / "g")
    with pytest.raises(URLError, match="is the source itself"):
        pmarray.copy(f"{tmp_path}/g#a", f"{tmp_path}/link#a", mode=mode)
    with pmarray.open(f"{tmp_path}/g#a", mode="r") as a, pytest.raises(URLError, match="itself"):
        pmarray.copy(a.T, f"{tmp_path}/g#a", mode=mode)
    with pytest.raises(URLError, match="itself"):
        pmarray.copy_group(tmp_path / "g", tmp_path / "link", mode=mode)
    np.testing.assert_array_equal(contents(f"{tmp_path}/g#a"), np.arange(3))


def test_names_and_layouts_that_cannot_be(tmp_path: Path) -> None:
    make(f"{tmp_path}/g#a", np.arange(3))
    cases: list[tuple[Callable[[], None], str]] = [
        (lambda: pmarray.copy(f"{tmp_path}/g#a", "dram:"), "would be gone"),
        (lambda: pmarray.copy_group(tmp_path / "g", "dram:"), "would be gone"),
        (lambda: pmarray.copy_group(f"{tmp_path}/g#a", "dram:x"), "a whole group is meant"),
        (lambda: pmarray.copy_group(tmp_path / "g", "dram:x#a"), "leave out '#a'"),
    ]
    for refused, match in cases:
        with pytest.raises(URLError, match=match):
            refused()
    with pytest.raises(LayoutError):
        pmarray.copy(f"{tmp_path}/g#a", tmp_path / "new", layout="diagonal")  # type: ignore[arg-type]
    with pytest.raises(ArrayNotFoundError, match="it holds a"):
        pmarray.copy(tmp_path / "g", tmp_path / "new")
    assert not (tmp_path / "new").exists()


# -- a copy that dies ---------------------------------------------------------------------------


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    make(f"{tmp_path}/a", np.ones((4000, 600)))
    make(f"{tmp_path}/b", np.zeros(2))

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    for name in ("b", "new"):
        with pytest.raises(KeyboardInterrupt):
            pmarray.copy(tmp_path / "a", tmp_path / name, mode="w", progress=interrupt)
    np.testing.assert_array_equal(contents(tmp_path / "b"), np.zeros(2))
    with pmarray.open_group(tmp_path / "new", mode="r") as new:
        assert not len(new)
    assert len(list((tmp_path / "b" / "data").iterdir())) == 1
    assert not list((tmp_path / "new" / "data").iterdir())


@pytest.mark.parametrize("replaced", [False, True])
def test_a_killed_copy_is_no_array(
    tmp_path: Path, python: Callable[..., Any], *, replaced: bool
) -> None:
    make(f"{tmp_path}/a", np.ones((4000, 600)), "col")
    if replaced:
        make(f"{tmp_path}/b", np.arange(5))
    process = python(
        """
        import os, signal, sys, pmarray
        def die(done, total):
            if done > total // 2:
                os.kill(os.getpid(), signal.SIGKILL)
        pmarray.copy(sys.argv[1] + "/a", sys.argv[1] + "/b", layout="row", mode="w", cache="1 MiB",
                     progress=die)
        """,
        tmp_path,
    )
    process.communicate(timeout=60)
    assert process.returncode == -9
    for mode in ("r", "r+"):  # a reader beside the wreck, and the writer that clears it away
        with pmarray.open_group(tmp_path / "b", mode=mode) as group:
            assert list(group) == (["array"] if replaced else [])
            if replaced:
                np.testing.assert_array_equal(group["array"][...], np.arange(5))
            if mode == "r+":
                group.attrs["written"] = True
    assert len(list((tmp_path / "b" / "data").iterdir())) == replaced
    pmarray.copy(tmp_path / "a", tmp_path / "b", mode="w")
    assert contents(tmp_path / "b").all()


# -- traffic and memory -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "read", "written"),
    [((3000, 2500), "col", "row"), ((3000, 2500), "row", "col"), ((70_000, 100), "col", "row"),
     ((40, 300, 600), "row", "col"), ((40, 300, 600), "col", "row"), ((2500, 3000), "row", "row")],
)  # fmt: skip
def test_nothing_is_read_or_written_twice(
    shape: Any, read: Any, written: Any, scratch: Path
) -> None:
    """An array seven times the memory and more; counted by the kernel."""
    if not Path("/proc/self/io").exists():
        pytest.skip("this kernel does not count bytes read")
    with pmarray.open(scratch / "a", shape, "float32", layout=read) as a:
        for i, box in enumerate(a.iter_chunks(1 << 20)):
            a[box] = i
    with pmarray.open_group(scratch / "b") as group, group.transaction():
        group.attrs["journal"] = "made once, and not counted"
    before = traffic()
    pmarray.copy(scratch / "a", scratch / "b", layout=written, cache="4 MiB")
    after = traffic()
    # Some of what is in memory is mapped, which the kernel does not count.
    for key, least in (("rchar", 0.9), ("wchar", 1)):
        factor = (after[key] - before[key]) / (4 * math.prod(shape))
        assert least <= factor < 1.04  # padding of lines, blocks at the edges of tiles, metadata
    with pmarray.open(scratch / "a", mode="r") as a, pmarray.open(scratch / "b", mode="r") as b:
        assert b.layout == written
        np.testing.assert_array_equal(a[...], b[...])


def traffic() -> dict[str, int]:
    """Bytes that the process has asked the system for, and has given it."""
    fields = (line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return {name: int(count) for name, count in fields}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("scheme", ["memmap", "dram"])
def test_memory_stays_within_the_cache(turned: bool, scheme: str, scratch: Any) -> None:
    """An array eight times the memory of the copy; ``dram:`` as the source is memory itself."""
    script = f"""
        import resource, threading, pmarray
        threading.stack_size(512 << 10)  # of which all counts, and little is used
        from pmarray._streams.stream import stream  # what is loaded first is not counted
        url = "{scheme}:{scratch}/a"
        with pmarray.open(url, (1 << 18, 32), "float32", layout="col", cache="4 MiB") as a:
            for j in range(32):
                a[:, j] = j
        pmarray.open("dram:small", (9, 9)).close()
        pmarray.copy("dram:small", "{scratch}/small", layout="col", cache="1 MiB")
        status = lambda: int(open("/proc/self/status").read().split("VmData:")[1].split()[0])
        resource.setrlimit(resource.RLIMIT_DATA, ((status() + 4 * 1024 + 6 * 1024) << 10,) * 2)
        pmarray.copy(url, "{scratch}/b", layout={"row" if turned else "col"!r}, cache="4 MiB")
        with pmarray.open("{scratch}/b", mode="r", cache="2 MiB") as b:
            assert (b[::24_999] == list(range(32))).all()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
        env={"OPENBLAS_NUM_THREADS": "1", "PATH": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("rows", [300_000, 500_000, 1_000_000])
def test_default_chunks_are_small_and_large_ones_are_copied_by_default(
    tmp_path: Path, rows: int
) -> None:
    url = f"zarr:{tmp_path}/z#x"
    with pmarray.open(url, (rows, 40), "f4", layout="col") as x:
        assert x.chunks[0] * x.chunks[1] * 4 <= 4 << 20
        x[:10, 0] = 1
    pmarray.copy(url, f"memmap:{tmp_path}/m#x")
    large = f"zarr:{tmp_path}/large#x"
    with pmarray.open(large, (rows, 40), "f4", layout="col", chunks=20, cache="1 GiB") as x:
        x[:10, 0] = 1
    pmarray.copy(large, f"memmap:{tmp_path}/m2#x")
    for place in ("m", "m2"):
        with pmarray.open(f"memmap:{tmp_path}/{place}#x", mode="r") as copied:
            assert copied[:, 0].sum() == 10
