from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from swag._copying import copy_and_sum, sum_of

SHAPES = [(), (0,), (0, 3), (1, 1), (7, 5), (200, 101), (3, (1 << 17) + 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "dtypes",
    [
        ("float32", "float32"),
        ("float64", "float64"),
        ("bfloat16", "bfloat16"),
        ("bfloat16", "float32"),
        ("float32", "float64"),
    ],
)
def test_what_is_copied_and_added_up(shape: tuple[int, ...], dtypes: tuple[str, str]) -> None:
    narrow, wide = (getattr(torch, name) for name in dtypes)
    source = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(wide)
    turned = source.mT.contiguous().mT if len(shape) > 1 else source
    expected = source.to(narrow)
    size = expected.double().square().sum().sqrt().item()
    for parameter in (source, turned, source[..., None].expand(*shape, 1)[..., 0]):
        out = torch.full(shape, 7, dtype=narrow)
        total = copy_and_sum(out, parameter.requires_grad_())
        assert torch.equal(out, expected)
        assert total == pytest.approx(expected.double().sum().item(), abs=1e-4 * size)
        assert sum_of(expected) == total


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_value_that_is_not_finite_is_seen_wherever_it_is(
    dtype: torch.dtype, value: float
) -> None:
    n = (1 << 18) + 77
    for at in (0, 63, (1 << 17) - 1, 1 << 17, n - 1):
        source = torch.ones(n, dtype=dtype)
        source[at] = value
        assert not np.isfinite(copy_and_sum(torch.empty_like(source), source))


def test_both_infinities_are_seen_and_a_sum_that_is_too_large_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both = torch.ones(1 << 18)
        both[5], both[-5] = torch.inf, -torch.inf
        assert not np.isfinite(copy_and_sum(torch.empty_like(both), both))
        large = torch.full((1 << 18,), torch.finfo(torch.float32).max)
        assert copy_and_sum(torch.empty_like(large), large) == torch.inf


def test_the_sum_does_not_depend_on_the_threads_of_pytorch() -> None:
    source = torch.randn(1_000_003, generator=torch.Generator().manual_seed(2))
    before = torch.get_num_threads()
    sums = set()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for dtype in (torch.float32, torch.bfloat16):
                sums.add((dtype, copy_and_sum(torch.empty(len(source), dtype=dtype), source)))
    finally:
        torch.set_num_threads(before)
    assert len(sums) == 2


def test_a_change_of_one_weight_changes_the_sum() -> None:
    source = torch.randn(500_000, generator=torch.Generator().manual_seed(3)) * 1e-2
    before = copy_and_sum(torch.empty_like(source), source)
    for at in (0, 250_001, 499_999):
        changed = source.clone()
        changed[at] += 1e-3
        assert copy_and_sum(torch.empty_like(source), changed) != before
