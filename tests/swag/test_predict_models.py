"""Predictions with models of every kind: what they take, what they give, what is made of it."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict, UserDict
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given as for_all
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    TensorDataset,
)

import swag
from swag.regression import GaussianPrediction
from tests.sampling import examples

SAMPLES: dict[str, Any] = {"samples": 5, "generator": 4}


def seeded(model: type[nn.Module], *arguments: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model(*arguments)


def collected(model: nn.Module, count: int = 8) -> swag.SWAG:
    posterior = swag.SWAG(model)
    generator = torch.Generator().manual_seed(1)
    model = copy.deepcopy(model)
    for _ in range(count):
        for p in model.parameters():
            p.data += 0.1 * torch.randn(p.shape, generator=generator)
        posterior.update_parameters(model)
    return posterior


def some(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -- what goes in and what comes out --------------------------------------------------------------


class Output(OrderedDict[str, Any]):
    """As `transformers.modeling_outputs.ModelOutput`: a mapping whose items are attributes too."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Encoding(UserDict[str, Any]):
    """As `transformers.BatchEncoding`: a mapping that is no dict, and knows `to`."""

    def to(self, device: Any) -> Encoding:
        return Encoding({key: value.to(device) for key, value in self.data.items()})


class Pair(NamedTuple):
    logits: Tensor
    aux_logits: Tensor


class Text(nn.Module):
    """Takes and gives what models of text do."""

    def __init__(self, gives: Any = Output) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.gives = gives

    def forward(
        self, ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Any:
        logits = self.linear(ids if attention_mask is None else ids * attention_mask)
        hidden = torch.zeros(len(ids), 7)
        if self.gives is Output:
            return Output(loss=logits.mean(), logits=logits, hidden_states=(hidden,))
        if self.gives is Pair:
            return Pair(logits, hidden)
        if self.gives is dict:
            return {"aux": hidden, "out": logits}
        return (logits.mean(), logits, hidden) if labels is not None else (logits, hidden)


@pytest.mark.parametrize("gives", [Output, Pair, dict, tuple])
def test_mappings_go_in_by_name_and_the_predictions_come_out(gives: Any) -> None:
    model = seeded(Text, gives)
    posterior, ids, mask = collected(model), some(9, 4), (some(9, 4, seed=3) > 0).float()
    items = {"ids": ids, "attention_mask": mask, "labels": torch.zeros(9), "idx": torch.arange(9)}
    expected = posterior.predict(
        model,
        [ids * mask],
        activation="softmax",
        forward=lambda model, batch: model.get_submodule("linear")(batch),
        **SAMPLES,
    )
    for batch in (items, UserDict(items), Encoding(items)):
        found = posterior.predict(model, [batch], activation="softmax", **SAMPLES)
        torch.testing.assert_close(found, expected)
    del items["ids"]
    with pytest.raises(ValueError, match="takes ids, attention_mask, labels: say which"):
        posterior.predict(model, [items], activation="softmax")


def test_a_model_of_any_names_takes_all_of_a_mapping() -> None:
    class Anything(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, **batch: Tensor) -> Tensor:
            out: Tensor = self.linear(batch["a"] + batch["b"])
            return out

    model = seeded(Anything)
    posterior = collected(model)
    found = posterior.predict(
        model, [{"a": some(9, 4), "b": some(9, 4)}], activation="none", **SAMPLES
    )
    expected = posterior.predict(
        model,
        2 * some(9, 4),
        activation="none",
        forward=lambda m, x: m.get_submodule("linear")(x),
        **SAMPLES,
    )
    torch.testing.assert_close(found, expected)


def test_statistics_are_recomputed_from_mappings_and_by_forward() -> None:
    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, image: Tensor) -> Tensor:
            out: Tensor = self.norm(image)
            return out

    one, other, third = Images(), Images(), Images()
    images = some(30, 4)
    swag.update_bn([images], one)
    swag.update_bn([{"label": torch.zeros(30), "image": images}], other)
    swag.update_bn([{"x": images}], third, forward=lambda model, batch: model(batch["x"]))
    for model in (other, third):
        assert torch.equal(one.get_buffer("norm.running_var"), model.get_buffer("norm.running_var"))


