"""The simulated disk against a second, naive reading of its rules."""

from __future__ import annotations

import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmarray._system import osops
from tests.crash.check import record, scratch
from tests.crash.events import (
    Barrier,
    DirectoryBarrier,
    Entries,
    Event,
    Persist,
    Resize,
    RigError,
    Store,
    Write,
)
from tests.crash.images import Image, PowerCut, images
from tests.crash.protocols import Undo
from tests.crash.recorder import Recorder
from tests.crash.simdisk import ROOT, Disk, File
from tests.crash.stage import Stage

Shown = frozenset[tuple[str, bytes | str | None]]
"""Paths, and the contents of files, the targets of symbolic links, None for directories."""
WORDS = 3
A, B = 2, 3


def disk_with(a: bytes, b: bytes) -> Disk:
    with scratch() as path:
        (path / "a").write_bytes(a)
        (path / "b").write_bytes(b)
        return Disk.scan(path)


def shown(image: Image) -> Shown:
    return frozenset(
        (path, _look(image, entry, is_directory)) for path, entry, is_directory in image.tree
    )


def _look(image: Image, entry: int | str, is_directory: bool) -> bytes | str | None:
    if is_directory:
        return None
    return entry if isinstance(entry, str) else image.contents[entry].to_bytes()


def contents(image: Shown, path: str) -> bytes:
    found = dict(image)[path]
    assert isinstance(found, bytes)
    return found


def all_shown(disk: Disk) -> set[Shown]:
    everything = PowerCut(disk).all_images(1 << 14)
    assert everything is not None
    assert everything[1] == 8
    return {shown(image) for image in everything[0]}


# -- the second reading: words and lengths one by one, by brute force -----------------------------


