"""A damaged journal: refused, or read as it would have been; never other values."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pmarray
from pmarray._commits import journal
from pmarray._commits.journal import FIRST, Journal
from pmarray._commits.recovery import survey
from pmarray._formats.metadata import Checkpoint
from pmarray._formats.records import MAX_IMAGE_BYTES, Image
from pmarray._geometry.layout import BLOCK_BYTES
from pmarray.backends._regions import DRAMRegion
from pmarray.errors import DamagedError, GroupNotFoundError, PoisonedError
from tests.crash.damage import Outcome, damage_campaign
from tests.sampling import examples, sampled

SHAPE = (512, 12)  # a column is a block
COMMITS = 6


@pytest.fixture(params=["memmap", "zarr"])
def scheme(request: pytest.FixtureRequest) -> str:
    """Of the URL."""
    return str(request.param)


def write(group: pmarray.Group, step: int) -> None:
    """Overwrite some columns, and append one to another array."""
    rng = random.Random(step)
    group["x"][:, rng.sample(range(SHAPE[1]), 4)] = step
    group["y"].append(np.full(5, step))
    group.attrs["step"] = step


def expected(step: int) -> tuple[list[float], int, int]:
    """What is there after a commit, by another way."""
    x = np.zeros(SHAPE)
    for i in range(1, step + 1):
        x[:, random.Random(i).sample(range(SHAPE[1]), 4)] = i
    return [*map(float, x.sum(axis=0))], step, step


def found(url: str, mode: Any) -> tuple[list[float], int, int]:
    """What is there."""
    with pmarray.open_group(url, mode=mode) as group:
        if mode != "r":
            group._session.recover()
        x = group["x"][...]
        assert (x == x[0]).all(), "a column is torn"
        y = group["y"][...]
        assert y[0].tolist() == list(range(1, y.shape[1] + 1))
        return [*map(float, x.sum(axis=0))], y.shape[1], group.attrs["step"]


def make(url: str) -> pmarray.Group:
    """Make a group whose journal has several commits, and leave it open."""
    group = pmarray.open_group(url, cache="1 MiB")
    group.create("x", SHAPE, layout="col", chunks=(SHAPE[0], 1))
    group.create("y", (5, 0), layout="col", chunks=(5, 1))
    for step in range(1, COMMITS + 1):
        with group.transaction():
            write(group, step)
    return group


@pytest.fixture
def crashed(scheme: str, tmp_path: Path) -> Path:
    """A group whose writer died after its last commit."""
    with make(f"{scheme}:{tmp_path}/live"):
        shutil.copytree(tmp_path / "live", tmp_path / "dead", symlinks=True)
    return tmp_path / "dead"


@pytest.fixture
def half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A group whose writer died before the COMMIT of one more transaction."""

    def die(*_: Any) -> None:
        raise OSError(errno.EIO, "died")

    group = make(f"memmap:{tmp_path}/live")
    with monkeypatch.context() as patch, pytest.raises(PoisonedError):
        patch.setattr(Journal, "commit", die)
        with group.transaction():
            group["x"][:, :8] = 99
    shutil.copytree(tmp_path / "live", tmp_path / "dead", symlinks=True)
    group.close()
    return tmp_path / "dead"


def journal_of(root: Path) -> Path:
    """The file of the journal."""
    (path,) = root.rglob("journal")
    return path


def records_of(root: Path) -> list[Any]:
    """What its journal holds."""
    (path,) = root.rglob("pmarray.json")
    saved = Checkpoint.from_bytes(path.read_bytes(), "it")
    region = DRAMRegion(os.path.getsize(journal_of(root)))
    region.write(0, [memoryview(journal_of(root).read_bytes())])
    return survey(Journal(region, saved.nonce, saved.generation)).records


def blocks_in_use(root: Path) -> list[int]:
    """Offsets of the blocks that headers and records take, and one behind."""
    return list(range(0, records_of(root)[-1].end + BLOCK_BYTES, BLOCK_BYTES))


def outcome(root: Path, url: str, step: int) -> bool:
    """Whether a reader and a writer refuse the group; if not, it has to be as of `step`."""
    refused = []
    for mode in ("r", "r+"):
        try:
            assert found(url, mode) == expected(step), mode
            refused.append(False)
        except DamagedError as error:
            refused.append("recover --force" in str(error))
    assert refused[0] == refused[1]
    return refused[0]