def test_segmentation_has_its_classes_on_axis_1() -> None:
    model = seeded(nn.Conv2d, 2, 3, 1)
    posterior, images = collected(model), some(4, 2, 5, 6)
    found = posterior.predict(model, images, activation="softmax", **SAMPLES)
    expected = posterior.predict(model, images, activation=nn.Softmax(dim=1), **SAMPLES)
    assert found.shape == (4, 3, 5, 6)
    assert torch.equal(found, expected)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(4, 5, 6))


# -- several draws at a time ----------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.linear(inputs)
        return out if out.sum().item() > 0 else -out


class Keeping(nn.Module):
    """Computes with what `torch.func.functional_call` does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.__dict__["kept"] = [self.linear.weight]

    def forward(self, inputs: Tensor) -> Tensor:
        weight: Tensor = self.__dict__["kept"][0]
        return inputs @ weight.T


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 3, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.gru(inputs.reshape(len(inputs), 1, 4))[0][:, 0]
        return out


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Dropout(0.5))
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)),
        lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3).half().float()),
        tied,
        Branching,
        Keeping,
        Recurrent,
    ],
)
def test_draws_together_predict_what_they_do_alone(make: Any) -> None:
    model = seeded(make)
    posterior, inputs = collected(model), some(20, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options: dict[str, Any] = {"samples": 7, "generator": 4, "batch_size": 6}
    alone = posterior.predict_each(model, inputs, draws_at_once=1, **options)
    assert len({row.numpy().tobytes() for row in alone}) == 7
    for at_once in (None, 3):
        found = posterior.predict_each(model, inputs, draws_at_once=at_once, **options)
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_draws_really_go_through_together() -> None:
    model = seeded(nn.Linear, 4, 3)
    posterior = collected(model)
    calls: list[int] = []

    def forward(model: nn.Module, batch: Tensor) -> Any:
        calls.append(len(batch))
        return model(batch)

    posterior.predict(
        model, some(9, 4), activation="none", forward=forward, samples=30, generator=0
    )
    # All thirty; two of them twice, and one of them alone, to compare.
    assert len(calls) == 4


def together_and_alone(model: nn.Module, posterior: swag.SWAG, inputs: Any) -> list[Tensor]:
    """What each of some networks gives, by default, one after another, and by a loop of our own."""
    found = [
        posterior.predict_each(model, inputs, draws_at_once=at_once, **SAMPLES)
        for at_once in (None, 1)
    ]
    draws = posterior.sample(SAMPLES["samples"], generator=SAMPLES["generator"])
    own = []
    for i in range(SAMPLES["samples"]):
        network = copy.deepcopy(model)
        network.load_state_dict({name: value[i] for name, value in draws.items()}, strict=False)
        own.append(network.eval()(inputs.clone()).detach())
    return [*found, torch.stack(own)]


class Centring(nn.Module):
    """Normalises what it is given in place."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Any:
        return self.linear(x.sub_(0.5).div_(0.25))


def test_a_model_may_change_its_input() -> None:
    model, inputs = seeded(Centring), some(7, 3)
    posterior, before = collected(model), inputs.clone()
    for found in together_and_alone(model, posterior, inputs)[:2]:
        assert torch.equal(inputs, before)
        expected = together_and_alone(model, posterior, inputs)[2]
        torch.testing.assert_close(found, expected)
    seen: list[Any] = [{"x": inputs}, (inputs,), [inputs, torch.zeros(7)], Encoding(x=inputs)]
    for batch in seen:
        posterior.predict(model, [batch], activation="none", **SAMPLES)
    assert torch.equal(inputs, before)


