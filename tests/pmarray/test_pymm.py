"""``?engine=pymm``: with IBM's PyMM where it is installed, and with what else has its name.

PyMM leaves a directory to one process until that ends, and keeps the memory of every shelf as long;
so shelves here are few and small.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

import pmarray
from pmarray.backends.shelf import pymm
from pmarray.errors import (
    GroupNotFoundError,
    StorageError,
    URLError,
)
from pmarray.testing import ArrayMachine
from tests.persistent import MEMORY
from tests.sampling import examples

real = pytest.mark.skipif(not pymm.is_installed(), reason=f"{pymm.why_not()}")
pytestmark = pytest.mark.filterwarnings("ignore::pmarray.PersistenceWarning")
OPTIONS = "?engine=pymm&size=128MiB"


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pmarray-pymm-", dir=MEMORY) as path:
        yield Path(path)


def run(source: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, where a shelf may be left open."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(source), *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
    )


class OnPyMM(ArrayMachine):
    def url(self) -> str:
        self.directory = tempfile.TemporaryDirectory(prefix="pmarray-machine-", dir=MEMORY)
        return f"shelf:{self.directory.name}/group{OPTIONS}"

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "directory"):
            self.directory.cleanup()


TestOnPyMM: Any = real(OnPyMM.TestCase)
TestOnPyMM.settings = examples(0.2, suppress_health_check=list(HealthCheck))


@real
def test_one_process_at_a_time_and_what_it_leaves(directory: Path) -> None:
    first = run(
        """
        import pmarray, subprocess, sys
        url = sys.argv[1]
        with pmarray.open(url, (1000, 3), "float32", layout="col") as a:
            a[:, 1] = 2
        # Closed, and still its own: PyMM would abort the other process.
        other = "import pmarray, sys; pmarray.open(sys.argv[1], mode='r')"
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", other, url],
                              capture_output=True, text=True)
        print(done.returncode, done.stderr.splitlines()[-1])
        """,
        f"shelf:{directory}/g{OPTIONS}",
    )
    assert first.stdout.startswith("1 pmarray.errors.GroupLockedError"), first
    assert "until that ends" in first.stdout
    assert first.stderr == ""
    second = run(
        """
        import pmarray, sys
        with pmarray.open(sys.argv[1], mode="r") as a:  # found without being told the engine
            print(a.shape, a.layout, float(a[:].sum()))
        print(pmarray.verify(sys.argv[1]))
        """,
        f"shelf:{directory}/g",
    )
    assert second.stdout == "(1000, 3) col 2000.0\n[]\n", second.stderr


@real
def test_what_was_committed_survives_kill_9_and_the_rest_does_not(directory: Path) -> None:
    url = f"shelf:{directory}/g{OPTIONS}"
    killed = run(
        """
        import os, pmarray, signal, sys
        group = pmarray.open_group(sys.argv[1])
        x = group.create("x", (5000, 4), layout="col")
        with group.transaction():
            x[:] = 1
        with group.transaction():
            x[:, 2] = 7
            x[3] = 8
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        url,
    )
    assert killed.returncode == -signal.SIGKILL
    done = run(
        "import pmarray, sys; a = pmarray.open(sys.argv[1] + '#x', mode='r+'); "
        "a[0, 0] = 1; print(set(a[:].ravel().tolist()))",
        url,
    )
    assert done.stdout == "{1.0}\n", done.stderr


@real
def test_two_groups_a_copy_and_two_handles_in_one_process(directory: Path) -> None:
    done = run(
        """
        import pmarray, shutil, sys
        from pmarray.errors import DamagedError, GroupLockedError
        place, options = sys.argv[1:]
        one = pmarray.open(f"shelf:{place}/one{options}", (1000,), "int8")
        two = pmarray.open(f"shelf:{place}/two{options}", (1000,), "int8")
        one[:], two[:] = 1, 2
        one.flush(), two.flush()
        print(one.sum(), two.sum())
        reader = pmarray.open(f"shelf:{place}/one", mode="r")
        with one.transaction():
            one[:] = 3
            print(reader.sum())
        try:
            pmarray.open(f"shelf:{place}/one", mode="r+")[0] = 1
        except GroupLockedError as error:
            print("in this process already" in str(error))
        shutil.copytree(f"{place}/one", f"{place}/copy")
        try:
            pmarray.open(f"shelf:{place}/copy", mode="r")
        except DamagedError as error:
            print("in another process" in str(error))
        """,
        directory,
        OPTIONS,
    )
    assert done.stdout == "1000 2000\n1000\nTrue\nTrue\n", done.stderr