def naive_contents(durable: bytes, pending: list[Event]) -> set[bytes]:
    """Choose when each word was last written out, and how many changes of length took effect."""
    found = set()
    for lengths in range(len(pending) + 1):
        # The words and the length after each change, and when a word was cut off for good, or
        # was last stored to before a persist of its line, which here is the whole file.
        stored = [0] * WORDS
        words = [[durable[8 * i : 8 * i + 8].ljust(8, b"\0") for i in range(WORDS)]]
        real, size, earliest = len(durable), len(durable), [0] * WORDS
        for n, event in enumerate(pending, 1):
            now = list(words[-1])
            if isinstance(event, Write):
                for i in range(len(event.data) // 8):
                    now[event.offset // 8 + i] = event.data[8 * i : 8 * i + 8]
                    if isinstance(event, Store):
                        stored[event.offset // 8 + i] = n
                after = max(real, event.offset + len(event.data))
            elif isinstance(event, Persist):
                earliest = [max(pair) for pair in zip(earliest, stored, strict=True)]
                after = real
            else:
                assert isinstance(event, Resize)
                after = max(real, event.nbytes) if event.grow_only else event.nbytes
            if after != real and n <= lengths:
                for i in range(WORDS):
                    if 8 * i >= after and after < size:
                        now[i], earliest[i] = bytes(8), n
                size = after
            real = after
            words.append(now)
        for times in product(*(range(first, len(pending) + 1) for first in earliest)):
            found.add(b"".join(words[t][i] for i, t in enumerate(times))[:size])
    return found


def naive_names(durable: dict[str, int], pending: list[Entries]) -> list[dict[str, int]]:
    found = []
    for kept in product((False, True), repeat=len(pending)):
        names: dict[str, Any] = dict(durable)
        for event, is_kept in zip(pending, kept, strict=True):
            if is_kept:
                names.update(event.changes)
        found.append({name: inode for name, inode in names.items() if inode is not None})
    return found


VALUE = st.sampled_from([b"11111111", b"22222222", b"33333333"])
FILE = st.sampled_from([A, B])
CHANGE = st.one_of(
    st.tuples(st.just("write"), FILE, st.integers(0, WORDS - 1), VALUE),
    st.tuples(st.just("write"), FILE, st.integers(0, WORDS - 2), VALUE.map(lambda v: v + v)),
    st.tuples(st.just("store"), FILE, st.integers(0, WORDS - 1), VALUE),
    st.tuples(st.just("persist"), FILE, st.just(0), st.just(b"")),
    st.tuples(st.just("truncate"), FILE, st.integers(0, WORDS), st.just(b"")),
    st.tuples(st.just("allocate"), FILE, st.integers(0, WORDS), st.just(b"")),
    st.tuples(st.just("rename"), st.just(A), st.just(0), st.just(b"")),
    st.tuples(st.just("unlink"), st.just(B), st.just(0), st.just(b"")),
    st.tuples(st.just("link"), FILE, st.just(0), st.just(b"")),
    st.tuples(st.just("barrier"), FILE, st.just(0), st.just(b"")),
    st.tuples(st.just("names"), FILE, st.just(0), st.just(b"")),
)


def to_event(what: tuple[str, int, int, bytes], start: int) -> Event:
    kind, inode, word, data = what
    end = start + 1
    return {
        "write": Write(start, end, inode, 8 * word, data),
        "store": Store(start, end, inode, 8 * word, data),
        "persist": Persist(start, end, inode, 8 * word, 1),
        "truncate": Resize(start, end, inode, 8 * word, grow_only=False),
        "allocate": Resize(start, end, inode, 8 * word, grow_only=True),
        "rename": Entries(start, end, ROOT, (("a", None), ("b", A))),
        "unlink": Entries(start, end, ROOT, (("b", None),)),
        "link": Entries(start, end, ROOT, (("c", inode),)),
        "barrier": Barrier(start, end, inode, failed=False),
        "names": DirectoryBarrier(start, end, ROOT, failed=False),
    }[kind]


@given(st.lists(CHANGE, max_size=6), st.sampled_from([0, 8, 24]), st.sampled_from([b"", b"B" * 16]))
def test_the_images_are_those_of_the_naive_reading(
    changes: list[tuple[str, int, int, bytes]], size: int, b: bytes
) -> None:
    contents = {A: b"A" * size, B: b}
    disk = disk_with(*contents.values())
    durable = {A: [contents[A]], B: [contents[B]]}
    pending: dict[int, list[Event]] = {A: [], B: []}
    names: list[Entries] = []
    entries: dict[str, int] = {"a": A, "b": B}
    for i, what in enumerate(changes):
        event = to_event(what, 2 * i)
        if isinstance(event, Store):
            length = len(naive_newest(durable[event.inode][0], pending[event.inode]))
            if event.offset + len(event.data) > length:
                continue  # the processor would not let it
        disk.apply(event)
        if isinstance(event, Write | Resize | Persist):
            pending[event.inode].append(event)
        elif isinstance(event, Barrier):
            changed = File(len(durable[event.inode][0]))
            newest = list(naive_contents(durable[event.inode][0], []))
            assert changed.size == len(newest[0])
            durable[event.inode] = [naive_newest(durable[event.inode][0], pending[event.inode])]
            pending[event.inode] = []
        elif isinstance(event, Entries):
            names.append(event)
        else:
            entries, names = naive_names(entries, names)[-1], []
    expected = {
        frozenset((name, chosen[files.index(inode)]) for name, inode in tree.items())
        for tree in naive_names(entries, names)
        for files in [sorted(set(tree.values()))]
        for chosen in product(*(naive_contents(durable[i][0], pending[i]) for i in files))
    }
    assert all_shown(disk) == expected


def naive_newest(durable: bytes, pending: list[Event]) -> bytes:
    data = durable
    for event in pending:
        if isinstance(event, Write):
            data = data.ljust(event.offset, b"\0")
            data = data[: event.offset] + event.data + data[event.offset + len(event.data) :]
        elif not isinstance(event, Persist):
            assert isinstance(event, Resize)
            data = data.ljust(event.nbytes, b"\0")
            data = data if event.grow_only else data[: event.nbytes]
    return data


# -- the rules one by one -------------------------------------------------------------------------


def test_a_trace_with_a_barrier_after_everything_has_one_image() -> None:
    with scratch() as path:
        disk, events = record(Undo(), path)
    for event in events:
        disk.apply(event)
    assert len(list(images(disk, random.Random(0)))) == 1


def test_a_barrier_covers_what_was_over_when_it_began() -> None:
    disk = disk_with(b"A" * 8, b"")
    disk.apply(Write(1, 4, A, 0, b"11111111"))
    disk.apply(Barrier(3, 5, A, failed=False))  # began while the write was going on
    assert len(all_shown(disk)) == 2
    disk.apply(Barrier(6, 7, A, failed=False))
    assert len(all_shown(disk)) == 1


def test_a_failed_barrier_is_not_made_good_by_another() -> None:
    disk = disk_with(b"A" * 16, b"")
    disk.apply(Write(1, 2, A, 0, b"1" * 16))
    disk.apply(Barrier(3, 4, A, failed=True))
    disk.apply(Write(5, 6, A, 8, b"2" * 8))
    disk.apply(Barrier(7, 8, A, failed=False))
    found = {dict(image)["a"] for image in all_shown(disk)}
    assert found == {b"A" * 8 + b"2" * 8, b"1" * 8 + b"2" * 8}


def test_lines_of_a_mapping_are_durable_when_persisted() -> None:
    disk = disk_with(bytes(128), b"")
    disk.apply(Store(1, 2, A, 56, b"1" * 16))  # the end of one line, the start of the next
    assert len(all_shown(disk)) == 4
    disk.apply(Persist(3, 4, A, 64, 1))
    found = {contents(image, "a")[56:72] for image in all_shown(disk)}
    assert found == {bytes(8) + b"1" * 8, b"1" * 16}


def test_what_was_persisted_beyond_the_durable_length_goes_with_the_length() -> None:
    disk = disk_with(b"A" * 8, b"")
    disk.apply(Resize(1, 2, A, 24, grow_only=True))
    disk.apply(Store(3, 4, A, 8, b"1" * 8))
    disk.apply(Persist(5, 6, A, 8, 8))
    found = {contents(image, "a") for image in all_shown(disk)}
    assert found == {b"A" * 8, b"A" * 8 + b"1" * 8 + bytes(8)}
    disk.apply(Resize(7, 8, A, 8, grow_only=False))
    disk.apply(Resize(9, 10, A, 24, grow_only=True))
    disk.apply(Store(11, 12, A, 16, b"2" * 8))
    disk.apply(Persist(13, 14, A, 16, 8))  # that the file was cut may be lost, and this not
    found = {contents(image, "a") for image in all_shown(disk)}
    assert found == {
        b"A" * 8,
        b"A" * 8 + b"1" * 8 + b"2" * 8,
        b"A" * 8 + bytes(8) + b"2" * 8,
    }


def test_a_persist_does_nothing_for_what_a_system_call_has_written() -> None:
    disk = disk_with(bytes(24), b"")
    disk.apply(Write(1, 2, A, 0, b"1" * 16))
    disk.apply(Store(3, 4, A, 8, b"2" * 8))
    disk.apply(Persist(5, 6, A, 0, 24))
    found = {contents(image, "a") for image in all_shown(disk)}
    assert found == {head + b"2" * 8 + bytes(8) for head in (bytes(8), b"1" * 8)}
    disk.apply(Barrier(7, 8, A, failed=False))
    assert len(all_shown(disk)) == 1


def test_garbage_is_not_left_where_memory_was_stored_to() -> None:
    disk = disk_with(b"A" * 4096, b"")
    disk.apply(Store(1, 2, A, 512, b"1" * 512))
    for image in images(disk, random.Random(1), limit=2, samples=500):
        words = {contents(shown(image), "a")[i : i + 8] for i in range(0, 4096, 8)}
        assert words <= {b"A" * 8, b"1" * 8}


def test_garbage_lands_only_where_a_write_is_pending() -> None:
    disk = disk_with(b"A" * 4096, b"B" * 4096)
    disk.apply(Write(1, 2, A, 512, b"1" * 512))
    torn = 0
    for image in images(disk, random.Random(1), limit=2, samples=500):
        contents = dict(shown(image))
        assert contents["b"] == b"B" * 4096
        a = contents["a"]
        assert isinstance(a, bytes)
        assert a[:512] + a[1024:] == b"A" * 3584
        torn += bool(set(a[512:1024]) - set(b"A1"))
    assert torn > 0


def changed(path: Path, recorder: Recorder) -> Disk:
    """Return the disk after what was recorded; the real directory must agree."""
    disk = recorder.before.copy()
    for event in recorder.events:
        disk.apply(event)
    Stage(path).compare_with(disk)
    return disk


def written(path: Path, data: bytes) -> None:
    fd = osops.open_file(str(path), write=True, create=True)
    osops.pwritev(fd, [memoryview(data)], 0)
    osops.fdatasync(fd)
    osops.close(fd)


def test_a_second_name_is_pending_in_its_own_directory(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "a").write_bytes(b"old     ")
    with Recorder(tmp_path) as recorder:
        osops.link(str(tmp_path / "a"), str(tmp_path / "kept" / "1"))
        written(tmp_path / "a.new", b"new     ")
        osops.rename(str(tmp_path / "a.new"), str(tmp_path / "a"))
        osops.fsync_directory(str(tmp_path))
    found = all_shown(changed(tmp_path, recorder))
    assert found == {
        frozenset({("kept", None), ("a", b"new     "), *kept})
        for kept in ((), (("kept/1", b"old     "),))
    }
    with Recorder(tmp_path) as recorder:  # and back again: the scan knows two names of one file
        osops.link(str(tmp_path / "kept" / "1"), str(tmp_path / "a.new"))
        osops.rename(str(tmp_path / "a.new"), str(tmp_path / "a"))
        fd = osops.open_file(str(tmp_path / "a"), write=True)
        osops.pwritev(fd, [memoryview(b"shared  ")], 0)
        osops.fsync_directory(str(tmp_path))
        osops.close(fd)
    found = all_shown(changed(tmp_path, recorder))
    assert {dict(image)["a"] for image in found} == {b"old     ", b"shared  "}
    for image in found:  # what is pending of a file is so under both of its names
        assert dict(image)["a"] == dict(image)["kept/1"]


def test_renaming_one_name_of_a_file_over_the_other_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    with Recorder(tmp_path) as recorder:
        osops.link(str(tmp_path / "a"), str(tmp_path / "b"))
        osops.rename(str(tmp_path / "b"), str(tmp_path / "a"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    changed(tmp_path, recorder)


def test_what_is_below_a_directory_is_lost_with_its_name(tmp_path: Path) -> None:
    with Recorder(tmp_path) as recorder:
        osops.mkdir(str(tmp_path / "d"))
        osops.mkdir(str(tmp_path / "d" / "e"))
        written(tmp_path / "d" / "e" / "f", b"x")
        osops.fsync_directory(str(tmp_path / "d" / "e"))
    names = {
        frozenset(path for path, _ in image) for image in all_shown(changed(tmp_path, recorder))
    }
    assert names == {frozenset(), frozenset({"d"}), frozenset({"d", "d/e", "d/e/f"})}


def test_a_directory_made_again_is_another_one(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"old     ")
    with Recorder(tmp_path) as recorder:
        osops.unlink(str(tmp_path / "d" / "f"))
        osops.rmdir(str(tmp_path / "d"))
        osops.mkdir(str(tmp_path / "d"))
        written(tmp_path / "d" / "f", b"new     ")
        osops.fsync_directory(str(tmp_path / "d"))
        disk = changed(tmp_path, recorder)
        assert {dict(image).get("d/f") for image in all_shown(disk)} == {
            b"old     ", b"new     ", None,
        }  # fmt: skip
        osops.fsync_directory(str(tmp_path))
    found = all_shown(changed(tmp_path, recorder))
    assert found == {frozenset({("d", None), ("d/f", b"new     ")})}
    assert not PowerCut(changed(tmp_path, recorder)).changes  # nor does the first one matter


def test_names_made_on_several_threads_are_known_to_all_of_them(tmp_path: Path) -> None:
    """Directories that any of them may have made, and files renamed into them."""
    with Recorder(tmp_path) as recorder:

        def work(i: int) -> None:
            for j in range(30):
                directory = tmp_path / f"d{j}"
                if not directory.is_dir():
                    with suppress(FileExistsError):
                        osops.mkdir(str(directory))
                written(directory / f"f{i}.new", bytes([i + 1]))
                osops.rename(str(directory / f"f{i}.new"), str(directory / f"f{i}"))
                if i % 2:
                    osops.link(str(directory / f"f{i}"), str(tmp_path / f"{i}-{j}"))
                    osops.unlink(str(directory / f"f{i}"))
                osops.fsync_directory(str(directory))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
    changed(tmp_path, recorder)
    assert [event.end for event in recorder.events] == sorted(e.end for e in recorder.events)


def test_the_recorder_sees_what_every_thread_does_and_nobody_else(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with Recorder(tmp_path / "in") as recorder:

        def work(i: int) -> None:
            fd = osops.open_file(str(tmp_path / "in" / f"f{i}"), write=True, create=True)
            for j in range(20):
                osops.pwritev(fd, [memoryview(bytes([i + 1]) * 100)], 100 * j)
                osops.fdatasync(fd)
            osops.close(fd)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        outside = osops.open_file(str(tmp_path / "out"), write=True, create=True)
        osops.pwritev(outside, [memoryview(b"x")], 0)
        osops.close(outside)
    assert len(recorder.events) == 4 * (1 + 20 + 20)
    assert [e.end for e in recorder.events] == sorted(e.end for e in recorder.events)
    changed(tmp_path / "in", recorder)
    assert osops.pwritev.__module__ == "pmarray._system.osops"


def test_what_goes_past_the_seam_is_noticed(tmp_path: Path) -> None:
    with Recorder(tmp_path) as recorder:
        (tmp_path / "secret").write_bytes(b"x")
        with pytest.raises(RigError, match="behind the recorder's back"):
            osops.open_file(str(tmp_path / "secret"), write=True)
    with pytest.raises(RigError, match="holds"):
        Stage(tmp_path).compare_with(recorder.before)


@given(st.integers(0, 1 << 32))
def test_the_stage_shows_any_image_after_any_other(seed: int) -> None:
    rng = random.Random(seed)
    with scratch() as path:
        stage = Stage(path)
        for _ in range(6):
            with scratch() as other:
                for name in rng.sample(["a", "b", "c"], rng.randint(0, 3)):
                    data = rng.choice([b"", b"x" * 5000, bytes(9000), rng.randbytes(12288)])
                    (other / name).write_bytes(data)
                if rng.random() < 0.5:
                    (other / "d").mkdir()
                    (other / "d" / "e").write_bytes(rng.randbytes(10))
                if rng.random() < 0.5:
                    (other / "link").symlink_to(rng.choice(["a", "d/e"]))
                if (other / "d").is_dir() and (other / "a").exists() and rng.random() < 0.5:
                    (other / "d" / "a").hardlink_to(other / "a")
                image = Image.of(*Disk.scan(other).newest())
            stage.show(image)
            stage.compare(image)
            for child in path.rglob("*"):
                assert os.path.lexists(child)
