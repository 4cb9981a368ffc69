"""A posterior of weights that are spread over processes is that of a plain loop, to the bit."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.state_dict_loader import load

import pmarray
import swag
from swag._boxes import Box, Shard, axes
from swag._parameters import Entry, ParameterTable
from swag._sharding.layout import Layout
from swag._sharding.manifest import Manifest
from swag.app.runs import describe
from swag.errors import StoreError
from swag.pruning import prune
from tests.sampling import examples
from tests.swag.nets import facts, same, stored
from tests.swag.ranks import run
from tests.swag.sharded import (
    USUAL,
    Net,
    checkpointed,
    collect,
    first_fsdp,
    fully_shard,
    gone_on,
    killed,
    used,
)
from tests.swag.sharded_trainer import trained

needs_fsdp2 = pytest.mark.skipif(
    fully_shard is None, reason="FSDP2: torch.distributed.fsdp.fully_shard is of PyTorch 2.6"
)


@pytest.mark.parametrize(
    ("count", "kind"),
    [
        (2, "columns"),
        *(
            pytest.param(*case, marks=needs_fsdp2)
            for case in [(2, "rows"), (2, "compiled"), (4, "rows"), (4, "hybrid")]
        ),
    ],
)
def test_parts_are_one_posterior(count: int, kind: str, scratch: Path) -> None:
    store = f"memmap:{scratch / 'posterior'}"
    beside = run(count, collect, kind, store, 5)[0]
    assert isinstance(beside, dict), beside
    assert same(stored(store), beside)


@needs_fsdp2
def test_a_trainer_that_shards_collects_what_a_plain_loop_does_and_resumes(scratch: Path) -> None:
    store = f"memmap:{scratch / 'posterior'}"
    results = run(2, trained, str(scratch), store)
    for found in results:
        assert isinstance(found, tuple), found
        sharded, before, beside = found
        assert sharded
        assert before == 4  # ahead of the checkpoint of step 2
        assert same(stored(store), beside)


@pytest.mark.parametrize(
    ("max_rank", "every", "count", "attach"),
    [(2, 1, 4, False), (2, 3, 20, True), (0, 3, 10, True)],
)
def test_the_last_iterates_of_parts_are_those_of_a_plain_loop(
    max_rank: int, every: int, count: int, attach: bool, scratch: Path
) -> None:
    store = f"memmap:{scratch / 'posterior'}"
    work = partial(collect, max_rank=max_rank, checkpoint_every=every)
    beside = run(2, work, USUAL, store, count, attach)[0]
    assert isinstance(beside, dict), beside
    assert same(stored(store), beside)


@pytest.mark.parametrize("max_rank", [None, 3, 0])
def test_a_killed_process_leaves_the_iterates_that_all_have(
    max_rank: int | None, scratch: Path
) -> None:
    store = f"memmap:{scratch / 'posterior'}"
    (scratch / "seen").mkdir()
    before = 0
    for seconds in (0.02, None, 0.1):
        results = run(2, killed, store, scratch / "seen", seconds, max_rank)
        assert isinstance(results[0], str), results  # it lost its peer, and ended all the same
        assert results[1] is None
        with swag.load(store) as posterior:
            assert posterior.n_averaged >= before + 3
            plain = Net()
            beside = swag.SWAG(plain, max_rank=max_rank, checkpoint_every=4)
            for i in range(posterior.n_averaged):
                seen = torch.load(scratch / "seen" / str(i), weights_only=True)
                plain.load_state_dict(seen, strict=False)
                beside.update_parameters(plain)
                if i >= posterior.n_averaged - posterior.rank:
                    for name, value in posterior.iterate(i).items():
                        assert torch.equal(value, seen[name]), (i, name)
            assert same(facts(posterior), facts(beside))
            before = posterior.n_averaged


@needs_fsdp2
def test_parts_agree_and_are_used(scratch: Path) -> None:
    store = f"memmap:{scratch / 'posterior'}"
    results = run(2, used, store)
    for found in results:
        assert isinstance(found, dict), found
        assert "memory of one process" in found["memory"]
        assert "rewind(to=...)" in found["own checkpoints"]
        assert found["nonfinite"] == (1, 3)
        assert found["repeated"] == (1, 5)
        assert found["rewound"] == 4
        assert "swag.load(store)" in found["part"]
        assert found["again"].startswith("StoreExistsError")
        assert found["count"] == 5
        assert found["predicted"]
        assert found["restored"]
        assert found["mean"]
        assert found["density"]
    assert "over 2 processes" in run(1, gone_on, store)[0]
    for place in (store, f"{store}/part-00001"):  # one by one they would not fit one another
        with pytest.raises(StoreError, match=r"part"):
            prune(place, start=1)
    with swag.load(store) as posterior:
        assert posterior.n_averaged == 5
    weights = [describe(store)["arrays"][f"part-{i:05d}/trajectory"]["shape"][0] for i in range(2)]
    assert sum(weights) == sum(p.numel() for p in Net().parameters())
    # Parts of two runs are not taken for one posterior, whatever is copied over what.
    with pmarray.open_group(f"{store}/part-00001") as group:
        group.attrs["swag.part"] = ["another", 1]
    with pytest.raises(StoreError, match="mixed up"):
        swag.load(store)


def test_what_the_first_fsdp_has_cut_is_collected_where_it_is_whole(scratch: Path) -> None:
    stores = [f"memmap:{scratch / name}" for name in ("own", "one", "replicated")]
    results = run(2, first_fsdp, *stores)
    for found in results:
        assert isinstance(found, list), found
        for way in found:
            assert "fully_shard (FSDP2)" in way["sharded"]
            assert "summon_full_params" in way["used"]
            assert way["mean"]
    for way in results[0]:
        assert "summon_full_params" in way["later"]
        assert way["same"]


@needs_fsdp2
def test_mean_and_variance_are_in_a_distributed_checkpoint(scratch: Path) -> None:
    store, folder = f"memmap:{scratch / 'posterior'}", str(scratch / "checkpoint")
    assert run(2, checkpointed, store, folder) == [(7, 4), (7, 4)]
    with swag.load(store) as posterior:
        assert posterior.n_averaged == 4
        expected = {"mean": posterior.mean(), "variance": posterior.variance()}
    read = {k: {n: torch.zeros_like(v) for n, v in of.items()} for k, of in expected.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, that there is one process
        load({"posterior": read}, checkpoint_id=folder, no_dist=True)
    for kind, values in expected.items():
        for name, value in values.items():
            assert torch.equal(read[kind][name], value), (kind, name)


shapes = st.lists(st.lists(st.integers(1, 7), max_size=3).map(tuple), min_size=1, max_size=4)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Layout, list[list[Box]]]:
    """Parameters, each cut along one axis, over some processes; or held by the first."""
    count, entries, boxes, start = draw(st.integers(1, 5)), [], [], 0
    for i, shape in enumerate(draw(shapes)):
        entries.append(Entry(str(i), shape, torch.float32, start))
        start = entries[-1].stop
        axis = draw(st.integers(-1, max(0, len(shape) - 1)))
        whole = axes(shape)
        boxes.append(
            [
                Box.cut(whole, [Shard(axis, count, rank)])
                if axis >= 0
                else (Box.none(whole) if rank else Box.whole(whole))
                for rank in range(count)
            ]
        )
    table = ParameterTable(tuple(entries))
    return Layout(table, tuple(zip(*boxes, strict=True))), boxes


@examples(60)
@given(layouts(), st.data())
def test_a_vector_is_put_together_from_its_parts(made: Any, data: st.DataObject) -> None:
    layout, boxes = made
    n = layout.table.size
    vector = torch.arange(n)
    parts = []
    for rank in range(len(layout.boxes)):
        views = layout.table.views(vector)
        cut = [
            # PyTorch's own cut is the oracle; it leaves out pieces that are empty.
            dict(enumerate(view.reshape(axes(view.shape)).chunk(count, axis))).get(rank)
            for view, own in zip(views, boxes, strict=True)
            for count, axis in [_cut(own, view)]
        ]
        parts.append(
            torch.cat(
                [torch.empty(0, dtype=torch.int64)] + [c.flatten() for c in cut if c is not None]
            )
        )
        assert len(parts[-1]) == layout.part_table(rank).size
    arrays = [part.numpy() for part in parts]
    assert not layout.faults()
    assert (layout.joined(arrays, arrays[0].dtype) == vector.numpy()).all()
    start = data.draw(st.integers(0, n - 1))
    stop = data.draw(st.integers(start + 1, n))
    found = np.full(stop - start, -1)
    for rank, array in enumerate(arrays):
        for piece in layout.pieces(rank, start, stop):
            found[piece.target] = array[piece.source]
    assert (found == np.arange(start, stop)).all()


def _cut(own: list[Box], view: torch.Tensor) -> tuple[int, int]:
    """Into how many pieces, and along which axis, a parameter was cut."""
    whole = axes(view.shape)
    if own[0].shape == whole and not any(box.size for box in own[1:]):
        return 1, 0
    axis = next(i for i, n in enumerate(whole) if own[0].shape[i] != n)
    return len(own), axis


@pytest.mark.parametrize(
    "damage",
    [
        {"format": 2},
        {"parts": []},
        {"parts": [[[[0], [2]]]]},
        {"parts": [[[[0], [3]]], [[[2], [1]]]]},
        {"parts": [[[[0], [3]]], [[[-1], [0]]]]},
        {"parameters": None},
    ],
)
def test_a_damaged_manifest_is_refused(damage: dict[str, Any]) -> None:
    table = ParameterTable((Entry("w", (3,), torch.float32, 0),))
    layout = Layout(table, tuple((Box.cut((3,), [Shard(0, 2, rank)]),) for rank in range(2)))
    good = Manifest("1", layout, ("",)).to_json()
    assert Manifest.from_json(good).layout == layout
    with pytest.raises(StoreError):
        Manifest.from_json({**good, **damage})