@real
def test_it_is_silent_and_gives_back_what_it_takes_of_none(directory: Path) -> None:
    done = run(
        """
        import sys, numpy
        import torch
        before = None
        import pmarray
        pmarray.open(f"shelf:{sys.argv[1]}/0{sys.argv[2]}", (3,)).close()
        before = sys.getrefcount(None)
        for i in range(1, 4):
            pmarray.open(f"shelf:{sys.argv[1]}/{i}{sys.argv[2]}", (3,)).close()
        assert sys.getrefcount(None) >= before - 10, (before, sys.getrefcount(None))
        """,
        directory,
        OPTIONS,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@real
def test_a_forked_child_must_not_use_it_and_is_told(directory: Path) -> None:
    done = run(
        """
        import os, pmarray, sys
        a = pmarray.open(sys.argv[1], (3,))
        a[:] = 1
        child = os.fork()
        if not child:
            try:
                a[0]
            except pmarray.errors.ClosedError:
                try:
                    pmarray.open(sys.argv[1], mode="r")
                except pmarray.errors.GroupLockedError:
                    os._exit(7)
            os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), a.sum())
        """,
        f"shelf:{directory}/g{OPTIONS}",
    )
    assert done.stdout == "7 3.0\n", done.stderr


@real
def test_a_full_shelf_is_an_error_and_goes_on(directory: Path) -> None:
    done = run(
        """
        import pmarray, sys
        group = pmarray.open_group(sys.argv[1])
        x = group.create("x", (1 << 20, 0), "float64", layout="col")
        try:
            for i in range(100):
                x.append([i] * (1 << 20), axis=1)
        except pmarray.errors.StorageError as error:
            print(error.errno, x.shape[1] == i, float(x[0, i - 1]) == i - 1)
        del group["x"]
        group.flush()
        group.create("y", (50 << 20,), "int8")[:] = 1
        print(group["y"].sum())
        """,
        f"shelf:{directory}/g{OPTIONS}",
    )
    assert done.stdout == f"28 True True\n{50 << 20}\n", done.stderr


@real
def test_sizes_that_cannot_be(directory: Path) -> None:
    for size, message in (("1MiB", "too small"), ("1000TiB", "does not fit"), ("much", "much")):
        with pytest.raises((StorageError, URLError), match=message):
            pmarray.open(f"shelf:{directory}/{size}?engine=pymm&size={size}", (3,))
        assert not list(directory.glob("*/*.data"))
        with pytest.raises((StorageError, URLError), match=message):  # and not: locked
            pmarray.open(f"shelf:{directory}/{size}?engine=pymm&size={size}", (3,))
    with pytest.raises(GroupNotFoundError):
        pmarray.open(f"shelf:{directory}/none?engine=pymm", mode="r")
    assert not (directory / "none").exists()


# -- where PyMM is not, or another package is ------------------------------------------------------


@pytest.mark.skipif(pymm.is_installed(), reason="the real PyMM is installed")
def test_without_it_the_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(URLError, match=r"IBM's Python Memory Management, is not installed"):
        pmarray.open(f"shelf:{tmp_path}/g?engine=pymm", (3,))
    assert not (tmp_path / "g").exists()


@pytest.mark.skipif(pymm.is_installed(), reason="the real PyMM is installed")
def test_another_package_of_the_name_is_refused_and_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pymm").mkdir()
    (tmp_path / "pymm/__init__.py").write_text("raise SystemExit('a microscope starts')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(URLError, match="microscopes"):
        pmarray.open(f"shelf:{tmp_path}/g?engine=pymm", (3,))
    with pmarray.open(f"shelf:{tmp_path}/g", (3,)) as array:  # by default it is passed over
        array[:] = 1
    assert (tmp_path / "g/pmarray.json").exists()


@pytest.mark.skipif(pymm.is_installed(), reason="the real PyMM is installed")
def test_a_shelf_is_not_taken_for_an_empty_directory_where_pymm_is_missing(tmp_path: Path) -> None:
    (tmp_path / "pmarray-0123456789ab.data").write_bytes(bytes(100))
    (tmp_path / "pmarray-0123456789ab.map").write_text("0x100000000000 0x8000000")
    for mode in ("r", "a", "w"):
        with pytest.raises(URLError, match="not installed"):
            pmarray.open(f"shelf:{tmp_path}", (3,), mode=mode)


@given(st.integers(128, 1 << 20))
def test_an_arena_is_less_than_its_shelf(mebibytes: int) -> None:
    nbytes = pymm.arena_bytes(mebibytes << 20)
    assert 0 < nbytes < mebibytes << 20
    assert nbytes % (2 << 20) == 0
