"""A posterior of weights that are spread over processes is that of a plain loop, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import swag
from tests.swag.nets import same, stored
from tests.swag.ranks import run
from tests.swag.sharded import collect, killed


@pytest.mark.parametrize(
    ("count", "kind"), [(2, "rows"), (2, "columns"), (4, "rows"), (4, "hybrid")]
)
def test_parts_are_one_posterior(count: int, kind: str, scratch: Path) -> None:
    store = f"memmap:{scratch / 'posterior'}"
    beside = run(count, collect, kind, store, 5)[0]
    assert isinstance(beside, dict), beside
    assert same(stored(store), beside)


def test_a_killed_process_leaves_the_iterates_that_all_have(scratch: Path) -> None:
    store = f"memmap:{scratch / 'posterior'}"
    (scratch / "seen").mkdir()
    before = 0
    for seconds in (0.3, 0.4):
        results = run(2, killed, store, scratch / "seen", seconds)
        assert isinstance(results[0], str), results  # it lost its peer, and ended all the same
        assert results[1] is None
        with swag.load(store) as posterior:
            assert posterior.n_averaged >= before
            for i in range(posterior.n_averaged):
                seen = torch.load(scratch / "seen" / str(i))
                for name, value in posterior.iterate(i).items():
                    assert torch.equal(value, seen[name]), (i, name)
            before = posterior.n_averaged
    assert before > 0