@pytest.mark.sampled
@pytest.mark.parametrize("fault", ["bit", "zeros", "noise"])
def test_no_bad_block_of_the_journal_gives_other_values(
    crashed: Path, scheme: str, tmp_path: Path, fault: str
) -> None:
    """Each block in turn; at 280 of 280 flipped bits, commits were lost or torn."""
    rng = random.Random(fault)
    refused, last = 0, records_of(crashed)[-1].end - 1
    blocks = blocks_in_use(crashed)
    assert len(blocks) > 12
    blocks = sampled(blocks, 12 if fault == "bit" else 4)
    for block in blocks:
        root = tmp_path / "damaged"
        shutil.copytree(crashed, root, symlinks=True)
        with journal_of(root).open("r+b") as file:
            file.seek(block)
            data = bytearray(file.read(BLOCK_BYTES))
            if fault == "bit":
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            else:
                data[:] = bytes(len(data)) if fault == "zeros" else rng.randbytes(len(data))
            file.seek(block)
            file.write(data)
        noticed = bool(pmarray.verify(f"{scheme}:{root}"))
        assert noticed or block > last, "each block in use has a checksum"
        refused += outcome(root, f"{scheme}:{root}", COMMITS)
        shutil.rmtree(root)
    if scheme == "memmap" and fault == "bit":
        assert refused, "before-images of columns stand in the journal once"


@pytest.mark.parametrize("left", [0, 1, 100, BLOCK_BYTES, FIRST, 0.3, 0.6, 1 << 20, -1])
def test_a_journal_that_was_cut_is_refused(crashed: Path, scheme: str, left: float) -> None:
    path = journal_of(crashed)
    whole = path.stat().st_size
    used = records_of(crashed)[-1].end
    os.truncate(path, whole - 1 if left == -1 else int(left * used if 0 < left < 1 else left))
    assert outcome(crashed, f"{scheme}:{crashed}", COMMITS)
    assert any(finding.damaged for finding in pmarray.verify(f"{scheme}:{crashed}"))


def test_a_journal_that_is_gone_is_refused(crashed: Path, scheme: str) -> None:
    journal_of(crashed).unlink()
    assert outcome(crashed, f"{scheme}:{crashed}", COMMITS)
    assert any(finding.damaged for finding in pmarray.verify(f"{scheme}:{crashed}"))
    assert pmarray.recover(f"{scheme}:{crashed}", force=True).lost
    assert not any(finding.damaged for finding in pmarray.verify(f"{scheme}:{crashed}"))


def test_images_that_nobody_vouches_for(half_way: Path) -> None:
    """The data were overwritten: without the image they cannot be brought back."""
    assert found(f"memmap:{half_way}", "r") == expected(COMMITS)
    last = records_of(half_way)[-1]
    assert last.metadata is None
    for block in range(last.start, last.end, BLOCK_BYTES):
        root = half_way.parent / "damaged"
        shutil.copytree(half_way, root, symlinks=True)
        flip(journal_of(root), block + 17)
        assert outcome(root, f"memmap:{root}", COMMITS) == (block >= last.payload)
        shutil.rmtree(root)


