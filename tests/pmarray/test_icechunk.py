"""``icechunk:``: its commit is ours, history, branches, and several writers."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmarray
from pmarray.errors import (
    ConflictError,
    GroupExistsError,
    GroupNotFoundError,
    ReadOnlyError,
    StorageError,
    TransactionError,
    URLError,
)
from tests.pmarray.conftest import Bucket
from tests.pmarray.objectstore import Proxy, drop, slow_down

icechunk = pytest.importorskip("icechunk", reason="icechunk: needs the package icechunk")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"icechunk:{tmp_path}/repository"


def test_a_transaction_is_one_commit_and_readers_stay_where_they_are(url: str) -> None:
    with pmarray.open(url, (100, 0), "f4", layout="col", chunks=1) as a:
        a.flush()
        before = len(a.group.history())
        with pmarray.open(url, mode="r") as reader:
            with a.transaction():
                for column in range(5):
                    a.append(np.full(100, column + 1, "f4"))
                a.group.attrs["step"] = 5
                assert reader.shape == (100, 0)
            assert len(a.group.history()) == before + 1
            assert reader.shape == (100, 0)
            reader.group.refresh()
            assert reader.shape == (100, 5)
            assert reader.group.attrs["step"] == 5
            assert reader[0].tolist() == [1, 2, 3, 4, 5]


def test_what_a_transaction_wrote_is_gone_when_it_raises(url: str) -> None:
    x = np.arange(60.0).reshape(20, 3)
    with pmarray.open(url, x.shape, layout="col", chunks=1, cache="16 KiB") as a:
        a[...] = x
        with pytest.raises(KeyboardInterrupt), a.transaction():
            a[...] = 0
            a.resize((5, 9))
            a.group.create("other", (3,))
            a.group.attrs["step"] = 1
            raise KeyboardInterrupt
        np.testing.assert_array_equal(a[...], x)
        assert list(a.group) == ["array"]
        a.append(x[:, 0])
    with pmarray.open(url, mode="r") as a:
        np.testing.assert_array_equal(a[:, :3], x)
        np.testing.assert_array_equal(a[:, 3], x[:, 0])


def test_history_tags_and_branches(url: str) -> None:
    with pmarray.open(url, (4,), "i4") as a:
        a[...] = 1
        a.flush()
        a.group.create_tag("v1")
        for name_it in (a.group.create_tag, a.group.create_branch):
            with pytest.raises(GroupExistsError, match="another name"):
                name_it("v1")
        first = a.group.history()[0].id
        a[...] = 2
        a.flush()
        a.group.create_branch("try")
        assert a.group.history()[0].parent == first
    with pmarray.open(f"{url}?branch=try", mode="r+") as b:
        b[0] = 9
    for place, expected in {
        "": [2, 2, 2, 2],
        "?branch=try": [9, 2, 2, 2],
        "?tag=v1": [1, 1, 1, 1],
        f"?snapshot={first}": [1, 1, 1, 1],
    }.items():
        with pmarray.open(f"{url}{place}", mode="r") as a:
            assert a[...].tolist() == expected
    with pmarray.open(f"{url}?tag=v1", mode="r+") as a, pytest.raises(ReadOnlyError, match="past"):
        a[0] = 3
    with pytest.raises(GroupNotFoundError, match="v2"):
        pmarray.open(f"{url}?tag=v2", mode="r")
    with pytest.raises(URLError, match="colour"):
        pmarray.open(f"{url}?colour=red", mode="r")
    with pytest.raises(TransactionError, match="icechunk"):
        pmarray.open_group("dram:").history()


def test_two_writers_of_different_chunks_are_joined(url: str) -> None:
    with pmarray.open(url, (10, 4), "i4", layout="col", chunks=1) as a:
        a[...] = 0
    with pmarray.open(url, mode="r+") as one, pmarray.open(url, mode="r+") as two:
        one[:, 0] = 1
        two[:, 1] = 2
        one.flush()
        two.flush()
        assert two[0].tolist() == [0 + 1, 2, 0, 0]
        one.group.refresh()
    with pmarray.open(url, mode="r") as a:
        assert a[3].tolist() == [1, 2, 0, 0]


def test_two_writers_of_one_chunk_are_not(url: str) -> None:
    with pmarray.open(url, (10, 4), "i4", layout="col", chunks=1) as a:
        a[...] = 0
    with pmarray.open(url, mode="r+") as one, pmarray.open(url, mode="r+") as two:
        one[:, 0] = 1
        two[:, 0] = 2
        two[:, 3] = 2
        one.flush()
        with pytest.raises(ConflictError, match="discard"):
            two.flush()
        two.group.discard()
        assert two[0].tolist() == [1, 0, 0, 0]
        two[:, 3] = 3
        two.flush()
        assert two[0].tolist() == [1, 0, 0, 3]


def test_processes_write_at_a_time(url: str, python: Any) -> None:
    with pmarray.open(url, (1000, 12), "i4", layout="col", chunks=1) as a:
        a[...] = 0
    writers = [
        python(
            """
            import sys, pmarray
            a = pmarray.open(sys.argv[1], mode="r+")
            for column in range(int(sys.argv[2]), 12, 3):
                with a.transaction():
                    a[:, column] = column + 1
            a.close()
            """,
            url,
            first,
        )
        for first in range(3)
    ]
    for writer in writers:
        _, error = writer.communicate(timeout=120)
        assert writer.returncode == 0, error
    with pmarray.open(url, mode="r") as a:
        np.testing.assert_array_equal(a[...], np.tile(np.arange(1, 13), (1000, 1)))
        assert len(a.group.history()) >= 12


def test_xarray_and_zarr_read_a_commit(url: str, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    with pmarray.open(url, (10, 3), layout="col", codecs=["zstd"]) as a:
        a[...] = np.arange(30.0).reshape(10, 3)
    storage = icechunk.local_filesystem_storage(str(tmp_path / "repository"))
    session = icechunk.Repository.open(storage).readonly_session("main")
    stored = zarr.open_group(session.store, mode="r")
    np.testing.assert_array_equal(stored["array"][...], np.arange(30.0).reshape(10, 3))


def test_a_killed_writer_leaves_the_last_commit(url: str, python: Any) -> None:
    process = python(
        """
        import os, sys, pmarray
        a = pmarray.open(sys.argv[1], (1000, 4), "i4", layout="col", chunks=1)
        with a.transaction():
            a[...] = 1
        t = a.transaction()
        t.__enter__()
        a[...] = 2
        a.group._session.cache.flush()
        os._exit(9)
        """,
        url,
    )
    process.communicate(timeout=60)
    assert process.returncode == 9
    assert pmarray.verify(url) == []  # what it wrote is no part of the hierarchy
    place = icechunk.local_filesystem_storage(url.removeprefix("icechunk:"))
    swept = icechunk.Repository.open(place).garbage_collect(datetime.now(UTC))
    assert swept.chunks_deleted > 0
    with pmarray.open(url, mode="r+") as a:
        assert (a[...] == 1).all()


# -- on S3 ---------------------------------------------------------------------------------------


def test_a_repository_on_s3_takes_transactions_and_several_writers(bucket: Bucket) -> None:
    url = bucket.url(scheme="icechunk")
    x = np.random.default_rng(0).normal(size=(500, 6)).astype("f4")
    with pmarray.open(url, (500, 0), "f4", layout="col", chunks=1, codecs=["zstd"]) as a:
        for column in range(6):
            with a.transaction():
                a.append(x[:, column])
                a.group.attrs["step"] = column
        with pytest.raises(KeyboardInterrupt), a.transaction():
            a[...] = 0
            raise KeyboardInterrupt
        a.group.create_tag("all")
    assert len(bucket.keys("x/chunks/")) == 6
    with pmarray.open(url, mode="r+") as one, pmarray.open(url, mode="r+") as two:
        one[:, 0] = 1
        two[:, 1] = 2
        one.flush()
        two.flush()
        assert two[0, :2].tolist() == [1, 2]
        one[:, 5] = 1
        two[:, 5] = 2
        one.flush()
        with pytest.raises(ConflictError):
            two.flush()
        two.group.discard()
    with pmarray.open(f"{url}&tag=all", mode="r") as a:
        np.testing.assert_array_equal(a[...], x)
        assert a.group.attrs["step"] == 5


def test_a_bad_network_is_borne_and_a_lost_server_loses_nothing(
    bucket: Bucket, proxy: Proxy
) -> None:
    url = bucket.url(endpoint=proxy.endpoint, scheme="icechunk", options="&max_retries=4")
    x = np.arange(300.0).reshape(50, 6)
    with pmarray.open(url, (50, 0), layout="col", chunks=1) as a:
        for column in range(6):
            proxy.faults = [slow_down, None, drop]
            with a.transaction():
                a.append(x[:, column])
        proxy.stop()
        a[:, 0] = -1
        with pytest.raises(StorageError, match="flush again"):
            a.flush()
        proxy.start()
        a.flush()
    with pmarray.open(bucket.url(scheme="icechunk"), mode="r") as a:
        assert a[:, 0].tolist() == [-1] * 50
        np.testing.assert_array_equal(a[:, 1:], x[:, 1:])


def test_a_missing_bucket_is_an_error_that_names_it(bucket: Bucket) -> None:
    url = bucket.url(scheme="icechunk").replace(bucket.name, "no-such-bucket")
    with pytest.raises((StorageError, GroupNotFoundError), match="no-such-bucket"):
        pmarray.open(url, mode="r")
    with pytest.raises(StorageError, match="no-such-bucket"):
        pmarray.open(url, (3,)).flush()
