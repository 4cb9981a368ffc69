"""Subspace inference on the toy regression of Izmailov et al. 2019, beside SWAG.

Their data: inputs in three clusters, outputs of a network with normal weights and noise of standard
deviation 0.1; a network with three hidden layers of ten units, fed x and x², is trained on them.
Held out are inputs of the same clusters, and inputs between them, where a posterior should be
unsure. The picture has the middle nine tenths of what each method says.
"""

from __future__ import annotations

import math
import uuid
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

import swag
from benchmarks._records import Recording
from benchmarks._tables import Table

__all__ = ["measure", "tables"]

_NOISE = 0.1
_CLUSTERS = ((-6.0, -4.0), (-1.0, 1.0), (4.0, 6.0))
_POINTS = 60
_STEPS, _COLLECTED = 6000, 2000
_TEMPERATURE = 20.0


def features(x: Tensor) -> Tensor:
    """What the network sees of inputs, shape (n,): (n, 2)."""
    return torch.stack([x / 2, (x / 2) ** 2], dim=1)


def network() -> nn.Sequential:
    """Three hidden layers of ten units."""
    widths = [2, 10, 10, 10, 1]
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def problem(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, nn.Module]:
    """Training inputs and outputs, held-out inputs and outputs, and the network they are of."""
    generator = torch.Generator().manual_seed(seed)
    truth = network()
    for parameter in truth.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / math.sqrt(
            parameter.shape[-1] if parameter.ndim == 2 else 1
        )

    def drawn(count: int) -> tuple[Tensor, Tensor]:
        x = torch.cat([
            low + (high - low) * torch.rand(count // 3, generator=generator)
            for low, high in _CLUSTERS
        ])  # fmt: skip
        with torch.no_grad():
            y = truth(features(x)).squeeze(1)
        return x, y + _NOISE * torch.randn(len(x), generator=generator)

    return *drawn(_POINTS), *drawn(300), truth


def trained(x: Tensor, y: Tensor, seed: int) -> tuple[nn.Module, swag.SWAG]:
    """A network trained by SGD, and the posterior of its last iterates."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, weight_decay=1e-4)
        posterior = swag.SWAG(model, store=f"dram:{uuid.uuid4().hex}")
        for step in range(_STEPS):
            some = torch.randint(len(x), (20,))
            optimizer.zero_grad()
            (model(features(x[some])).squeeze(1) - y[some]).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step >= _STEPS - _COLLECTED and step % 10 == 0:
                posterior.update_parameters(model)
    return model, posterior


def measure(run: Recording, *, seeds: int, samples: int, figure: Path | None) -> None:
    """Held-out log likelihood of SWAG and of subspaces of 2, 5 and 10 directions."""
    panels: dict[str, Tensor] = {}
    line = torch.linspace(-9, 9, 400)
    between = (line.abs() > 1.5) & (line.abs() < 3.5)
    for seed in range(seeds):
        run.report(f"seed {seed}")
        x, y, held_x, held_y, _ = problem(seed)
        model, posterior = trained(x, y, seed)

        def log_likelihood(model: nn.Module, x: Tensor = x, y: Tensor = y) -> float:
            off = model(features(x)).squeeze(1) - y
            return float(-off.square().sum() / (2 * _NOISE**2))

        drawn: dict[str, list[dict[str, Tensor]]] = {"SGD": [dict(model.named_parameters())]}
        draws = posterior.sample(samples, generator=seed)
        drawn["SWAG"] = [{name: w[i] for name, w in draws.items()} for i in range(samples)]
        for k in (2, 5, 10):
            subspace = posterior.window(center="mean").subspace(k)
            points = subspace.sample(
                model, log_likelihood, samples, temperature=_TEMPERATURE, prior_scale=2.0,
                burn_in=100, every=5, generator=seed,
            )  # fmt: skip
            drawn[f"subspace, k = {k}"] = [subspace.weights(point) for point in points]
        for name, networks in drawn.items():
            found, along = _outputs(model, networks, held_x), _outputs(model, networks, line)
            run.add(
                "method", seed=seed, method=name,
                rmse=float((found.mean(0) - held_y).square().mean().sqrt()),
                log_likelihood=_log_likelihood(found, held_y),
                spread_inside=float(found.std(0, correction=0).mean()),
                spread_between=float(along[:, between].std(0, correction=0).mean()),
            )  # fmt: skip
            if not seed:
                panels[name] = along
        posterior.close()
        if not seed and figure is not None:
            _draw(figure, x, y, line, panels)


@torch.no_grad()
def _outputs(model: nn.Module, networks: list[dict[str, Tensor]], x: Tensor) -> Tensor:
    """What each network says, shape (networks, n)."""
    outputs = [torch.func.functional_call(model, w, (features(x),)) for w in networks]
    return torch.stack(outputs).squeeze(2)


def _log_likelihood(found: Tensor, y: Tensor) -> float:
    """Mean log of the density of y in the mixture of the networks, in nats."""
    each = -((found - y) ** 2) / (2 * _NOISE**2) - math.log(_NOISE * math.sqrt(2 * math.pi))
    return float((each.double().logsumexp(dim=0) - math.log(len(found))).mean())


def _draw(figure: Path, x: Tensor, y: Tensor, line: Tensor, panels: dict[str, Tensor]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(3.2 * len(panels), 3.2), layout="constrained")
    FigureCanvasAgg(drawing)
    for axes, (name, found) in zip(
        drawing.subplots(1, len(panels), sharey=True), panels.items(), strict=True
    ):
        low, high = found.quantile(torch.tensor([0.05, 0.95]), dim=0)
        axes.fill_between(line, low, high, color="#56B4E9", alpha=0.5, linewidth=0)
        axes.plot(line, found.mean(0), color="#0072B2")
        axes.plot(x, y, ".", color="#D55E00", markersize=3)
        axes.set(title=name, ylim=(float(y.min()) - 2, float(y.max()) + 2))
        axes.spines[["top", "right"]].set_visible(False)
    figure.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(figure, dpi=140)


def tables(run: Recording) -> list[Table]:
    """Lay out a run: means over the seeds."""
    methods: dict[str, list[dict[str, float]]] = {}
    for one in run.of("method"):
        methods.setdefault(one["method"], []).append(dict(one))
    keys = ("log_likelihood", "rmse", "spread_inside", "spread_between")
    table = Table(
        "Toy regression",
        ["method", "held-out log likelihood", "RMSE", "spread", "between clusters"],
        note=f"Means of {len(next(iter(methods.values())))} seeds; nats a point, larger is better.",
    )  # fmt: skip
    for name, found in methods.items():
        table.rows.append([name, *(f"{sum(o[k] for o in found) / len(found):.3f}" for k in keys)])
    return [table]
