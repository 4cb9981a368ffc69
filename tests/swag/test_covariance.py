"""The covariance as an operator, and divergences, against PyTorch's own distributions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import swag
from pmarray.errors import BudgetError
from swag.divergences import bhattacharyya_distance, jeffreys_divergence, kl_divergence
from swag.errors import ModelError, WindowError
from swag.posterior import Posterior
from swag.sampling import Center
from tests.sampling import examples

N = 2500  # three blocks, where little memory is allowed


class Weights(nn.Module):
    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.first = nn.Parameter(values[:12].reshape(3, 4).clone())
        self.second = nn.Parameter(values[12:].clone())


def iterates(count: int, n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.3 * torch.randn(count, n, generator=generator)).cumsum(dim=0)


def collected(walk: Tensor, **options: Any) -> swag.SWAG:
    posterior = swag.SWAG(Weights(walk[0]), **options)
    for values in walk:
        posterior.update_parameters(Weights(values))
    return posterior


def written_out(used: Tensor, k: int, center: Center, scale: float) -> Any:
    """From the iterates averaged, as Maddox et al. 2019 have it."""
    used = used.double()
    counts = torch.arange(1, len(used) + 1)[:, None]
    middle = used.cumsum(dim=0) / counts if center == "running" else used.mean(dim=0)
    d = (used - middle)[len(used) - k :].T
    factor = d * math.sqrt(scale / (k - 1)) if k > 1 else torch.zeros(used.shape[1], 1).double()
    variances = scale * used.var(dim=0, correction=0)
    made: Any = torch.distributions.LowRankMultivariateNormal
    return made(used.mean(dim=0), factor, variances)


def flat(weights: dict[str, Tensor]) -> Tensor:
    lead = weights["second"].shape[:-1]
    return torch.cat([weights["first"].reshape(*lead, 12), weights["second"]], dim=-1).double()


@examples(0.3)
@given(
    n=st.integers(13, 40),
    count=st.integers(2, 25),
    start=st.integers(0, 4),
    rank=st.integers(0, 25),
    center=st.sampled_from(["running", "mean"]),
    scale=st.sampled_from([0.5, 3.0]),
    seed=st.integers(0, 2**31),
)
def test_the_operator_is_that_of_pytorch(
    n: int, count: int, start: int, rank: int, center: Center, scale: float, seed: int
) -> None:
    start = min(start, count - 2)
    walk = iterates(count, n, seed)
    posterior = collected(walk).window(start, 1, rank, center)
    truth = written_out(walk[start:], posterior.rank, center, scale)
    matrix = truth.covariance_matrix
    covariance = posterior.covariance_of(scale=scale)
    size = float(matrix.abs().max())
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5 * size}
    assert covariance.shape == (n, n)
    torch.testing.assert_close(flat(covariance.diagonal()), truth.variance, **close)
    torch.testing.assert_close(covariance @ torch.eye(n), matrix, **close)
    torch.testing.assert_close(covariance @ torch.ones(n), matrix.sum(dim=1), rtol=1e-4, atol=size)
    identity = covariance @ covariance.solve(torch.eye(n))
    torch.testing.assert_close(identity, torch.eye(n).double(), rtol=0, atol=1e-9 * (1 + size))
    # A weight that hardly moved has a variance that float32 hardly knows.
    assert abs(covariance.logdet() - float(torch.linalg.slogdet(matrix)[1])) < 1e-3 * n
    assert abs(covariance.entropy() - float(truth.entropy())) < 1e-3 * n


@pytest.mark.parametrize("memory_bytes", [0, 1 << 30])
@pytest.mark.parametrize("rank", [0, 7])
def test_blocks_and_names(rank: int, memory_bytes: int) -> None:
    walk = iterates(30, N)
    posterior = collected(walk).window(rank=rank)
    covariance = posterior.covariance_of(scale=0.5, memory_bytes=memory_bytes)
    truth = written_out(walk, rank, "running", 0.5)
    draws = posterior.sample(3, generator=0)
    by_name = covariance @ draws
    assert by_name["first"].shape == (3, 3, 4)
    expected = flat(draws) @ truth.covariance_matrix
    torch.testing.assert_close(flat(by_name), expected, rtol=1e-4, atol=1e-2)
    again = flat(covariance.solve(by_name))
    torch.testing.assert_close(again, flat(draws), rtol=1e-8, atol=1e-8)
    assert abs(covariance.logdet() / float(truth.entropy() * 2 - N * (1 + math.log(2 * math.pi)))
               - 1) < 1e-5  # fmt: skip


def test_covariances_of_some_weights() -> None:
    walk = iterates(30, N)
    posterior = collected(walk)
    covariance = posterior.covariance_of(scale=1.0, memory_bytes=1 << 20)
    matrix = written_out(walk, 30, "running", 1.0).covariance_matrix
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[1, 2] = mask[2, 0] = True
    some = torch.tensor([2400, 3, 3])
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-3}
    torch.testing.assert_close(covariance.cov("first", "first"), matrix[:12, :12], **close)
    found = covariance.cov({"first": mask}, {"second": some, "first": torch.tensor([6])})
    torch.testing.assert_close(found, matrix[[6, 8]][:, [2412, 15, 15, 6]], **close)
    assert covariance.cov([], "first").shape == (0, 12)
    with pytest.raises(ModelError, match="no parameter third; there are first, second"):
        covariance.cov("first", "third")
    with pytest.raises(IndexError):
        covariance.cov("first", {"first": torch.tensor([12])})
    with pytest.raises(BudgetError, match=r"2,500 weights with 2,500 .* 51,200,000 bytes"):
        covariance.cov(["first", "second"], ["first", "second"])


def test_what_cannot_be_factored_is_refused() -> None:
    walk = iterates(8, 20)
    walk[:, 7] = 3
    covariance = collected(walk).covariance
    assert flat(covariance.diagonal())[7] == 0
    for ask in (covariance.logdet, covariance.entropy, lambda: covariance.solve(torch.ones(20))):
        with pytest.raises(WindowError, match="1 of 20 weights did not change"):
            ask()
    with pytest.raises(ValueError, match=r"shape \(19,\), not \(20,\)"):
        covariance @ torch.ones(19)
    with pytest.raises(ModelError, match="second is missing"):
        covariance @ {"first": torch.ones(3, 4)}
    with pytest.raises(ValueError, match="scale=0"):
        collected(walk).covariance_of(scale=0)


def test_a_rank_above_the_limit_is_refused_with_what_it_would_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("swag._factors.MAX_RANK", 5)
    posterior = collected(iterates(8, 20))
    assert (posterior.covariance @ torch.ones(20)).shape == (20,)  # needs no such matrix
    with pytest.raises(BudgetError, match=r"at rank 8 .* 1,024 bytes.*window\(rank=5\)"):
        posterior.covariance.logdet()
    assert math.isfinite(posterior.window(rank=5).covariance.logdet())


def test_the_factorisation_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    covariance = collected(iterates(8, 20)).covariance
    fresh = collected(iterates(8, 20)).covariance.logdet()
    covariance.solve(torch.ones(20))
    monkeypatch.setattr(covariance, "_factors", None)
    with pytest.raises(AttributeError):
        covariance.diagonal()
    monkeypatch.undo()
    reads = 0
    factors = covariance._factors

    class Counted:
        size, rank = factors.size, factors.rank

        def read(self, *arguments: Any) -> Any:
            nonlocal reads
            reads += 1
            return factors.read(*arguments)

    monkeypatch.setattr(covariance, "_factors", Counted())
    assert covariance.logdet() == fresh
    assert reads == 0


# -- divergences ----------------------------------------------------------------------------------


def pair(seed: int, ranks: tuple[int, int], n: int = 30) -> tuple[list[Posterior], list[Any]]:
    walks = [iterates(40, n, seed), iterates(30, n, seed + 1)]
    posteriors: list[Posterior] = [
        collected(walk).window(rank=rank) for walk, rank in zip(walks, ranks, strict=True)
    ]
    truths = [
        written_out(walk, rank, "running", 0.7) for walk, rank in zip(walks, ranks, strict=True)
    ]
    return posteriors, truths


@pytest.mark.parametrize("ranks", [(0, 0), (9, 0), (0, 9), (12, 25)])
def test_divergences_are_those_of_pytorch(ranks: tuple[int, int]) -> None:
    (p, q), (one, other) = pair(3, ranks)
    kl: Any = torch.distributions.kl_divergence
    options: dict[str, Any] = {"scale": 0.7}
    there, back = float(kl(one, other)), float(kl(other, one))
    assert math.isclose(kl_divergence(p, q, **options), there, rel_tol=1e-5)
    assert math.isclose(kl_divergence(q, p, **options), back, rel_tol=1e-5)
    for a, b in ((p, q), (q, p)):
        assert math.isclose(jeffreys_divergence(a, b, **options), there + back, rel_tol=1e-5)
    middle = (one.covariance_matrix + other.covariance_matrix) / 2
    apart = one.mean - other.mean
    expected = float(
        apart @ torch.linalg.solve(middle, apart) / 8
        + (
            torch.logdet(middle)
            - (torch.logdet(one.covariance_matrix) + torch.logdet(other.covariance_matrix)) / 2
        )
        / 2
    )
    for a, b in ((p, q), (q, p)):
        assert math.isclose(bhattacharyya_distance(a, b, **options), expected, rel_tol=1e-5)


def test_divergences_of_blocks_and_of_equals() -> None:
    (p, q), _ = pair(1, (12, 25), n=N)
    for divergence in (kl_divergence, jeffreys_divergence, bhattacharyya_distance):
        whole = divergence(p, q)
        assert math.isclose(divergence(p, q, memory_bytes=0), whole, rel_tol=1e-9)
        assert abs(divergence(p, p)) < 1e-9 * whole
        assert whole > 0


def test_divergences_of_different_networks_are_refused() -> None:
    one, other = swag.SWAG(nn.Linear(3, 1)), swag.SWAG(nn.Linear(3, 2))
    for posterior, model in ((one, nn.Linear(3, 1)), (other, nn.Linear(3, 2))):
        posterior.update_parameters(model)
    with pytest.raises(ModelError, match="bias, weight"):
        kl_divergence(one, other)
    with pytest.raises(WindowError, match="did not change"):
        jeffreys_divergence(one, one)


def test_what_selects_weights_is_what_it_says() -> None:
    """A mask that is transposed chose others; PyTorch takes bytes for a mask."""
    covariance = collected(iterates(6, 20)).covariance
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[0, 1] = mask[2, 3] = True
    wanted = covariance.cov({"first": mask}, "second")
    for same in ([1, 11], torch.tensor([1, 11], dtype=torch.uint8), mask.tolist()):
        assert torch.equal(covariance.cov({"first": same}, "second"), wanted)
    assert covariance.cov({"first": []}, "second").shape == (0, 8)
    for other in (mask.T, mask.flatten(), mask[:2]):
        with pytest.raises(ValueError, match="the mask of first has shape"):
            covariance.cov({"first": other}, "second")
    with pytest.raises(IndexError):
        covariance.cov({"first": torch.tensor([1.5])}, "second")


def test_complex_vectors_are_refused() -> None:
    """Their imaginary parts were dropped."""
    posterior = collected(iterates(6, 20))
    covariance, vector = posterior.covariance, torch.ones(20, dtype=torch.complex128)
    named = {"first": vector[:12].reshape(3, 4), "second": torch.ones(8)}
    for function in (covariance.__matmul__, covariance.solve):
        with pytest.raises(ValueError, match=r"the operand is torch\.complex128"):
            function(vector)
        with pytest.raises(ModelError, match=r"first is torch\.complex128"):
            function(named)
    with pytest.raises(ModelError, match=r"first is torch\.complex128"):
        posterior.log_prob(named)
