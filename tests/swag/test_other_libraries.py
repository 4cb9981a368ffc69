"""Samples are those of the paper's formula; where other libraries differ is told in arithmetic.

``docs/how-to/other-libraries.md`` says the same in words. Nothing here imports another library:
each formula is written down from its source, in float64 unless its precision is the point.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import swag
from swag._trajectory import BLOCK_ROWS
from swag.sampling import Seeds
from tests.sampling import examples


class Weights(nn.Module):
    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.first = nn.Parameter(values[:4].clone())
        self.second = nn.Parameter(values[4:].clone())


def random_walk(count: int, n: int, seed: int = 0, step: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(n, generator=generator)
    return start + (step * torch.randn(count, n, generator=generator)).cumsum(dim=0)


def collected(iterates: Tensor, **options: Any) -> swag.SWAG:
    posterior = swag.SWAG(Weights(iterates[0]), **options)
    for values in iterates:
        posterior.update_parameters(Weights(values))
    return posterior


def flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([weights["first"], weights["second"]], dim=-1).double()


def normal_numbers(seed: int, n: int, k: int) -> tuple[Tensor, Tensor]:
    """The numbers z1 and z2 of the first draw with a seed."""
    seeds = Seeds.take(1, seed)
    stream = torch.Generator().manual_seed(seeds.diagonal[0])
    sizes = [min(BLOCK_ROWS, n - start) for start in range(0, n, BLOCK_ROWS)]
    z1 = [torch.empty(size).normal_(generator=stream) for size in sizes]
    low_rank = torch.Generator().manual_seed(seeds.low_rank[0])
    return torch.cat(z1).double(), torch.randn(k, generator=low_rank, dtype=torch.float64)


def algorithm_1(iterates: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, diagonal and the columns of D that are held, as Algorithm 1 of Maddox et al. 2019."""
    theta, second = torch.zeros(iterates.shape[1]), torch.zeros(iterates.shape[1])
    theta, second = theta.double(), second.double()
    columns: list[Tensor] = []
    for n, iterate in enumerate(iterates.double()):
        theta = (n * theta + iterate) / (n + 1)
        second = (n * second + iterate**2) / (n + 1)
        columns = [*columns, iterate - theta][-most:]
    return theta, second - theta**2, torch.stack(columns, dim=1)


# -- the paper ------------------------------------------------------------------------------------


@examples(0.5)
@given(
    n=st.integers(5, 400),
    count=st.integers(2, 30),
    most=st.integers(2, 30),
    seed=st.integers(0, 2**31),
)
def test_a_sample_is_that_of_the_papers_formula(n: int, count: int, most: int, seed: int) -> None:
    """Equation (1): the mean + diagonal^1/2 z1 / sqrt(2) + D z2 / sqrt(2 (K - 1))."""
    iterates = random_walk(count, n, seed)
    theta, diagonal, d = algorithm_1(iterates, most)
    k = d.shape[1]
    z1, z2 = normal_numbers(seed, n, k)
    expected = theta + diagonal.sqrt() * z1 / math.sqrt(2) + d @ z2 / math.sqrt(2 * (k - 1))
    posterior = collected(iterates, max_rank=most)
    found = flat(posterior.sample(generator=seed))[0]
    # Of the numbers that are added, the largest says what a rounding is.
    largest = float(iterates.abs().max() + (expected - theta).abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=8 * 2**-24 * largest)


# -- wjmaddox/swa_gaussian ------------------------------------------------------------------------


def swa_gaussian(iterates: Tensor, most: int, scale: float, z1: Tensor, z2: Tensor) -> Tensor:
    """``sample_fullrank(scale, cov=True)``: K is ``max_num_models``, held or not."""
    theta, diagonal, d = algorithm_1(iterates, most)
    return theta + math.sqrt(scale) * (diagonal.sqrt() * z1 + d @ z2 / math.sqrt(most - 1))


def test_swa_gaussian_divides_by_the_largest_rank_and_not_by_the_one_held() -> None:
    iterates = random_walk(8, 30)
    posterior = collected(iterates)
    z1, z2 = normal_numbers(3, 30, 8)
    mine = flat(posterior.sample(generator=3))[0]
    torch.testing.assert_close(swa_gaussian(iterates, 8, 0.5, z1, z2), mine, rtol=0, atol=1e-6)
    # With 8 iterates of at most 20 its low-rank part has 7 / 19 of the variance.
    theirs = swa_gaussian(iterates, 20, 0.5, torch.zeros(30), z2)
    mean = flat(posterior.mean())
    low_rank = flat(posterior.sample(generator=3, part="low-rank"))[0] - mean
    torch.testing.assert_close(theirs - mean, low_rank * math.sqrt(7 / 19), rtol=0, atol=1e-6)


