"""Subspace inference on the toy regression of Izmailov et al. 2019, beside SWAG.

As in their section 5.1: inputs in three clusters, outputs of a network whose weights are drawn,
with noise; a network of the same architecture, hidden layers of 200, 50, 50 and 50 units fed x / 2
and its square, is trained on them at a constant rate. Outputs have standard deviation 1, the noise
0.1.
Held out are inputs of the same clusters, and of the gaps between them, where a posterior should be
unsure. The picture has the mean and three standard deviations of what each method says, as theirs.
"""

from __future__ import annotations

import math
import statistics
import uuid
from itertools import pairwise

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import swag
from benchmarks._records import Record, Recording
from benchmarks._tables import Table

__all__ = ["figures", "measure", "tables"]

_NOISE = 0.1
_CLUSTERS = ((-7.2, -4.8), (-1.2, 1.2), (4.8, 7.2))
_GAPS = ((-4.2, -1.8), (1.8, 4.2))
_WIDTHS = (2, 200, 50, 50, 50, 1)
_POINTS, _BATCH = 400, 50
_RATE, _MOMENTUM = 1e-2, 0.95
_PRIOR = 10.0
"""Standard deviation of the prior, in those of the iterates: wide, the likelihood decides."""
_LINE = torch.linspace(-12, 12, 241)


def features(x: Tensor) -> Tensor:
    """What the network sees of inputs, shape (n,): (n, 2)."""
    return torch.stack([x / 2, (x / 2) ** 2], dim=1)


