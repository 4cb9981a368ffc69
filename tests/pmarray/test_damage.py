"""What is damaged, foreign or newer is refused with the reason, and left as it is."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pmarray
from pmarray._formats.metadata import Checkpoint, GroupMetadata
from pmarray._system import osops
from pmarray.errors import (
    DamagedError,
    ForeignDataError,
    GroupNotFoundError,
    PMArrayError,
    StorageError,
)
from tests.sampling import examples

Fingerprint = Callable[[Path], dict[str, str]]


@pytest.fixture
def group(tmp_path: Path) -> Path:
    """A group with two arrays and attributes, closed."""
    root = tmp_path / "g"
    with pmarray.open_group(root) as made:
        made.create("x", (20_000, 3), "float32", layout="col")[...] = 1
        made.create("y", (5,), "int64")[...] = 2
        made.attrs["about"] = {"nested": [1, None, "ä"]}
    return root


def use(root: Path, mode: Any) -> None:
    """Whatever a program might do first."""
    with pmarray.open_group(root, mode=mode) as opened:
        opened["x"][...]
        np.asarray(opened["y"])
        if mode != "r":
            opened["x"][0, 0] = 1


def refused(root: Path, fingerprint: Fingerprint, kind: type[PMArrayError], match: str) -> None:
    before = fingerprint(root)
    for mode in ("r", "r+", "a"):
        with pytest.raises(kind, match=match):
            use(root, mode)
    after = fingerprint(root)
    after.pop("lock", None)
    before.pop("lock", None)
    # Not even touched: the lock is taken, and by no one else.
    assert after.keys() == before.keys()
    assert [v for k, v in after.items() if k != "."] == [v for k, v in before.items() if k != "."]


@pytest.mark.parametrize("keep", [0, 10, 4096, 4097, 50_000])
def test_a_truncated_data_file(group: Path, fingerprint: Fingerprint, keep: int) -> None:
    os.truncate(group / "data/000001.npy", keep)
    refused(group, fingerprint, DamagedError, "truncated: it holds")


@pytest.mark.parametrize("what", ["append", "append in a transaction", "set", "attribute"])
def test_a_data_file_that_is_cut_while_it_is_open_stays_cut(tmp_path: Path, what: str) -> None:
    """Made as long as it was, it would hold zeros in the place of what was committed."""
    root = tmp_path / "live"
    group = pmarray.open_group(root)
    x = group.create("x", (5000, 0), layout="col")
    for k in range(5):
        with group.transaction():
            x.append(np.full(5000, k + 1.0))
    data = root / "data/000001.npy"
    os.truncate(data, 4096 + 60_000)

    def change() -> None:
        if what == "append":
            x.append(np.full(5000, 6.0))
        elif what == "append in a transaction":
            with group.transaction():
                x.append(np.full(5000, 6.0))
        elif what == "set":
            x[:, 4] = 9
        else:
            group.attrs["a"] = 1
        group.flush()

    told = []
    for act in (change, group.close):
        try:
            act()
        except PMArrayError as error:
            told.append(error)
    assert what == "attribute" or isinstance(told[0], DamagedError)
    assert data.stat().st_size == 4096 + 60_000
    assert any(finding.damaged for finding in pmarray.verify(root))


@pytest.mark.parametrize("place", ["c/0/0", "c/0", "c"])
@pytest.mark.parametrize("kind", ["directory", "file", "fifo"])
def test_something_else_in_the_place_of_a_chunk(tmp_path: Path, place: str, kind: str) -> None:
    if (place, kind) == ("c/0/0", "file"):
        pytest.skip("a chunk is a file")
    with pmarray.open_group(f"zarr:{tmp_path}/z") as group:
        group["x"] = np.ones((100, 4))
    path = tmp_path / "z/x" / place
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.touch()
    findings = pmarray.verify(f"zarr:{tmp_path}/z")
    empty = kind == "directory" and place != "c/0/0"  # chunks that are not there hold fill values
    assert any(finding.damaged for finding in findings) != empty
    with pmarray.open_group(f"zarr:{tmp_path}/z", mode="r") as group:
        if empty:
            assert group["x"][...].sum() == 0
        else:
            with pytest.raises(PMArrayError, match=r"is no file|cannot read"):
                group["x"][...]


@pytest.mark.parametrize("url", ["memmap:{}", "zarr:{}"])
def test_what_may_not_be_looked_at_is_not_called_damaged(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pmarray.open_group(url.format(tmp_path / "g")) as group:
        group["x"] = np.ones((100, 4))
    with monkeypatch.context() as patch:

        def refuse(*_: Any) -> int:
            raise PermissionError(13, "Permission denied")

        patch.setattr(osops, "open_file", refuse)
        with pytest.raises(StorageError, match="Permission denied"):
            pmarray.verify(url.format(tmp_path / "g"))
    assert pmarray.verify(url.format(tmp_path / "g")) == []


def test_a_missing_data_file(group: Path, fingerprint: Fingerprint) -> None:
    (group / "data/000001.npy").unlink()
    refused(group, fingerprint, DamagedError, "missing, though")


def test_the_other_arrays_of_a_damaged_group_can_be_read(group: Path) -> None:
    os.truncate(group / "data/000001.npy", 4096)
    with pmarray.open_group(group, mode="r") as opened:
        assert opened["y"][:].tolist() == [2] * 5
    with pmarray.open_group(group) as opened:
        del opened["x"]
    use_y = pmarray.open(f"{group}#y", mode="r+")
    use_y[0] = 3
    use_y.close()


def test_what_is_damaged_can_be_replaced(group: Path) -> None:
    os.truncate(group / "data/000001.npy", 4096)
    with pmarray.open(f"{group}#x", (3,), mode="w") as array:
        array[:] = 4
    assert np.load(group / "x.npy").tolist() == [4, 4, 4]
    os.truncate(group / "data/000002.npy", 4096)
    with pmarray.open_group(group, mode="w") as opened:
        assert list(opened) == []
        assert dict(opened.attrs) == {}


@pytest.mark.parametrize(
    "contents", [b"", b"{", b"garbage", b"\xff\xfe\x00", b"[1, 2]", b"null", b"3", b"[" * 100_000]
)
def test_metadata_of_garbage(group: Path, fingerprint: Fingerprint, contents: bytes) -> None:
    (group / "pmarray.json").write_bytes(contents)
    refused(group, fingerprint, DamagedError, "pmarray.json is damaged")


def test_truncated_metadata(group: Path, fingerprint: Fingerprint) -> None:
    whole = (group / "pmarray.json").read_bytes()
    for keep in (1, len(whole) // 2, len(whole) - 1):
        (group / "pmarray.json").write_bytes(whole[:keep])
        refused(group, fingerprint, DamagedError, "pmarray.json is damaged")


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        ({"format": "zarr"}, ForeignDataError, "not written by pmarray"),
        ({"format": None}, ForeignDataError, "not written by pmarray"),
        ({"version": 999}, ForeignDataError, "has format 999.*install a newer one"),
        ({"version": "1"}, DamagedError, "is damaged"),
        ({"next_file": 7}, DamagedError, "checksum"),
        ({"attrs": {"about": 1}}, DamagedError, "checksum"),
        ({"crc32c": "00000000"}, DamagedError, "checksum"),
        ({"crc32c": None}, DamagedError, "checksum"),
    ],
)
def test_metadata_that_say_something_else(
    group: Path,
    fingerprint: Fingerprint,
    change: dict[str, Any],
    kind: type[PMArrayError],
    match: str,
) -> None:
    body = json.loads((group / "pmarray.json").read_text())
    (group / "pmarray.json").write_text(json.dumps({**body, **change}))
    refused(group, fingerprint, kind, match)


def test_metadata_may_be_formatted_anew(group: Path) -> None:
    """The checksum is of what they say, not of how they are spaced."""
    body = json.loads((group / "pmarray.json").read_text())
    (group / "pmarray.json").write_text(json.dumps(dict(reversed(body.items()))))
    use(group, "r")


@pytest.mark.parametrize("name", ["README.txt", "data/model.pt", "pmarray.jsonl"])
def test_a_directory_of_other_files(tmp_path: Path, fingerprint: Fingerprint, name: str) -> None:
    root = tmp_path / "mine"
    (root / name).parent.mkdir(parents=True)
    (root / name).write_text("precious")
    before = fingerprint(root)
    for mode in ("r", "r+", "a", "w", "w-"):
        with pytest.raises(ForeignDataError, match="it is no group, and nothing was changed"):
            pmarray.open_group(root, mode=mode)
        with pytest.raises(ForeignDataError, match="no group"):
            pmarray.open(root, (3,), mode=mode)
    assert fingerprint(root) == before


def test_a_file_in_place_of_the_directory(tmp_path: Path, fingerprint: Fingerprint) -> None:
    (tmp_path / "mine").write_text("precious")
    before = fingerprint(tmp_path)
    for mode in ("r", "r+", "a", "w", "w-"):
        with pytest.raises(ForeignDataError, match="not a directory"):
            pmarray.open_group(tmp_path / "mine", mode=mode)
    with pytest.raises(PMArrayError):
        pmarray.open_group(tmp_path / "mine/below")
    assert fingerprint(tmp_path) == before


def test_nothing_there_stays_nothing(tmp_path: Path) -> None:
    for mode in ("r", "r+"):
        with pytest.raises(GroupNotFoundError, match="there is no group"):
            pmarray.open_group(tmp_path / "g", mode=mode)
        with pytest.raises(FileNotFoundError):
            pmarray.open(tmp_path / "g", (3,), mode=mode)
    with pytest.raises(GroupNotFoundError):
        pmarray.open(tmp_path / "g")
    assert list(tmp_path.iterdir()) == []


def test_what_a_crash_during_creation_leaves_is_no_obstacle(tmp_path: Path) -> None:
    root = tmp_path / "g"
    (root / "data").mkdir(parents=True)
    (root / "lock").touch()
    (root / "pmarray.json.new").write_text("half")
    with pmarray.open(root, (3,)) as array:
        array[:] = 1
    assert np.load(root / "array.npy").tolist() == [1, 1, 1]


def test_files_that_a_crash_left_are_removed_by_the_next_writer(group: Path) -> None:
    shutil.copy(group / "data/000001.npy", group / "data/000077.npy")
    (group / "data/notes.txt").write_text("mine")
    use(group, "r")
    assert (group / "data/000077.npy").exists(), "a reader removes nothing"
    use(group, "r+")
    assert sorted(p.name for p in (group / "data").iterdir()) == [
        "000001.npy",
        "000002.npy",
        "notes.txt",
    ]


# -- fuzzing -----------------------------------------------------------------------------------

METADATA = Checkpoint(
    GroupMetadata("u", 3, {}, {"a": [1, {"b": None}], "c": "text"}), transaction=4, generation=5
)


@examples(6)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bytes_are_noticed(flips: list[tuple[int, int]]) -> None:
    good = METADATA.to_bytes()
    bad = bytearray(good)
    for position, change in flips:
        bad[position % len(bad)] ^= change
    try:
        found = Checkpoint.from_bytes(bytes(bad), "it")
    except (DamagedError, ForeignDataError):
        return
    assert found == METADATA, "only what means nothing, such as a space, may change unnoticed"


@given(st.binary(max_size=200))
def test_random_metadata_are_refused(junk: bytes) -> None:
    with pytest.raises((DamagedError, ForeignDataError)):
        Checkpoint.from_bytes(junk, "it")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_any_byte_of_any_small_file_may_flip(group: Path, data: st.DataObject) -> None:
    """Refused, or read as it was: never another error, and never other metadata."""
    name = data.draw(st.sampled_from(["pmarray.json", "data/000002.npy", "lock"]))
    good = (group / name).read_bytes()
    position = data.draw(st.integers(0, min(len(good), 5000) - 1))
    bad = bytearray(good)
    bad[position] ^= data.draw(st.integers(1, 255))
    (group / name).write_bytes(bad)
    try:
        with pmarray.open_group(group, mode="r") as opened:
            assert opened["x"].shape == (20_000, 3)
            assert opened.attrs["about"]["nested"] == [1, None, "ä"]
            found = opened["y"][:]
        # The header of a data file is no authority, and a byte of data is a byte of data.
        assert name == "data/000002.npy" or found.tolist() == [2] * 5
        assert position >= 4096 or found.tolist() == [2] * 5
    except (DamagedError, ForeignDataError):
        assert name == "pmarray.json"
    finally:
        (group / name).write_bytes(good)