def test_a_kept_object_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the journal counts on in a chunk store is an object beside it."""

    def die(*_: Any) -> None:
        raise OSError(errno.EIO, "died")

    group = make(f"zarr:{tmp_path}/live")
    with monkeypatch.context() as patch, pytest.raises(PoisonedError):
        patch.setattr(Journal, "commit", die)
        with group.transaction():
            group["x"][:, :8] = 99
    root = shutil.copytree(tmp_path / "live", tmp_path / "dead", symlinks=True)
    group.close()
    kept = sorted((root / ".pmarray/kept").iterdir())
    assert len(kept) == 8
    kept[0].unlink()
    with pytest.raises(DamagedError, match="is missing"):
        pmarray.recover(f"zarr:{root}")
    done = pmarray.recover(f"zarr:{root}", force=True)
    assert [str(kept[0]) in message for message in done.lost] == [True]
    with pmarray.open_group(f"zarr:{root}", mode="r") as found:
        assert sum((found["x"][...] == 99).all(axis=0)) == 1


def test_what_recovery_by_force_keeps_and_tells(half_way: Path) -> None:
    last = records_of(half_way)[-1]
    flip(journal_of(half_way), last.payload + BLOCK_BYTES)
    with pytest.raises(DamagedError, match="wrong checksum"):
        pmarray.recover(half_way)
    done = pmarray.recover(half_way, force=True)
    (message,) = done.lost
    assert done.transaction == COMMITS
    assert "array 'x', from byte" in message
    with pmarray.open_group(half_way, mode="r") as group:
        x = group["x"][...]
    lost = [i for i in range(SHAPE[1]) if (x[:, i] == 99).any()]
    assert len(lost) == 1, "the other seven were put back"
    assert f"from byte {lost[0] * BLOCK_BYTES} of" in message
    assert not any(finding.damaged for finding in pmarray.verify(half_way))


def test_an_image_is_not_needed_where_the_data_are_as_they_were(half_way: Path) -> None:
    """As a power cut leaves it that tears the image before anything is overwritten."""
    url = f"memmap:{half_way}"
    with pmarray.open_group(url, mode="r") as group:
        committed = group["x"][...]
    path = half_way / "data/000001.npy"
    with path.open("r+b") as file:
        file.seek(BLOCK_BYTES)
        file.write(committed.T.tobytes())
    last = records_of(half_way)[-1]
    for block in range(last.payload, last.end, BLOCK_BYTES):
        flip(journal_of(half_way), block)
    assert not outcome(half_way, url, COMMITS)


def test_a_bad_image_is_not_needed_where_another_has_the_same(half_way: Path) -> None:
    """As where a block came to be kept twice; a reader goes by the same rule as recovery."""
    (metadata,) = half_way.rglob("pmarray.json")
    saved = Checkpoint.from_bytes(metadata.read_bytes(), "it")
    last = records_of(half_way)[-1]
    data = journal_of(half_way).read_bytes()
    region = DRAMRegion(len(data))
    region.write(0, [memoryview(data)])
    again = Journal(region, saved.nonce, saved.generation)
    again.check_length()
    again.position = last.end
    images = [Image(one.file_id, one.offset, again.fetch(one)) for one in last.images]
    assert again.before(last.images[0].number, images)
    whole = memoryview(bytearray(region.capacity))
    region.read_into(0, whole)
    journal_of(half_way).write_bytes(whole)
    flip(journal_of(half_way), last.payload)
    for mode in ("r", "r+"):
        assert found(f"memmap:{half_way}", mode) == expected(COMMITS), mode


def flip(path: Path, position: int) -> None:
    """Change one bit."""
    with path.open("r+b") as file:
        file.seek(position)
        old = file.read(1)
        file.seek(position)
        file.write(bytes([old[0] ^ 1]))


def test_a_copy_of_a_journal_in_an_array_is_no_journal(tmp_path: Path) -> None:
    """Before-images are copies of data, and the data may be a journal."""
    url = f"memmap:{tmp_path}/live"
    with make(url) as group:
        copied = np.frombuffer((tmp_path / "live/journal").read_bytes()[: 64 * BLOCK_BYTES], "u1")
        group.create("z", copied.shape, "u1")[:] = copied
        with group.transaction():
            group["z"][:] = 0
            group.attrs["step"] = COMMITS
        shutil.copytree(tmp_path / "live", tmp_path / "dead", symlinks=True)
    assert found(f"memmap:{tmp_path}/dead", "r+") == expected(COMMITS)


def test_metadata_that_were_put_back_from_a_backup_are_noticed(tmp_path: Path) -> None:
    """The journal has gone on without them."""
    with make(f"memmap:{tmp_path}/live") as group:
        shutil.copy(tmp_path / "live/pmarray.json", tmp_path / "older")
        group.flush()
        with group.transaction():
            write(group, COMMITS + 1)
        shutil.copytree(tmp_path / "live", tmp_path / "dead", symlinks=True)
    assert not outcome(tmp_path / "dead", f"memmap:{tmp_path}/dead", COMMITS + 1)
    shutil.copy(tmp_path / "older", tmp_path / "live/pmarray.json")
    assert outcome(tmp_path / "live", f"memmap:{tmp_path}/live", 0)


def test_verify_of_nothing_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(GroupNotFoundError):
        pmarray.verify(tmp_path / "none")
    with pytest.raises(GroupNotFoundError):
        pmarray.verify(f"zarr:{tmp_path}/none")


@pytest.mark.parametrize("options", [{}, {"shards": (64, 4)}, {"codecs": ["zstd", "crc32c"]}])
def test_verify_decodes_every_chunk(tmp_path: Path, options: dict[str, Any]) -> None:
    url = f"zarr:{tmp_path}/z"
    with pmarray.open_group(url) as group:
        x = group.create("x", (64, 8), chunks=(32, 2), **options)
        x[...] = np.random.default_rng(1).random((64, 8))
    assert pmarray.verify(url) == []
    objects = [path for path in (tmp_path / "z/x").rglob("*") if path.is_file()]
    chunks = [path for path in objects if path.name != "zarr.json"]
    for chunk in chunks:
        whole = chunk.read_bytes()
        # That a shard of no bytes is refused is the business of reading, and tested there.
        for cut in (1 if "shards" in options else 0, 5, len(whole) - 1):
            chunk.write_bytes(whole[:cut])
            assert any(finding.damaged for finding in pmarray.verify(url)), (chunk, cut)
            assert pmarray.verify(url, data=False) == []
        if "codecs" in options:
            flip(chunk, len(whole) // 2)
            chunk.write_bytes(whole[:9] + bytes([whole[9] ^ 4]) + whole[10:])
            assert any(finding.damaged for finding in pmarray.verify(url))
        chunk.write_bytes(whole)
    chunks[0].unlink()
    assert pmarray.verify(url) == [], "a chunk that is not there holds fill values"


def test_verify_reads_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pmarray.open(tmp_path / "g", (3 << 18,)) as array:
        array[-1] = 1
    read: list[int] = []
    real = pmarray.backends.files.region.FileRegion.read_into

    def count(self: Any, offset: int, out: memoryview, /) -> None:
        read.append(out.nbytes)
        if offset > 5_000_000:
            raise pmarray.errors.StorageError(errno.EIO, "cannot read: bad sector", "it")
        real(self, offset, out)

    monkeypatch.setattr(pmarray.backends.files.region.FileRegion, "read_into", count)
    assert pmarray.verify(tmp_path / "g") == []
    (finding,) = pmarray.verify(tmp_path / "g", data=True)
    assert finding.damaged
    assert "bad sector" in finding.message
    assert sum(read) >= 3 << 21


# -- the journal alone --------------------------------------------------------------------------

BLOCKS = st.lists(st.sampled_from(["image", "small", "zeros", "barrier", "commit"]), max_size=12)


def filled(kinds: list[str]) -> Journal:
    """Write records into a journal in memory."""
    journal = Journal(DRAMRegion(0), 7)
    journal.make()
    for i, kind in enumerate(kinds, 1):
        byte = bytes([i])
        if kind == "barrier":
            journal.barrier()
        elif kind == "commit":
            journal.commit(i, byte * (5000 if i % 3 == 0 else 100))
            journal.barrier()
        else:
            data = {
                "image": byte * 2 * BLOCK_BYTES,
                "small": byte * 50,
                "zeros": bytes(BLOCK_BYTES),
            }
            journal.before(i, [Image(1, i * BLOCK_BYTES, memoryview(data[kind]))])
    return journal


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(BLOCKS, st.data())
def test_a_bad_block_changes_nothing_or_is_told(kinds: list[str], data: st.DataObject) -> None:
    journal = filled(kinds)
    before = survey(journal)
    assert not before.damage
    used = before.end
    at = data.draw(st.integers(FIRST, max(FIRST, used - 1)))
    memory = journal.region.memory
    assert memory is not None
    if data.draw(st.booleans()):
        memory[at] ^= data.draw(st.integers(1, 255))
    else:
        start = at // BLOCK_BYTES * BLOCK_BYTES
        memory[start : start + BLOCK_BYTES] = 0
    after = survey(Journal(journal.region, 7))
    if after.damage:
        return
    assert after.records == before.records
    for record in after.records:
        for image in record.images:
            bad = image.bad_in(journal.fetch(image))
            assert not bad or record.end > after.durable_to, "nobody could know"


@given(BLOCKS, st.data())
def test_what_a_power_cut_tears_is_no_damage(kinds: list[str], data: st.DataObject) -> None:
    """Blocks behind the last barrier, in any combination old, new, or noise."""
    journal = filled(kinds)
    memory = journal.region.memory
    assert memory is not None
    for start in range(journal.durable_to, journal.position, BLOCK_BYTES):
        fate = data.draw(st.sampled_from(["new", "old", "noise"]))
        if fate != "new":
            noise = random.Random(start).randbytes(BLOCK_BYTES)
            memory[start : start + BLOCK_BYTES] = np.frombuffer(
                noise if fate == "noise" else bytes(BLOCK_BYTES), np.uint8
            )
    found = survey(Journal(journal.region, 7))
    assert not found.damage
    assert found.end >= journal.durable_to


SIZES = st.one_of(
    st.integers(1, MAX_IMAGE_BYTES // BLOCK_BYTES).map(lambda blocks: blocks * BLOCK_BYTES),
    st.sampled_from([MAX_IMAGE_BYTES - 1, MAX_IMAGE_BYTES // 2 + 1, MAX_IMAGE_BYTES]),
)


@examples(2)
@given(
    st.one_of(
        st.lists(st.tuples(st.integers(1, 3 * BLOCK_BYTES), st.booleans()), max_size=200),
        st.lists(st.tuples(SIZES, st.booleans()), min_size=10, max_size=25),
    ),
    st.integers(1, 4),
)
def test_images_come_back_as_they_were(wanted: list[tuple[int, bool]], calls: int) -> None:
    """In memory of the journal, which is used again, or of their own; in one call or in several."""
    rng = np.random.default_rng(len(wanted))
    contents = [
        rng.integers(0, 2 + i % 7, n, np.uint8).tobytes() for i, (n, _) in enumerate(wanted)
    ]
    journal = Journal(DRAMRegion(0), 1)
    journal.make()

    def images(of: range) -> Iterator[Image]:
        for i in of:
            data = memoryview(contents[i])
            if wanted[i][1]:
                data = journal.memory(len(contents[i]))
                data[:] = contents[i]
            yield Image(i, i, data)

    each = -(-len(contents) // calls) or 1
    for start in range(0, len(contents), each):
        assert journal.before(3, images(range(start, min(start + each, len(contents)))))
    assert not journal.before(3, [])
    stored = [image for record in journal.records() for image in record.images]
    assert [(s.file_id, s.offset) for s in stored] == [(i, i) for i in range(len(contents))]
    assert [bytes(journal.fetch(one)) for one in stored] == contents


def test_the_journal_grows_and_is_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(DRAMRegion(0), 1)
    journal.make()
    image = memoryview(bytes([1]) * MAX_IMAGE_BYTES)
    for i in range(12):
        journal.before(1, [Image(1, i << 20, image)])
    journal.barrier()
    assert sum(1 for _ in journal.records()) == 12
    other = Journal(journal.region, 1)
    other.check_length()
    assert other._header == journal._header
    assert other._header[1] > 12 << 20
    journal.restart(2, 1)
    journal.trim(4 << 20)
    other.check_length()
    assert other._header[1] == 4 << 20


@given(BLOCKS)
def test_no_record_stands_where_nobody_looks(kinds: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "_INITIAL_REACH", FIRST + BLOCK_BYTES)
        written = filled(kinds)
        other = Journal(written.region, 7)
        other.check_length()
        assert written.position <= other.stop <= max(4 * written.position, FIRST + BLOCK_BYTES)
        written.restart(8, 1)
        written.trim(64 << 20)
        other.check_length()
        assert other.stop == FIRST + BLOCK_BYTES


def test_a_reader_looks_for_records_where_they_can_be(
    crashed: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal has 4 MiB, nearly all of it zeros; reading them took most of an opening."""
    read: list[int] = []
    real = pmarray.backends.files.region.FileRegion.read_into

    def count(self: Any, offset: int, out: memoryview, /) -> None:
        read.append(out.nbytes)
        real(self, offset, out)

    monkeypatch.setattr(pmarray.backends.files.region.FileRegion, "read_into", count)
    with pmarray.open_group(f"{scheme}:{crashed}", mode="r"):
        assert 0 < sum(read) < 1 << 20
    assert journal_of(crashed).stat().st_size >= 4 << 20


def test_a_sample_of_the_campaign() -> None:
    """`make damage` runs it for long, over all media."""
    outcome = Outcome()
    damage_campaign(["durable", "device-spilled"], 3, outcome, instants=3, until=1e18)
    assert not outcome.wrong, outcome.wrong[0]
    assert sum(outcome.tried.values()) > 15
    assert sum(outcome.refused.values()) > 0