class Aside(nn.Module):
    """Has a weight in a list of its own too, of which `functional_call` does not know."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 16), nn.Linear(16, 1)
        nn.init.constant_(self.second.bias, bias)
        self.aside = [self.second.weight]

    def forward(self, x: Tensor) -> Any:
        hidden = torch.tanh(self.first(x))
        return nn.functional.linear(hidden, self.aside[0], self.second.bias)


@pytest.mark.parametrize(
    ("bias", "spread", "dtype"),
    [
        (0.0, 1e-5, torch.float32),
        (0.0, 0.1, torch.bfloat16),
        (300.0, 1e-3, torch.float32),
        (1e4, 0.1, torch.float32),
    ],
)
def test_a_weight_that_is_come_to_in_another_way_counts(
    bias: float, spread: float, dtype: torch.dtype
) -> None:
    model = seeded(Aside, bias).to(dtype)
    posterior = swag.SWAG(model)
    moving, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    for _ in range(8):
        for p in moving.parameters():
            p.data += spread * torch.randn(p.shape, generator=generator).to(dtype)
        posterior.update_parameters(moving)
    inputs = some(9, 4).to(dtype)
    each = [
        posterior.predict_each(model, inputs, draws_at_once=at_once, **SAMPLES)
        for at_once in (None, 1)
    ]
    assert torch.equal(*each)


def test_names_that_a_wrapper_of_a_layer_changes() -> None:
    wrapped = checkpoint_wrapper(nn.Linear(8, 2))
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), wrapped)
    plain = nn.Sequential(model[0], nn.Tanh(), copy.deepcopy(nn.Linear(8, 2)))
    plain[2].load_state_dict(
        {name.split(".")[-1]: value for name, value in wrapped.state_dict().items()}
    )
    posterior = collected(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = posterior.predict(model, some(9, 4), activation="softmax", **SAMPLES)
    torch.testing.assert_close(
        found, posterior.predict(plain, some(9, 4), activation="softmax", **SAMPLES)
    )
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    posterior.update_parameters(model)


def test_an_exception_while_parameters_are_exchanged_leaves_the_models_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = seeded(nn.Linear, 4, 3)
    posterior, own = collected(model), dict(model.named_parameters())

    def torn(module: Any, weights: dict[str, Tensor], _inputs: Any) -> None:
        module.model._parameters["weight"] = weights["model.weight"]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch.func, "functional_call", torn)
        with pytest.raises(KeyboardInterrupt):
            posterior.predict(model, some(9, 4), activation="none", **SAMPLES)
    assert all(parameter is own[name] for name, parameter in model.named_parameters())


def test_outputs_that_do_not_fit_together_are_refused() -> None:
    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Any:
            return self.linear(x).squeeze()

    model = Squeezed()
    posterior = collected(model)
    options: dict[str, Any] = {"activation": "none", "batch_size": 3, **SAMPLES}
    assert posterior.predict(model, some(6, 3), **options).shape == (6,)
    for count in (7, 1):
        with pytest.raises(ValueError, match=r"outputs of shape \(\).*squeeze\(\) may take"):
            posterior.predict(model, some(count, 3), **options)
    model2 = nn.Linear(3, 3)
    padded = [some(2, 5, 3), some(2, 7, 3)]
    with pytest.raises(ValueError, match=r"shape \(2, 7, 3\), and the first one.*pad the inputs"):
        collected(model2).predict(model2, padded, activation="none", **SAMPLES)


def test_shuffled_inputs_are_found_out_however_they_are_shuffled() -> None:
    model, data = seeded(nn.Linear, 3, 2), TensorDataset(some(8, 3))
    posterior = collected(model)
    spread: Any = DistributedSampler(data, num_replicas=2, rank=0)
    for loader in (
        DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 2, drop_last=False)),
        DataLoader(data, batch_size=2, sampler=spread),
    ):
        with pytest.raises(ValueError, match="shuffled"):
            posterior.predict(model, loader, activation="none", **SAMPLES)
    in_order: Any = DistributedSampler(data, num_replicas=2, rank=0, shuffle=False)
    loader = DataLoader(data, batch_size=2, sampler=in_order)
    assert posterior.predict(model, loader, activation="none", **SAMPLES).shape == (4, 2)


def test_an_error_of_the_model_is_its_own() -> None:
    model = seeded(nn.Linear, 4, 3)
    posterior = collected(model)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        posterior.predict(model, some(9, 5), activation="none", samples=3)
    with pytest.raises(ValueError, match="draws_at_once must be"):
        posterior.predict(model, some(9, 4), activation="none", draws_at_once=0)


@pytest.mark.parametrize("draws_at_once", [None, 1])
def test_progress_counts_what_networks_have_seen(draws_at_once: int | None) -> None:
    model = seeded(nn.Linear, 4, 3)
    posterior = collected(model)
    seen: list[tuple[int, int | None]] = []
    options: dict[str, Any] = {
        "activation": "none", "samples": 3, "draws_at_once": draws_at_once,
        "progress": lambda done, total: seen.append((done, total)),
    }  # fmt: skip
    loader = DataLoader(TensorDataset(some(9, 4)), batch_size=4, generator=torch.Generator())
    for inputs in (some(9, 4), TensorDataset(some(9, 4)), loader):
        seen.clear()
        posterior.predict(model, inputs, batch_size=4, **options)
        assert seen[-1] == (27, 27)
        assert len(seen) == 9
    seen.clear()
    posterior.predict(model, iter([some(5, 4), some(4, 4)]), memory_bytes=1, **options)
    assert [done for done, _ in seen] == [5, 10, 15, 19, 23, 27]
    assert {total for _, total in seen} == {None}


def test_outputs_are_stacked_in_the_order_of_draws() -> None:
    model = seeded(nn.Linear, 4, 3)
    posterior, inputs = collected(model), some(9, 4)
    draws = posterior.sample(5, generator=4)
    found = posterior.predict_each(model, inputs, batch_size=4, **SAMPLES)
    expected = torch.stack(
        [inputs @ w.T + b for w, b in zip(draws["weight"], draws["bias"], strict=True)]
    )
    torch.testing.assert_close(found, expected)
    assert found.shape == (5, 9, 3)
    mean = posterior.predict(model, inputs, activation="softmax", **SAMPLES)
    each = posterior.predict_each(model, inputs, activation="softmax", **SAMPLES)
    torch.testing.assert_close(each.mean(dim=0), mean)
    both = swag.MultiSWAG([posterior, posterior.window(start=3)])
    assert both.predict_each(model, inputs, **SAMPLES).shape == (10, 9, 3)


# -- regression -----------------------------------------------------------------------------------


class Heteroscedastic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean, self.spread = nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(inputs), nn.functional.softplus(self.spread(inputs))


def test_a_regression_has_the_variance_of_a_mixture_of_gaussians() -> None:
    model = seeded(Heteroscedastic)
    posterior, inputs = collected(model), some(11, 4)
    draws = posterior.sample(5, generator=4)
    outputs = [
        torch.func.functional_call(model, {n: v[i] for n, v in draws.items()}, inputs)
        for i in range(5)
    ]
    truth: Any = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(11, 1, 5)),
        torch.distributions.Normal(
            torch.stack([mean for mean, _ in outputs], dim=-1),
            torch.stack([variance for _, variance in outputs], dim=-1).sqrt(),
        ),
    )
    found = posterior.predict_regression(model, inputs, noise="learned", batch_size=4, **SAMPLES)
    torch.testing.assert_close(found.mean, truth.mean)
    torch.testing.assert_close(found.variance, truth.variance)
    means = torch.stack([mean for mean, _ in outputs])
    given = posterior.predict_regression(model, inputs, noise=0.3, **SAMPLES)
    torch.testing.assert_close(given.epistemic, means.var(dim=0, correction=0))
    torch.testing.assert_close(given.variance, means.var(dim=0, correction=0) + 0.3)
    none = posterior.predict_regression(model, inputs, **SAMPLES)
    assert not none.noise.any()


def test_noise_that_is_none_is_refused() -> None:
    model = seeded(nn.Linear, 4, 2)
    posterior, inputs = collected(model), some(11, 4)
    with pytest.raises(TypeError, match="two tensors, mean and variance"):
        posterior.predict_regression(model, inputs, noise="learned")
    with pytest.raises(ValueError, match='use a variance, "learned" or None'):
        posterior.predict_regression(model, inputs, noise="known")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="negative"):
        posterior.predict_regression(model, inputs, noise=-1.0)
    with pytest.raises(ValueError, match=r"takes exp\(\) of it"):
        posterior.predict_regression(
            model, inputs, noise="learned", forward=lambda m, x: m(x).split(1, dim=1)
        )
    found = posterior.predict_regression(model, inputs, noise=torch.tensor([0.1, 0.2]))
    assert found.noise[3].tolist() == pytest.approx([0.1, 0.2])
    with pytest.raises(ValueError, match=r"shape \(11,\), and the predictions \(11, 2\)"):
        found.log_prob(torch.zeros(11))


def test_the_obvious_regression() -> None:
    x = torch.linspace(-1, 1, 64)[:, None]
    y = 2 * x + 0.1 * some(64, 1)
    model = seeded(nn.Linear, 1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    posterior = swag.SWAG(model)
    for step in range(300):
        rows = torch.randperm(64, generator=torch.Generator().manual_seed(step))[:8]
        optimizer.zero_grad()
        (model(x[rows]) - y[rows]).square().mean().backward()
        optimizer.step()
        if step >= 200:
            posterior.update_parameters(model)
    found = posterior.predict_regression(model, x)
    found = found.with_noise(found.fitted_noise(y))
    assert (found.mean - 2 * x).abs().max() < 0.1
    low, high = found.interval(0.9)
    assert 0.8 < ((y > low) & (y < high)).float().mean() < 0.98
    torch.testing.assert_close(
        posterior.predict(model, x, activation="none", generator=1),
        posterior.predict_regression(model, x, generator=1).mean,
    )


@examples(0.5)
@for_all(seed=st.integers(0, 2**31), n=st.integers(2, 40), level=st.floats(1e-3, 10))
def test_no_noise_is_likelier_than_the_one_fitted(seed: int, n: int, level: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    epistemic = 0.2 * torch.rand(n, 2, generator=generator).double()
    targets = (level + epistemic).sqrt() * torch.randn(n, 2, generator=generator).double()
    zero = torch.zeros(n, 2).double()
    prediction = GaussianPrediction(zero, epistemic, zero)
    best = prediction.fitted_noise(targets)
    top = prediction.with_noise(best).log_prob(targets).sum(dim=0)
    for factor in (1e-3, 0.5, 0.99, 1.01, 2.0, 1e3):
        other = prediction.with_noise(best * factor).log_prob(targets).sum(dim=0)
        assert (other <= top + 1e-6).all()
    normal: Any = torch.distributions.Normal(zero, (epistemic + best).sqrt())
    torch.testing.assert_close(
        prediction.with_noise(best).log_prob(targets), normal.log_prob(targets)
    )
    low, high = prediction.with_noise(best).interval(0.5)
    torch.testing.assert_close(normal.cdf(high) - normal.cdf(low), torch.full_like(zero, 0.5))
    assert math.isfinite(float(top.sum()))


def test_the_noise_is_found_however_far_apart_the_scales_are() -> None:
    """One prediction far off, whose variance says so, decides nothing about the others."""
    residuals = torch.logspace(-3.5, -2.5, 101).double()
    far = torch.tensor([100.0]).double()
    targets = torch.stack([torch.cat([residuals, far]), torch.cat([residuals, 0 * far])], dim=1)
    epistemic = torch.stack([torch.cat([0 * residuals, far**2])] * 2, dim=1)
    prediction = GaussianPrediction(0 * targets, epistemic, 0 * targets)
    best = prediction.fitted_noise(targets)
    expected = residuals.square().mean().expand(2)  # but for what the last row adds
    torch.testing.assert_close(best, expected, rtol=1e-6, atol=0)
    # Where the networks differ by more than they are off, there is next to none.
    unsure = GaussianPrediction(0 * targets, 0 * targets + 1, 0 * targets)
    assert (unsure.fitted_noise(targets.clamp(max=0.1)) < 1e-12).all()


# -- transformers itself --------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:::transformers")
def test_a_model_of_transformers_takes_its_encodings() -> None:
    transformers = pytest.importorskip(
        "transformers", reason="transformers: needs the package transformers"
    )
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, num_labels=3,
    )  # fmt: skip
    model = seeded(transformers.BertForSequenceClassification, config)
    posterior = collected(model)
    ids = torch.randint(50, (6, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[:3, 5:] = 0
    items = {"input_ids": ids, "attention_mask": mask, "labels": torch.zeros(6).long(), "row": ids}
    found = posterior.predict(
        model, [transformers.BatchEncoding(items)], activation="softmax", **SAMPLES
    )
    draws = posterior.sample(**{"n" if k == "samples" else k: v for k, v in SAMPLES.items()})
    each = [
        torch.func.functional_call(
            model.eval(),
            {name: values[i] for name, values in draws.items()},
            (),  # which PyTorch 2.4 asks for
            kwargs={"input_ids": ids, "attention_mask": mask},
        ).logits.softmax(dim=1)
        for i in range(5)
    ]
    torch.testing.assert_close(found, torch.stack(each).mean(dim=0).detach())


# -- buffers that are more than memory ------------------------------------------------------------


class Own(nn.Module):
    """A layer, and a buffer in the way of a model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.dropout = nn.Dropout()
        self.begin()

    def begin(self) -> None:
        """Make the buffer."""


