"""`zarr:` in an S3 server: what arrives there, what is refused, and what a bad network does."""

from __future__ import annotations

import errno
import json
import pickle
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
import zarr.codecs
from hypothesis import given
from hypothesis import strategies as st

import pmarray
from pmarray.errors import (
    DamagedError,
    GroupNotFoundError,
    ReadOnlyError,
    StorageError,
    TransactionError,
    URLError,
    WriteBehindError,
)
from tests.pmarray.conftest import Bucket
from tests.pmarray.histories import write_at_random
from tests.pmarray.objectstore import KEYS, Proxy, Server, delay, drop, half_an_answer, slow_down
from tests.sampling import examples

FAST = "&timeout=2s&connect_timeout=1s&retry_timeout=4s&max_retries=4"


def normal(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(len(shape)).normal(size=shape).astype("float32")


# -- what arrives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["row", "col"])
def test_an_array_lives_in_a_bucket(bucket: Bucket, layout: Any) -> None:
    model = normal(50, 23)
    with pmarray.open_group(bucket.url()) as group:
        x = group.create("x", (50, 20), "float32", layout=layout, chunks=(20, 8))
        x[...] = model[:, :20]
        x.append(model[:, 20:] if layout == "col" else np.empty((0, 20), "float32"))
        x.resize((50, 23))
        x[:, 20:] = model[:, 20:]
        group.attrs["step"] = 3
        group.flush()
        with pmarray.open_group(bucket.url(), mode="r") as other:  # while it is open
            np.testing.assert_array_equal(other["x"][...], model)
            assert other["x"].layout == layout
            assert dict(other.attrs) == {"step": 3}
            with pytest.raises(ReadOnlyError):
                other["x"][0, 0] = 1
    assert bucket.keys("x/x/c/") == {f"x/x/c/{i}/{j}" for i in range(3) for j in range(3)}


def test_shrinking_and_deleting_remove_objects(bucket: Bucket) -> None:
    with pmarray.open_group(bucket.url()) as group:
        for name in "ab":
            group.create(name, (40, 40), chunks=(10, 10))[...] = 1
        group.flush()
        assert len(bucket.keys("x/a/c/")) == 16
        group["a"].resize((15, 40))
        del group["b"]
        group.flush()
        assert {key.split("/")[3] for key in bucket.keys("x/a/c/")} == {"0", "1"}
        assert bucket.keys("x/b") == set()
        group["a"].resize((40, 40))
        expected = np.zeros((40, 40))
        expected[:15] = 1
        np.testing.assert_array_equal(group["a"][...], expected)
    with pmarray.open_group(bucket.url(), mode="r") as group:
        assert list(group) == ["a"]
        np.testing.assert_array_equal(group["a"][...], expected)
    with pmarray.open(bucket.url(), (2,), mode="w") as array:
        assert array.shape == (2,)


@pytest.mark.parametrize("layout", ["row", "col"])
@pytest.mark.parametrize(
    "options",
    [
        {"codecs": ["zstd"]},
        {"codecs": []},
        {"shards": (40, 16)},
    ],
    ids=["zstd", "raw", "shards"],
)
def test_other_libraries_read_the_same_bucket(
    bucket: Bucket, layout: Any, options: dict[str, Any]
) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    model = normal(50, 23)
    with pmarray.open_group(bucket.url()) as group:
        array = group.create(
            "x", model.shape, model.dtype, layout=layout, chunks=(20, 8), **options
        )
        array[...] = model
    store = zarr.storage.ObjectStore(_obstore(bucket), read_only=True)
    found = zarr.open_group(store, mode="r")["x"]
    assert isinstance(found, zarr.Array)
    np.testing.assert_array_equal(np.asarray(found[...]), model)
    opened = tensorstore.open(
        {
            "driver": "zarr3",
            "kvstore": {
                "driver": "s3",
                "bucket": bucket.name,
                "path": "x/x/",
                "endpoint": bucket.server.endpoint,
                "aws_region": "us-east-1",
            },
        }
    ).result()
    np.testing.assert_array_equal(opened.read().result(), model)


def test_what_zarr_python_wrote_there_opens(bucket: Bucket) -> None:
    model = normal(30, 30)
    store = zarr.storage.ObjectStore(_obstore(bucket))
    zarr.create_array(store, name="y", data=model, chunks=(7, 7))
    with pmarray.open(bucket.url() + "#y", mode="r+") as array:
        np.testing.assert_array_equal(array[...], model)
        array[3] = 5
        model[3] = 5
    found = zarr.open_group(store, mode="r")["y"]
    assert isinstance(found, zarr.Array)
    np.testing.assert_array_equal(np.asarray(found[...]), model)


def _obstore(bucket: Bucket) -> Any:
    import obstore.store

    return obstore.store.S3Store(
        bucket.name,
        prefix="x",
        endpoint=bucket.server.endpoint,
        region="us-east-1",
        client_options={"allow_http": True},
    )


@examples(0.2)
@given(data=st.data())
def test_random_writes_and_shapes_match_numpy(s3_server: Server, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, text in KEYS.items():
            monkeypatch.setenv(name, text)
        bucket = Bucket(s3_server, "examples")
        s3_server.client.create_bucket(Bucket=bucket.name)
        path = f"{time.monotonic_ns()}"
        write_at_random(data, bucket.url(path), sessions=3)


def test_an_array_is_pickled_by_its_url(bucket: Bucket) -> None:
    with pmarray.open(bucket.url(), (3, 4)) as array:
        array[...] = 7
        with pickle.loads(pickle.dumps(array)) as other:
            assert other.group.url == array.group.url
            np.testing.assert_array_equal(other[...], np.full((3, 4), 7.0))


# -- what is refused -------------------------------------------------------------------------------


def test_transactions_are_refused_and_what_to_do_is_said(bucket: Bucket) -> None:
    with pmarray.open(bucket.url(), (3,)) as array:
        with pytest.raises(TransactionError, match="icechunk:"):
            with array.group.transaction():
                pass
        array[...] = 1  # and nothing is in the way of going on
    with pmarray.open(bucket.url(), mode="r") as array:
        assert array[...].tolist() == [1, 1, 1]


def test_a_missing_bucket(bucket: Bucket) -> None:
    nowhere = Bucket(bucket.server, "no-such-bucket")
    with pytest.raises(GroupNotFoundError):
        pmarray.open(nowhere.url(), mode="r")
    with pytest.raises(StorageError, match=r"no such bucket or directory: create it") as caught:
        pmarray.open(nowhere.url(), (3,))
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == "s3://no-such-bucket/x/array"
    assert "NoSuchBucket" in str(caught.value)
    assert len(str(caught.value)) < 500  # neither XML nor the structs of a library


def test_credentials_that_the_server_knows_not(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pmarray.open(bucket.url(), (3,)) as array:
        array[...] = 1
    # From here on the server looks at credentials, and it knows of nobody.
    _check_credentials(bucket.server, after=0)
    try:
        for path in ("x", "y"):  # what is there, and what is not
            with pytest.raises(StorageError, match="check the credentials") as caught:
                pmarray.open(bucket.url(path), (3,))
            assert caught.value.errno == errno.EACCES
            assert KEYS["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)
    finally:
        _check_credentials(bucket.server, after=10**9)


def _check_credentials(server: Server, after: int) -> None:
    request = urllib.request.Request(
        f"{server.endpoint}/moto-api/reset-auth",
        data=str(after).encode(),
        headers={"Content-Type": "text/plain"},
        method="POST",
    )
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("&secret_access_key=hush", "environment"),
        ("&aws_session_token=hush", "environment"),
        ("&timeout=5", "500ms, 30s or 2min"),
        ("&max_retries=many", "number"),
        ("&bogus=1", "bogus"),
        ("&store=floppy", "obstore or fsspec"),
    ],
)
def test_options_that_cannot_be(bucket: Bucket, options: str, text: str) -> None:
    with pytest.raises(URLError, match=text) as caught:
        pmarray.open(bucket.url(options=options), (3,))
    assert "hush" not in str(caught.value)


def test_metadata_of_no_sense_are_damage(bucket: Bucket) -> None:
    with pmarray.open(bucket.url(), (3,)) as array:
        array[...] = 1
    put = bucket.server.client.put_object
    put(Bucket=bucket.name, Key="x/array/c/0", Body=b"no chunk of any codec")
    with pmarray.open(bucket.url(), mode="r") as array:
        with pytest.raises(DamagedError, match=r"array/c/0"):
            array[...]
    put(Bucket=bucket.name, Key="x/zarr.json", Body=b"{")
    with pytest.raises(DamagedError, match=r"zarr"):
        pmarray.open(bucket.url(), mode="r")


# -- a bad network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [slow_down, drop, half_an_answer], ids=lambda f: f.__name__)
def test_what_fails_now_and_then_is_tried_again(
    bucket: Bucket, proxy: Proxy, fault: Callable[..., bool]
) -> None:
    model = normal(60, 40)
    url = bucket.url(endpoint=proxy.endpoint)
    with pmarray.open(url, model.shape, model.dtype, chunks=(20, 20)) as array:
        if fault is not half_an_answer:  # to a PUT that is a whole one
            proxy.faults = [fault, None] * 4
        array[...] = model
        array.flush()
        assert not proxy.faults
    with pmarray.open(url, mode="r") as array:
        proxy.faults = [fault, None] * 2
        np.testing.assert_array_equal(array[...], model)
        assert not proxy.faults
    with pmarray.open(bucket.url(), mode="r") as array:
        np.testing.assert_array_equal(array[...], model)


def test_a_slow_answer_is_given_up_and_asked_for_again(bucket: Bucket, proxy: Proxy) -> None:
    model = normal(20, 20)
    url = bucket.url(endpoint=proxy.endpoint, options="&timeout=500ms&retry_timeout=5s")
    with pmarray.open(url, model.shape, model.dtype) as array:
        array[...] = model
    with pmarray.open(url, mode="r") as array:
        proxy.faults = [delay(8)]
        start = time.monotonic()
        np.testing.assert_array_equal(array[...], model)
        assert 0.4 < time.monotonic() - start < 7


@pytest.mark.parametrize("fault", [slow_down, drop, delay(3)], ids=["slow_down", "drop", "delay"])
def test_nothing_is_lost_when_all_fails_and_a_later_flush_succeeds(
    bucket: Bucket, proxy: Proxy, fault: Callable[..., bool]
) -> None:
    model = normal(60, 40)
    url = bucket.url(endpoint=proxy.endpoint, options=FAST)
    with pmarray.open(url, (60, 20), model.dtype, layout="col", chunks=(60, 10)) as array:
        array[...] = model[:, :20]
        array.flush()
        proxy.always = fault
        array.append(model[:, 20:])
        start = time.monotonic()
        with pytest.raises(WriteBehindError, match=r"still in memory.*flush again") as caught:
            array.flush()
        assert time.monotonic() - start < 10
        assert isinstance(caught.value.__cause__, StorageError)
        np.testing.assert_array_equal(array[...], model)  # from the cache
        proxy.always = None
        array.flush()
        with pmarray.open(bucket.url(), mode="r") as other:
            np.testing.assert_array_equal(other[...], model)


def test_a_server_that_was_gone_and_is_back(bucket: Bucket, proxy: Proxy) -> None:
    url = bucket.url(endpoint=proxy.endpoint, options=FAST)
    proxy.stop()
    with pytest.raises(StorageError, match="check the endpoint"):
        pmarray.open(url, (30, 4), chunks=(10, 4))
    proxy.start()
    with pmarray.open_group(url) as group:
        array = group.create("array", (30, 4), chunks=(10, 4))
        array[...] = 1
        group.flush()
        with pmarray.open_group(url, mode="r+") as other:
            proxy.stop()
            with pytest.raises(StorageError, match="cannot read"):
                other["array"][...]
            with pytest.raises(StorageError):  # becoming the writer reads what is there
                other["array"][0] = 2
            with pytest.raises(StorageError):
                group.create("b", (3,))
            group.attrs["step"] = 1
            with pytest.raises(StorageError, match="cannot read"):  # what it would replace
                group.flush()
            array.resize((15, 4))
            with pytest.raises(StorageError, match="cannot delete"):
                group.flush()
            proxy.start()
            np.testing.assert_array_equal(other["array"][...], np.ones((30, 4)))
            group.flush()
            other.refresh()
            assert other["array"].shape == (15, 4)
            assert dict(other.attrs) == {"step": 1}
            other["array"][0] = 2
    assert bucket.keys("x/array/c/") == {"x/array/c/0/0", "x/array/c/1/0"}
    with pmarray.open_group(bucket.url(), mode="r") as group:
        assert list(group) == ["array"]
        assert group["array"][:, 0].tolist() == [2, *[1] * 14]


def test_closing_says_what_could_not_be_written(bucket: Bucket, proxy: Proxy) -> None:
    url = bucket.url(endpoint=proxy.endpoint, options=FAST)
    array = pmarray.open(url, (30, 4))
    array[...] = 1
    proxy.stop()
    start = time.monotonic()
    with pytest.raises(StorageError, match="error sending request"):
        array.close()
    assert time.monotonic() - start < 20
    array.close()  # it is closed, and stays so


def test_a_failed_write_is_over_before_it_is_reported(bucket: Bucket, proxy: Proxy) -> None:
    """A write that is still under way would land on one that was made after the error."""
    options = "&timeout=5s&retry_timeout=1s&max_retries=0"
    url = bucket.url(endpoint=proxy.endpoint, options=options)
    with pmarray.open(url, (16, 4), chunks=(4, 4)) as array:
        array.flush()
        proxy.faults = [slow_down, delay(1.5), delay(1.5), delay(1.5)]
        array[...] = 1
        with pytest.raises(WriteBehindError):
            array.flush()
        array[...] = 2
        array.flush()
        time.sleep(2)
    with pmarray.open(bucket.url(), mode="r") as array:
        assert (array[...] == 2).all()


@pytest.mark.parametrize("library", ["obstore", "fsspec"])
def test_what_a_killed_writer_has_left_is_told(
    bucket: Bucket, library: str, python: Callable[..., Any], tmp_path: Path
) -> None:
    url = bucket.url() if library == "obstore" else f"zarr:local://{tmp_path}/x?auto_mkdir=1"
    process = python(
        """
        import os, sys, pmarray
        group = pmarray.open_group(sys.argv[1])
        group.create("kept", (20, 4), chunks=(10, 4))[...] = 1
        group.flush()
        group.create("lost", (20, 4), chunks=(10, 4))[...] = 2
        group["kept"].append([[3.0] * 4] * 10)
        group._session.cache.flush()
        os._exit(9)
        """,
        url,
    )
    assert process.wait(60) == 9, process.stderr.read()
    if library == "obstore":
        client = bucket.server.client
        client.put_object(Bucket=bucket.name, Key="x/notes/of/others", Body=b"?")
    found = pmarray.verify(url)
    assert {one.where for one in found} == {"lost/", "kept/c/2/0"}
    assert all("delete it when nobody is writing" in one.message for one in found)
    assert not any(one.damaged for one in found)
    with pmarray.open_group(url, mode="r+") as group:
        assert sorted(group) == ["kept"]
        np.testing.assert_array_equal(group["kept"][...], np.ones((20, 4)))
        assert group.create("lost", (20, 4), chunks=(10, 4))[...].sum() == 0
    assert [one.where for one in pmarray.verify(url)] == ["kept/c/2/0"]


def test_the_group_document_is_written_after_the_chunks(bucket: Bucket, proxy: Proxy) -> None:
    with pmarray.open(bucket.url(endpoint=proxy.endpoint), (4, 0), layout="col") as array:
        proxy.requests.clear()
        array.append(np.ones((4, 2)))  # which is written behind, perhaps before `flush`
        array.flush()
        puts = [request.split("?")[0] for request in proxy.requests if request.startswith("PUT")]
    last = [put.rsplit("/x/", 1)[1] for put in puts]
    assert last.index("array/c/0/0") < last.index("array/zarr.json")
    body = bucket.server.client.get_object(Bucket=bucket.name, Key="x/array/zarr.json")["Body"]
    assert json.loads(body.read())["shape"] == [4, 2]
