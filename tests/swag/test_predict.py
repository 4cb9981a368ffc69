"""Sampled weights go into models and come out again; predictions are averages over draws."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import swag
from swag.errors import ModelError


def classifier(*, norm: bool = False, dropout: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(4, 6)]
    layers += [nn.BatchNorm1d(6)] if norm else []
    layers += [nn.ReLU()]
    layers += [nn.Dropout(0.5)] if dropout else []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*layers, nn.Linear(6, 3))


def collected(model: nn.Module, count: int = 8) -> swag.SWAG:
    posterior = swag.SWAG(model)
    generator = torch.Generator().manual_seed(1)
    model = copy.deepcopy(model)
    for _ in range(count):
        for p in model.parameters():
            p.data += 0.1 * torch.randn(p.shape, generator=generator)
        posterior.update_parameters(model)
    return posterior


def some(n: int, seed: int = 2) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def state_of(model: nn.Module) -> dict[str, Any]:
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    return tensors | {f"{n}.training": m.training for n, m in model.named_modules()}


def assert_same_state(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for name, value in before.items():
        same = (
            torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name]
        )
        assert same, name


# -- sampled --------------------------------------------------------------------------------------


def test_the_model_has_the_draw_inside_and_its_own_weights_after() -> None:
    model = classifier(norm=True)
    posterior = collected(model)
    before, expected = state_of(model), posterior.sample(generator=3)
    with posterior.sampled(model, generator=3, loader=[some(9)]) as inside:
        assert inside is model
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, expected[name][0])
    assert_same_state(before, state_of(model))


def test_weights_come_back_when_the_block_raises_and_whatever_it_does() -> None:
    model = classifier(norm=True)
    posterior = collected(model)
    before = state_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(ZeroDivisionError), posterior.sampled(model, loader=[some(9)]):
        model.train()
        model(some(16)).square().sum().backward()
        optimizer.step()
        raise ZeroDivisionError
    assert_same_state(before, state_of(model))


def test_blocks_nest() -> None:
    model = classifier()
    posterior = collected(model)
    before = state_of(model)
    with posterior.sampled(model, generator=1):
        first = state_of(model)
        with posterior.sampled(model, generator=2):
            assert not torch.equal(first["0.weight"], model.get_parameter("0.weight"))
        assert_same_state(first, state_of(model))
    assert_same_state(before, state_of(model))


def test_another_model_is_refused_and_left_alone() -> None:
    posterior = collected(classifier())
    other = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    before = state_of(other)
    with pytest.raises(ModelError, match=r"2\.weight has shape"), posterior.sampled(other):
        pass
    with pytest.raises(ModelError, match=r"2\.weight has shape"):
        posterior.predict(other, some(3), activation="softmax")
    assert_same_state(before, state_of(other))


def test_the_model_may_have_another_dtype_and_frozen_parameters() -> None:
    posterior = collected(classifier())
    model = classifier().double().requires_grad_(False)
    expected = posterior.sample(generator=5)
    with posterior.sampled(model, generator=5):
        assert torch.equal(model.get_parameter("2.bias"), expected["2.bias"][0].double())


# -- predict --------------------------------------------------------------------------------------


def by_hand(posterior: swag.SWAG, model: nn.Module, inputs: Tensor, **options: Any) -> Tensor:
    draws = posterior.sample(6, generator=4, **options)
    predictions = []
    for i in range(6):
        weights = {name: values[i] for name, values in draws.items()}
        logits = torch.func.functional_call(copy.deepcopy(model).eval(), weights, inputs)
        predictions.append(logits.softmax(dim=1))
    return torch.stack(predictions).mean(dim=0)


@pytest.mark.parametrize("memory_bytes", [1, 1 << 30])
@pytest.mark.parametrize("scale", [None, 2.0])
def test_predictions_are_averages_over_draws(scale: float | None, memory_bytes: int) -> None:
    model = classifier(dropout=True)
    posterior, inputs = collected(model), some(50)
    before, rng = state_of(model), torch.get_rng_state()
    expected = by_hand(posterior, model, inputs, scale=scale)
    options: dict[str, Any] = {"samples": 6, "generator": 4, "scale": scale}
    batches = [inputs[:30], inputs[30:]]
    # A DataLoader draws from the global generator itself, unless it is given another.
    own = torch.Generator()
    loader = DataLoader(TensorDataset(inputs, torch.zeros(50)), batch_size=7, generator=own)
    for given_ in (inputs, batches, [(batch, 0) for batch in batches], loader):
        found = posterior.predict(
            model,
            given_,
            activation="softmax",
            batch_size=11,
            memory_bytes=memory_bytes,
            **options,
        )
        torch.testing.assert_close(found, expected)
    assert_same_state(before, state_of(model))
    assert torch.equal(rng, torch.get_rng_state())


def test_scale_zero_predicts_with_the_mean() -> None:
    model = classifier()
    posterior, inputs = collected(model), some(9)
    found = posterior.predict(model, inputs, activation="softmax", samples=1, scale=0)
    posterior.install_mean(model)
    torch.testing.assert_close(found, model(inputs).softmax(dim=1).detach())


def test_inputs_that_no_rows_can_be_told_of_are_refused() -> None:
    model = classifier()
    posterior, data = collected(model), TensorDataset(some(9))
    options: dict[str, Any] = {"activation": "softmax", "samples": 2}
    shuffled = DataLoader(data, sampler=torch.utils.data.SubsetRandomSampler(range(9)))
    for loader in (DataLoader(data, shuffle=True), shuffled):
        with pytest.raises(ValueError, match="shuffle=False"):
            posterior.predict(model, loader, **options)
    nothings: list[Any] = [[], iter([])]
    for nothing in nothings:
        with pytest.raises(ValueError, match="no batch"):
            posterior.predict(model, nothing, **options)
    wrong: list[Any] = [3, "abc", {"x": some(3)}, torch.tensor(1.0)]
    for no_inputs in wrong:
        with pytest.raises(TypeError, match="inputs are"):
            posterior.predict(model, no_inputs, **options)
    with pytest.raises(ValueError, match="samples must be"):
        posterior.predict(model, some(3), activation="softmax", samples=0)


def test_batch_normalisation_is_recomputed_for_each_draw() -> None:
    model = classifier(norm=True)
    posterior, inputs = collected(model), some(50)
    training = [some(20, seed=7), some(13, seed=8)]
    before = state_of(model)
    found = posterior.predict(
        model, inputs, activation="softmax", samples=6, generator=4, loader=training
    )
    assert_same_state(before, state_of(model))
    draws = posterior.sample(6, generator=4)
    expected = torch.zeros(50, 3)
    for i in range(6):
        network = copy.deepcopy(model)
        network.load_state_dict({n: v[i] for n, v in draws.items()}, strict=False)
        swag.update_bn(training, network)
        expected += network.eval()(inputs).softmax(dim=1).detach() / 6
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="loader="):
        posterior.predict(model, inputs, activation="softmax")
    with posterior.sampled(model, generator=1, loader=training):
        assert not torch.equal(before["1.running_mean"], model.get_buffer("1.running_mean"))
    assert_same_state(before, state_of(model))


# -- update_bn ------------------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(2, 40), min_size=1, max_size=6), seed=st.integers(0, 2**31))
def test_statistics_are_those_of_the_activations(sizes: list[int], seed: int) -> None:
    model = classifier(norm=True, dropout=True)
    norm: Any = model[1]
    norm.momentum = 0.37
    batches = [some(n, seed + i) for i, n in enumerate(sizes)]
    rng, before = torch.get_rng_state(), state_of(model)
    swag.update_bn(batches, model)
    assert torch.equal(rng, torch.get_rng_state())
    with torch.no_grad():
        activations = [model[0](batch).double().numpy() for batch in batches]
    mean = np.concatenate(activations).mean(axis=0)
    weights = np.array(sizes) / sum(sizes)
    variance = (weights[:, None] * [a.var(axis=0, ddof=1) for a in activations]).sum(axis=0)
    np.testing.assert_allclose(norm.running_mean.numpy(), mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.running_var.numpy(), variance, rtol=1e-4, atol=1e-6)
    assert norm.momentum == 0.37
    after = state_of(model)
    for name in before:
        if "running" not in name and "tracked" not in name:
            assert_same_state({name: before[name]}, {name: after[name]})


def test_statistics_of_layers_on_top_of_layers() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.BatchNorm2d(2))
    images = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    swag.update_bn([images], model)
    lower: Any = model[1]
    lower.momentum = None
    lower.reset_running_stats()
    with torch.no_grad():
        hidden = model[2](lower.train()(model[0](images)))
    upper: Any = model[3]
    torch.testing.assert_close(upper.running_mean, hidden.mean(dim=(0, 2, 3)))


class Branching(nn.Module):
    """Has a layer that it uses twice for a batch, and one for each of two kinds of batches."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.BatchNorm1d(2)
        self.low, self.high = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Any:
        both = self.shared(x[:, :2]) + self.shared(input=x[: len(x) // 2, 2:]).mean()
        # By itself: PyTorch 2.4 calls the wrong thing where it stops compiling within a sum.
        layer = self.high if x.mean() > 5 else self.low
        return both + layer(x[:, :2])


@pytest.mark.parametrize("compiled", [False, True])
def test_what_a_layer_is_given_counts_whenever_it_is_given_something(compiled: bool) -> None:
    model = Branching()
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(n, 4, generator=generator) + 10 * (n % 2) for n in (6, 9, 4, 13)]
    whole: Any = torch.compile(model, backend="eager") if compiled else model
    swag.update_bn(batches, whole)
    parts = [part for b in batches for part in (b[:, :2], b[: len(b) // 2, 2:])]
    for layer, given_ in (
        (model.shared, parts),
        (model.low, [b[:, :2] for b in batches if len(b) % 2 == 0]),
        (model.high, [b[:, :2] for b in batches if len(b) % 2]),
    ):
        mean = torch.cat(given_).mean(dim=0)
        torch.testing.assert_close(layer.running_mean, mean)
        assert layer.momentum == 0.1
        assert not layer._forward_pre_hooks
        weights = torch.tensor([len(part) for part in given_]) / sum(map(len, given_))
        variance = sum(w * part.var(dim=0) for w, part in zip(weights, given_, strict=True))
        torch.testing.assert_close(layer.running_var, variance)


def test_a_loader_that_is_none_is_refused_before_anything_is_changed() -> None:
    model = classifier(norm=True)
    posterior = swag.SWAG(model)
    posterior.update_parameters(model)
    before = state_of(model)
    with pytest.raises(TypeError, match=r"give \[tensor\]"):
        swag.update_bn(some(20), model)
    with pytest.raises(TypeError, match=r"give \[tensor\]"):
        posterior.install_mean(model, loader=some(20))
    assert_same_state(before, state_of(model))
    with pytest.raises(ValueError, match="iterator can be gone through once"):
        posterior.predict(model, some(5), activation="none", samples=3, loader=iter([some(20)]))
    assert_same_state(before, state_of(model))


def test_a_loader_without_batches_is_refused_and_one_without_need_not_touched() -> None:
    model = classifier(norm=True)
    modes = [module.training for module in model.eval().modules()]
    with pytest.raises(ValueError, match="no batch"):
        swag.update_bn([], model)
    assert [module.training for module in model.modules()] == modes
    swag.update_bn((1 / 0 for _ in range(3)), classifier())
    with pytest.raises(TypeError, match="tensor"):
        swag.update_bn(["no tensor"], model)


def test_statistics_of_frozen_layers_stay() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.BatchNorm1d(6))
    model.train()
    model[1].eval()
    before = state_of(model)
    swag.update_bn([some(20)], model)
    after = state_of(model)
    assert torch.equal(before["1.running_mean"], after["1.running_mean"])
    assert not torch.equal(before["3.running_mean"], after["3.running_mean"])


# -- activation -----------------------------------------------------------------------------------


class Out(nn.Module):
    """Gives outputs of a shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4, int(np.prod(shape)))
        self.shape = shape

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.linear(inputs).reshape(len(inputs), *self.shape)
        return out


@pytest.mark.parametrize(
    ("shape", "activation", "function"),
    [
        ((3,), "softmax", nn.Softmax(dim=1)),
        ((3,), "sigmoid", nn.Sigmoid()),
        ((1,), "none", nn.Identity()),
        ((3, 2, 5), nn.Softmax(dim=1), nn.Softmax(dim=1)),
        ((2, 3), torch.tanh, nn.Tanh()),
    ],
)
def test_what_is_averaged_is_asked_for(
    shape: tuple[int, ...], activation: Any, function: nn.Module
) -> None:
    model = Out(*shape)
    posterior, inputs = collected(model), some(9)
    found = posterior.predict(model, inputs, activation=activation, samples=6, generator=4)
    draws = posterior.sample(6, generator=4)
    parts = [
        function(torch.func.functional_call(model, {n: v[i] for n, v in draws.items()}, inputs))
        for i in range(6)
    ]
    torch.testing.assert_close(found, torch.stack(parts).mean(dim=0).detach())


def test_an_activation_is_required_and_says_its_axis() -> None:
    model = Out(3, 2)
    posterior = collected(model)
    with pytest.raises(TypeError, match="activation"):
        posterior.predict(model, some(3))  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"Softmax\(dim=1\)"):
        posterior.predict(model, some(3), activation="softmax")
    with pytest.raises(ValueError, match="'softmax', 'sigmoid', 'none'"):
        posterior.predict(model, some(3), activation="relu")  # type: ignore[arg-type]


# -- one pass over the inputs ---------------------------------------------------------------------


@pytest.mark.parametrize("memory_bytes", [1, 500, 1 << 30])
@pytest.mark.parametrize("norm", [False, True])
def test_rows_are_of_their_inputs_whatever_the_loader_does(memory_bytes: int, norm: bool) -> None:
    """A loader that gives another order, and fewer batches, each time it is gone through."""
    model = classifier(norm=norm)
    posterior, inputs = collected(model), some(24)
    training = [some(20, seed=7)] if norm else None
    shown: list[Tensor] = []

    class Anew:
        passes = 0

        def __iter__(self) -> Any:
            self.passes += 1
            order = torch.randperm(24, generator=torch.Generator().manual_seed(self.passes))
            for rows in torch.split(order, 5)[: 6 - self.passes]:
                shown.append(rows)
                yield inputs[rows], rows

    loader = Anew()
    options: dict[str, Any] = {"activation": "softmax", "samples": 5, "loader": training}
    whole = posterior.predict(model, inputs, generator=4, **options)
    for once in (loader, iter(loader)):
        shown.clear()
        found = posterior.predict(model, once, generator=4, memory_bytes=memory_bytes, **options)
        torch.testing.assert_close(found, whole[torch.cat(shown)])
    parts = swag.MultiSWAG([posterior, posterior.window(start=3)])
    expected = parts.predict(model, inputs, generator=4, **options)
    shown.clear()
    found = parts.predict(model, loader, generator=4, memory_bytes=memory_bytes, **options)
    torch.testing.assert_close(found, expected[torch.cat(shown)])


def test_a_dataset_is_predicted_row_by_row() -> None:
    model = classifier()
    posterior, inputs = collected(model), some(9)
    options: dict[str, Any] = {"activation": "softmax", "samples": 2, "generator": 1}
    expected = posterior.predict(model, inputs, **options)
    found = posterior.predict(model, TensorDataset(inputs), batch_size=4, **options)
    torch.testing.assert_close(found, expected)


# -- what of a batch a model takes ----------------------------------------------------------------


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = self.linear(ids * mask)
        return out


class MaybeMasked(Masked):
    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(ids, torch.ones(()) if mask is None else mask)


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel])
def test_a_mask_goes_through_with_its_inputs(wrap: Any) -> None:
    model = wrap(Masked())
    posterior, ids = collected(model), some(8)
    mask = (some(8, seed=5) > 0).float()
    options: dict[str, Any] = {"activation": "none", "samples": 3, "generator": 1}
    expected = posterior.predict(
        model, [ids * mask], forward=lambda m, x: m(x, torch.ones(())), **options
    )
    for batch in ((ids, mask), [ids, mask, torch.zeros(8)]):
        torch.testing.assert_close(posterior.predict(model, [batch], **options), expected)
    by_name = posterior.predict(
        model,
        [{"ids": ids, "mask": mask}],
        forward=lambda model, batch: model(**batch),
        **options,
    )
    torch.testing.assert_close(by_name, expected)


def test_what_of_a_batch_is_meant_has_to_be_said_where_it_cannot_be_told() -> None:
    model = MaybeMasked()
    posterior, ids = collected(model), some(8)
    options: dict[str, Any] = {"activation": "none", "samples": 2}
    with pytest.raises(ValueError, match="forward="):
        posterior.predict(model, [(ids, ids)], **options)
    with pytest.raises(ValueError, match=r"has pixels, and the model takes ids, mask: .*forward="):
        posterior.predict(model, [{"pixels": ids}], **options)
    with pytest.raises(TypeError, match="set, and which tensor of it is meant"):
        posterior.predict(model, [ids], forward=lambda m, x: {1}, **options)


# -- drawn weights have to have an effect ---------------------------------------------------------


def test_draws_follow_through_spectral_normalisation() -> None:
    for norm in (nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm):
        with torch.random.fork_rng():
            torch.manual_seed(0)  # how fast the vectors converge depends on the weights
            model = nn.Sequential(norm(nn.Linear(4, 5)))
        posterior = collected(model)
        before = state_of(model)
        model.eval()
        with posterior.sampled(model, scale=50.0, generator=3):
            model(some(2))
            weight = model[0].weight
            assert isinstance(weight, Tensor)
            largest = torch.linalg.matrix_norm(weight.detach(), ord=2).item()
            assert abs(largest - 1) < 1e-4
        model.train()
        assert_same_state(before, state_of(model))


def test_weights_that_are_not_computed_with_are_refused() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)))
    posterior = collected(model)
    with torch.nn.utils.parametrize.cached():
        model(some(2))
        with pytest.raises(ModelError, match="cached"), posterior.sampled(model):
            pass
    adapter: Any = classifier()
    posterior = collected(adapter)
    adapter[0].merged = True
    with pytest.raises(ModelError, match="unmerge"):
        posterior.predict(adapter, some(2), activation="softmax")


def test_draws_without_any_effect_are_told() -> None:
    class Copy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 3))
            self.copy = self.weight.detach().clone()

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs @ self.copy

    model = Copy()
    posterior = collected(model)
    with pytest.warns(swag.errors.SwagWarning, match="same outputs") as told:
        posterior.predict(model, some(3), activation="none", samples=3)
    assert told[0].filename == __file__


# -- the mean, for good, and what stays of a model ------------------------------------------------


def test_the_mean_is_installed_or_refused() -> None:
    model = classifier(norm=True)
    posterior, training = collected(model), [some(20, seed=7)]
    before = state_of(model)
    wrapped = nn.Sequential(model)
    for wrong in (wrapped, classifier()):
        with pytest.raises(ModelError, match="missing"):
            posterior.install_mean(wrong, loader=training)
    with pytest.raises(ValueError, match="loader="):
        posterior.install_mean(model)
    assert_same_state(before, state_of(model))
    posterior.install_mean(model, loader=training)
    for name, value in posterior.mean().items():
        assert torch.equal(model.get_parameter(name), value)
    expected = classifier(norm=True)
    expected.load_state_dict({**model.state_dict()})
    swag.update_bn(training, expected)
    assert_same_state(state_of(expected), state_of(model))


def test_sampled_needs_what_predict_needs() -> None:
    model = classifier(norm=True)
    posterior = collected(model)
    with pytest.raises(ValueError, match="loader="), posterior.sampled(model):
        pass


def test_drawn_weights_are_not_collected() -> None:
    model: Any = classifier()
    posterior = collected(model)
    count = posterior.n_averaged
    with posterior.sampled(model):
        for one in (model, nn.Sequential(model)):
            with pytest.raises(ModelError, match="drawn weights"):
                posterior.update_parameters(one)
        with pytest.raises(ModelError, match="drawn weights"):
            posterior.install_mean(model)
        with pytest.raises(ModelError, match="drawn weights"):
            swag.SWAG(model)
    assert posterior.n_averaged == count
    with torch.no_grad():
        model[0].weight += 1
    posterior.update_parameters(model)
    assert posterior.n_averaged == count + 1


def test_another_process_has_the_buffers_of_the_last_iterate(location: str) -> None:
    model: Any = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    model.train()
    model[1].eval()  # frozen: statistics that it brings along, and keeps
    model[1].running_mean.fill_(0.25)
    with swag.SWAG(model, store=location) as posterior:
        for step in range(3):
            with torch.no_grad():
                model[0].weight += 0.1 * (step + 1)
            posterior.update_parameters(model)
        expected = posterior.predict(model, some(5), activation="none", samples=3, generator=1)
    fresh = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).eval()
    before = state_of(fresh)
    with swag.load(location) as stored:
        found = stored.predict(fresh, some(5), activation="none", samples=3, generator=1)
        torch.testing.assert_close(found, expected)
        assert_same_state(before, state_of(fresh))
        stored.install_mean(fresh)  # needs no loader
        assert torch.equal(fresh.get_buffer("1.running_mean"), torch.full((6,), 0.25))
        without = nn.BatchNorm1d(6, track_running_stats=False)
        with pytest.raises(ModelError, match="buffer"):
            stored.install_mean(nn.Sequential(nn.Linear(4, 6), without, nn.Linear(6, 3)))


class Overflowing(nn.Module):
    """Says something that is not finite of some inputs."""

    def __init__(self, to: float) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self._to = to

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x) + torch.where(x[:, :1] > 0, self._to, 0.0)
        return found


@pytest.mark.parametrize("to", [float("nan"), float("inf"), -float("inf")])
def test_outputs_that_are_not_finite_are_averaged_as_they_are(to: float) -> None:
    model = Overflowing(to)
    posterior = swag.SWAG(model)
    for _ in range(5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        posterior.update_parameters(model)
    inputs = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 2.0, 3.0]])
    for draws_at_once in (None, 1):
        found = posterior.predict(
            model, inputs, activation="none", samples=4, generator=0, draws_at_once=draws_at_once
        )
        assert not found[0].isfinite().any()
        assert found[1].isfinite().all()


def test_no_inputs_give_no_predictions() -> None:
    model = nn.Linear(3, 2)
    posterior = collected(model)
    found = posterior.predict(model, torch.zeros(0, 3), activation="none", samples=3)
    assert found.shape == (0, 2)


@pytest.mark.parametrize("wrong", ["class", "parameters", "state", "optimizer", "none"])
def test_what_is_no_model_is_refused(wrong: str) -> None:
    model = nn.Linear(3, 2)
    posterior = collected(model)
    given: Any = {
        "class": nn.Linear,
        "parameters": model.parameters(),
        "state": model.state_dict(),
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "none": None,
    }[wrong]
    for call in (
        lambda: swag.SWAG(given),
        lambda: posterior.update_parameters(given),
        lambda: posterior.install_mean(given),
        lambda: posterior.predict(given, torch.zeros(2, 3), activation="none"),
        lambda: posterior.sampled(given).__enter__(),
    ):
        with pytest.raises(TypeError, match=r"a model is a torch\.nn\.Module"):
            call()
    if wrong != "optimizer":
        with pytest.raises(TypeError, match=r"takes a torch\.optim\.Optimizer"):
            posterior.attach(given)


def test_densities_of_arrays_and_of_no_weights() -> None:
    model = nn.Linear(3, 2)
    posterior = collected(model)
    arrays: Any = {name: value.detach().numpy() for name, value in model.named_parameters()}
    tensors = dict(model.named_parameters())
    assert torch.equal(posterior.log_prob(arrays), posterior.log_prob(tensors))
    no_weights: Any = model
    with pytest.raises(TypeError, match="named_parameters"):
        posterior.log_prob(no_weights)


class Far(nn.Module):
    """Outputs that lie far from zero, and a little apart."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        return x * 0 + self.offset + self.weight


@pytest.mark.parametrize("offset", [1e3, 1e5])
def test_many_networks_whose_outputs_lie_far_from_zero(offset: float) -> None:
    """A sum or a running mean in float32 stands still there."""
    model = Far(offset)
    posterior = swag.SWAG(model)
    for i in range(100):
        model.weight.data.fill_(0.1 * float(torch.tensor(float(i)).sin()))
        posterior.update_parameters(model)
    x, options = torch.zeros(1, 1), {"samples": 1000, "generator": 0}
    each = posterior.predict_each(model, x, **options).double()  # type: ignore[arg-type]
    found = posterior.predict_regression(model, x, **options)  # type: ignore[arg-type]
    mean = posterior.predict(model, x, activation="none", **options)  # type: ignore[arg-type]
    assert found.epistemic.item() == pytest.approx(each.var(correction=0).item(), rel=1e-5)
    ulp = float(np.spacing(np.float32(offset)))
    for one in (found.mean, mean):
        assert one.dtype == torch.float32
        assert abs(one.item() - each.mean().item()) <= ulp


def test_the_softmax_of_one_class_is_refused() -> None:
    model = nn.Linear(4, 1)
    posterior = collected(model)
    with pytest.raises(ValueError, match='use activation="sigmoid"'):
        posterior.predict(model, some(3), activation="softmax")


def test_a_prediction_without_a_variance() -> None:
    model = nn.Linear(4, 1)
    x = torch.zeros(3, 4)
    found = collected(model).predict_regression(model, x, samples=1, scale=0)
    targets = found.mean + torch.tensor([[0.0], [1.0], [torch.nan]])
    infinite = float("inf")
    assert found.log_prob(targets)[:2].flatten().tolist() == [infinite, -infinite]
    assert found.log_prob(targets)[2].isnan()
    for noise in (-1.0, torch.nan, torch.tensor([0.0, -1.0, 0.0])[:, None]):
        with pytest.raises(ValueError, match="noise is a variance"):
            found.with_noise(noise)
    with pytest.raises(ValueError, match="not finite"):
        found.fitted_noise(targets)