def test_scale_of_swa_gaussian_is_a_half_by_default_only_in_its_paper() -> None:
    iterates = random_walk(8, 30)
    posterior = collected(iterates)
    z1, z2 = normal_numbers(3, 30, 8)
    default = swa_gaussian(iterates, 8, 1.0, z1, z2)  # scale=1.0 is what `sample()` has
    found = flat(posterior.sample(generator=3, scale=1.0))[0]
    torch.testing.assert_close(default, found, rtol=0, atol=1e-6)
    # With block=True it multiplies standard deviations: 0.5 there is 0.25 here.
    theta, diagonal, _ = algorithm_1(iterates, 8)
    blockwise = theta + 0.5 * diagonal.sqrt() * z1
    diagonal_alone = flat(posterior.sample(generator=3, scale=0.25, part="diagonal"))[0]
    torch.testing.assert_close(blockwise, diagonal_alone, rtol=0, atol=1e-6)


def test_a_mean_of_squares_less_a_square_cancels_in_float32() -> None:
    iterates = random_walk(50, 2000, step=2e-5)
    mean, second = torch.zeros(2000), torch.zeros(2000)
    for n, iterate in enumerate(iterates):  # as `collect_model`
        mean = mean * n / (n + 1.0) + iterate / (n + 1.0)
        second = second * n / (n + 1.0) + iterate**2 / (n + 1.0)
    theirs = second - mean**2
    truth = iterates.double().var(dim=0, correction=0)
    assert (theirs < 0).float().mean() > 0.1  # clamped to 1e-30 before use
    mine = flat(collected(iterates).variance())
    torch.testing.assert_close(mine, truth, rtol=1e-2, atol=0)


def test_parameters_are_paired_by_name_and_not_by_position() -> None:
    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.child = nn.Linear(1, 1, bias=False)
            self.own = nn.Parameter(torch.zeros(1, 1))

    model = Owner()
    by_apply: list[Tensor] = []  # children first, as `base.apply` meets them
    model.apply(lambda module: by_apply.extend(module._parameters.values()))  # type: ignore[arg-type]
    by_order = list(model.parameters())
    assert [id(p) for p in by_apply] != [id(p) for p in by_order]
    posterior = swag.SWAG(model)
    for value in (1.0, 3.0):
        nn.init.constant_(model.own, value)
        nn.init.constant_(model.child.weight, -value)
        posterior.update_parameters(model)
    assert {name: mean.item() for name, mean in posterior.mean().items()} == {
        "own": 2.0, "child.weight": -2.0
    }  # fmt: skip


def test_a_density_takes_standard_deviations_and_half_of_the_covariance() -> None:
    iterates = random_walk(8, 30)
    diagonal = collected(iterates).window(rank=0)
    point = {"first": iterates[3, :4], "second": iterates[3, 4:]}
    theta, variance, _ = algorithm_1(iterates, 8)
    normal: Any = torch.distributions.Normal
    truth = normal(theta, variance.sqrt()).log_prob(iterates[3].double()).sum()
    theirs = normal(theta, variance).log_prob(iterates[3].double()).sum()  # as `diag_logll`
    found = diagonal.log_prob(point)
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-3)
    assert (found - theirs).abs() > 1


# -- torch-uncertainty ----------------------------------------------------------------------------


def test_torch_uncertainty_draws_the_low_rank_numbers_anew_for_each_parameter() -> None:
    iterates = random_walk(8, 10)
    covariance = collected(iterates).covariance
    _, _, d = algorithm_1(iterates, 8)
    joint = 0.5 * d @ d.T / 7
    # One z2 for all weights is what correlates them; one for each parameter leaves the blocks.
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(covariance.cov("first", "second"), joint[:4, 4:], **close)
    theirs = joint.clone()
    theirs[:4, 4:] = theirs[4:, :4] = 0
    lost = (joint - theirs).norm() / joint.norm()
    assert lost > 0.5


def test_torch_uncertainty_gives_a_weight_that_stood_still_a_deviation_of_a_thousandth() -> None:
    iterates = random_walk(8, 10)
    iterates[:, 6] = 1.5
    posterior = collected(iterates)
    theirs = algorithm_1(iterates, 8)[1].clamp_min(1e-6).sqrt()  # var_clamp, by default
    assert theirs[6] == pytest.approx(1e-3)
    assert (flat(posterior.sample(50))[:, 6] == 1.5).all()


# -- laplace-torch --------------------------------------------------------------------------------


def test_laplace_torch_estimates_the_diagonal_alone_and_so_does_rank_0() -> None:
    iterates = random_walk(40, 30)
    parameters = iterates.double()
    mean = second = torch.zeros(30).double()
    for n, vector in enumerate(parameters):  # as `fit_diagonal_swag_var`
        mean = mean * (n / (n + 1)) + vector / (n + 1)
        second = second * (n / (n + 1)) + vector**2 / (n + 1)
    theirs = (second - mean**2).clamp_min(1e-30)
    diagonal = collected(iterates).window(rank=0)
    torch.testing.assert_close(flat(diagonal.variance()), theirs, rtol=1e-5, atol=0)
    torch.testing.assert_close(flat(diagonal.covariance.diagonal()), theirs, rtol=1e-5, atol=0)