class Counting(Own):
    """Assigns its buffer, where others write into theirs."""

    passes: Tensor

    def begin(self) -> None:
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.passes = self.passes + 1
        result: Tensor = self.layer(x)
        return result


class Caching(Own):
    """Has made something of its weights, until it is told that they are others."""

    doubled: Tensor

    def begin(self) -> None:
        self.register_buffer("doubled", torch.zeros(4, 4), persistent=False)
        self.is_fresh = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_fresh:
            self.doubled, self.is_fresh = self.layer.weight.detach() * 2, True
        return x @ self.doubled.T


class Growing(Own):
    """A table as long as its longest input so far, of which it notes the length beside."""

    table: Tensor

    def begin(self) -> None:
        self.length = 0
        self.register_buffer("table", torch.zeros(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.length:
            self.length = len(x)
            self.register_buffer("table", torch.arange(1.0, len(x) + 1), persistent=False)
        result: Tensor = self.layer(x) * self.table[: len(x), None]
        return result


class Expanded(Own):
    """A constant whose items lie in the same memory."""

    mask: Tensor

    def begin(self) -> None:
        self.register_buffer("mask", torch.ones(1).expand(4))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x * self.mask)
        return result


class Sharing(Own):
    """A buffer in the memory of a weight."""

    def begin(self) -> None:
        self.register_buffer("same", self.layer.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)
        return result


class Normalised(Counting):
    """Has statistics that are recomputed for each draw, too."""

    def begin(self) -> None:
        super().begin()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(super().forward(x))
        return result


@pytest.mark.parametrize(
    "make", [Counting, Caching, Growing, Expanded, Sharing, Normalised], ids=lambda m: m.__name__
)
def test_buffers_of_every_kind_come_back(make: type[Own]) -> None:
    torch.manual_seed(3)
    model = make()
    posterior = collected(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    held = dict(model._buffers)
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    how: dict[str, Any] = {"activation": "none", "samples": 3, "generator": 0, "loader": [y]}

    def is_as_before() -> bool:
        return (
            model.training
            and all(model._buffers[name] is buffer for name, buffer in held.items())
            and all(torch.equal(b, before[name]) for name, b in model.named_buffers())
            and all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
        )

    # Two passes over the draws, in which every network begins with the same buffers.
    alone = posterior.predict(model, iter([x, y]), memory_bytes=1, draws_at_once=1, **how)
    assert is_as_before()
    assert torch.equal(posterior.predict(model, [x, y], draws_at_once=1, **how), alone)
    assert is_as_before()
    torch.testing.assert_close(posterior.predict(model, [x, y], **how), alone)
    assert is_as_before()
    with posterior.sampled(model, generator=0, loader=[y]):
        model(x)
        model(torch.cat([x, y]))
    assert is_as_before()
    model(torch.cat([x, y]))
    posterior.install_mean(model, loader=[y])
    mean = posterior.mean()
    assert all(torch.equal(p, mean[name]) for name, p in model.named_parameters())


def test_modes_come_back_whatever_becomes_of_buffers() -> None:
    model = Expanded()
    posterior = collected(model)
    with posterior.sampled(model):
        model.eval()
        with torch.inference_mode():
            model.mask = model.mask + 1
    assert model.training
    assert torch.equal(model.mask, torch.ones(4))