def network() -> nn.Sequential:
    """The fully connected network of the paper."""
    layers: list[nn.Module] = []
    for a, b in pairwise(_WIDTHS):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def problem(seed: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs and outputs, shape (points,) each: to train on, held out, held out in the gaps."""
    generator = torch.Generator().manual_seed(seed)
    truth = network()
    for parameter in truth.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / math.sqrt(
            parameter.shape[-1] if parameter.ndim == 2 else 1
        )
    inputs = []
    for intervals in (_CLUSTERS, _CLUSTERS, _GAPS):
        low, high = torch.tensor(intervals)[torch.arange(_POINTS) % len(intervals)].T
        inputs.append(low + (high - low) * torch.rand(_POINTS, generator=generator))
    x = torch.stack(inputs)
    with torch.no_grad():
        y = truth(features(x.flatten())).view(x.shape)
    y = (y - y[0].mean()) / y[0].std() + _NOISE * torch.randn(x.shape, generator=generator)
    return list(zip(x, y, strict=True))


def trained(x: Tensor, y: Tensor, seed: int, epochs: int) -> tuple[nn.Module, swag.SWAG]:
    """A network trained by SGD, and the posterior of one iterate an epoch of its last third."""
    begin = 2 * epochs // 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=_RATE, momentum=_MOMENTUM)
        posterior = swag.SWAG(model, store=f"dram:{uuid.uuid4().hex}")
        for epoch in range(epochs):
            for some in torch.split(torch.randperm(len(x)), _BATCH):
                optimizer.zero_grad()
                (model(features(x[some])).squeeze(1) - y[some]).square().mean().backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            if epoch >= begin:
                posterior.update_parameters(model)
    return model, posterior


def measure(run: Recording, *, seeds: int, samples: int, epochs: int, temperature: float) -> None:
    """Held-out log likelihood of SWAG and of subspaces of 2, 5 and 10 directions."""
    for seed in range(seeds):
        run.report(f"seed {seed}")
        (x, y), *held_out = problem(seed)
        model, posterior = trained(x, y, seed, epochs)

        def log_likelihood(model: nn.Module, x: Tensor = x, y: Tensor = y) -> float:
            off = model(features(x)).squeeze(1) - y
            return float(-off.square().sum() / (2 * _NOISE**2))

        drawn: dict[str, list[dict[str, Tensor]]] = {"SGD": [dict(model.named_parameters())]}
        draws = posterior.sample(samples, generator=seed)
        drawn["SWAG"] = [{name: w[i] for name, w in draws.items()} for i in range(samples)]
        for k in (2, 5, 10):
            subspace = posterior.window(center="mean").subspace(k)
            points = subspace.sample(
                model, log_likelihood, samples, temperature=temperature, prior_scale=_PRIOR,
                burn_in=100, every=5, generator=seed,
            )  # fmt: skip
            drawn[f"subspace, k = {k}"] = [subspace.weights(point) for point in points]
        posterior.close()
        if not seed:
            run.add("data", x=_rounded(x), y=_rounded(y))
        for name, networks in drawn.items():
            for where, (held_x, held_y) in zip(("clusters", "gaps"), held_out, strict=True):
                found = _outputs(model, networks, held_x)
                run.add(
                    "method", seed=seed, method=name, where=where,
                    log_likelihood=_log_likelihood(found, held_y),
                    rmse=float((found.mean(0) - held_y).square().mean().sqrt()),
                    spread=float(found.std(0, correction=0).mean()),
                )  # fmt: skip
            if not seed:
                along = _outputs(model, networks, _LINE)
                mean, spread = along.mean(0), along.std(0, correction=0)
                run.add("band", method=name, mean=_rounded(mean), spread=_rounded(spread))


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


@torch.no_grad()
def _outputs(model: nn.Module, networks: list[dict[str, Tensor]], x: Tensor) -> Tensor:
    """What each network says, shape (networks, n)."""
    outputs = [torch.func.functional_call(model, w, (features(x),)) for w in networks]
    return torch.stack(outputs).squeeze(2)


def _log_likelihood(found: Tensor, y: Tensor) -> float:
    """Mean log of the density of y in the mixture of the networks, in nats."""
    each = -((found - y) ** 2) / (2 * _NOISE**2) - math.log(_NOISE * math.sqrt(2 * math.pi))
    return float((each.double().logsumexp(dim=0) - math.log(len(found))).mean())


def figures(run: Recording) -> dict[str, Figure]:
    """Draw what each method says of the first data set."""
    bands, (data,) = run.of("band"), run.of("data")
    figure = Figure(figsize=(2.6 * len(bands), 2.8), layout="constrained")
    line = _LINE.tolist()
    for axes, band in zip(figure.subplots(1, len(bands), sharey=True), bands, strict=True):
        mean, spread = torch.tensor(band["mean"]), torch.tensor(band["spread"])
        axes.fill_between(
            line, (mean - 3 * spread).tolist(), (mean + 3 * spread).tolist(),
            color="#56B4E9", alpha=0.5, linewidth=0,
        )  # fmt: skip
        axes.plot(line, band["mean"], color="#0072B2")
        axes.plot(data["x"], data["y"], ".", color="#D55E00", markersize=2)
        axes.set(title=band["method"], ylim=(min(data["y"]) - 2, max(data["y"]) + 2))
        axes.spines[["top", "right"]].set_visible(False)
    return {"toy-regression": figure}


def tables(run: Recording) -> list[Table]:
    """Lay out a run: medians over the data sets."""
    places: dict[str, dict[str, list[Record]]] = {}
    for one in run.of("method"):
        places.setdefault(one["where"], {}).setdefault(one["method"], []).append(one)
    laid_out = []
    for where, methods in places.items():
        sets = len(next(iter(methods.values())))
        table = Table(
            f"Held out in the {where}",
            ["method", "log likelihood, nats a point", "RMSE", "spread of the networks"],
            note=f"Medians of {sets} data sets, the range in brackets; larger is better.",
        )  # fmt: skip
        for name, found in methods.items():
            heights = [one["log_likelihood"] for one in found]
            rest = (statistics.median(one[key] for one in found) for key in ("rmse", "spread"))
            table.rows.append([
                name,
                f"{statistics.median(heights):.3f} ({min(heights):.3f} to {max(heights):.3f})",
                *(f"{value:.3f}" for value in rest),
            ])  # fmt: skip
        laid_out.append(table)
    return laid_out
