"""The loop learns, keeps its schedule, and goes on from its state with the same bits."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

from swag._state import pack, unpack
from swag.app.batches import ShuffledBatches
from swag.app.recipe import Recipe
from swag.app.training import Trainer
from swag.datasets import mnist
from swag.errors import StoreError
from swag.metrics import accuracy
from swag.models import build, fully_connected
from tests.sampling import examples

SMALL = Recipe(model="2fc", epochs=4, batch_size=25, burn_in=2, anneal=1, interval=3)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads that wait for each other are far slower on a busy machine than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images() -> TensorDataset:
    """The first 1,010 images of MNIST; not a multiple of any batch size used here."""
    inputs, labels = mnist().train.tensors
    return TensorDataset(inputs[:1010].clone(), labels[:1010].clone())


def small() -> nn.Module:
    """A network that learns nothing much, quickly; its first weights are new each time."""
    return fully_connected(784, 16, 10)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


# -- the order of the minibatches ---------------------------------------------------------------


@given(st.integers(1, 300), st.integers(1, 70), st.integers(0, 2**63 - 1))
def test_every_epoch_shows_every_sample_once(length: int, batch_size: int, seed: int) -> None:
    batches = ShuffledBatches(length, batch_size=batch_size, seed=seed)
    for _ in range(2):
        epoch = [next(batches) for _ in range(len(batches))]
        assert torch.cat(epoch).sort().values.equal(torch.arange(length))
        assert all(len(indices) == batch_size for indices in epoch[:-1])


@given(st.integers(1, 200), st.integers(1, 50), st.integers(0, 60), st.integers(0, 99))
def test_the_order_goes_on_from_a_saved_position(
    length: int, batch_size: int, done: int, seed: int
) -> None:
    batches = ShuffledBatches(length, batch_size=batch_size, seed=seed)
    for _ in range(done):
        next(batches)
    resumed = ShuffledBatches(length, batch_size=batch_size, seed=seed)
    resumed.load_state_dict(json.loads(json.dumps(batches.state_dict())))
    for _ in range(10):
        assert next(batches).equal(next(resumed))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [
        next(batches)
        for seed in range(3)
        for batches in [ShuffledBatches(500, batch_size=500, seed=seed)]
        for _ in range(3)
    ]
    assert len({tuple(order.tolist()) for order in orders}) == 9


# -- the schedule -------------------------------------------------------------------------------


@examples(0.6)
@given(
    burn_in=st.sampled_from([0.0, 0.2, 1.0, 1.5, 2.0]),
    anneal=st.sampled_from([0.0, 0.2, 1.0, 2.0]),
    interval=st.integers(1, 7),
    strategy=st.sampled_from(["cos", "linear"]),
)
def test_every_iterate_collected_was_made_at_the_last_rate(
    burn_in: float, anneal: float, interval: int, strategy: Literal["cos", "linear"]
) -> None:
    data = TensorDataset(torch.eye(10), torch.arange(10))
    recipe = Recipe(
        epochs=3,
        batch_size=2,
        lr=0.5,
        swa_lr=0.125,
        burn_in=burn_in,
        anneal=min(anneal, burn_in),
        anneal_strategy=strategy,
        interval=interval,
    )
    collected: list[nn.Module] = []
    trainer = Trainer(fully_connected(10, 10), data, recipe, collected.append)
    steps = list(trainer)
    first = round(5 * burn_in)
    assert [s.index for s in steps if not math.isnan(s.collect_seconds)] == list(
        range(first, 15, interval)
    )
    assert len(collected) == trainer.n_collections
    assert all(s.lr == pytest.approx(0.125) for s in steps[first:])
    before = [s.lr for s in steps[: first - round(5 * min(anneal, burn_in))]]
    assert before == [0.5] * len(before)
    rates = [s.lr for s in steps]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(rates))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("momentum", 1.0),
        ("weight_decay", -1e-9),
        ("swa_lr", -1.0),
        ("anneal", 9.0),
        ("burn_in", 7.0),
        ("interval", 0),
        ("rank", -1),
        ("threads", 0),
        ("seed", -1),
        ("anneal_strategy", "step"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_by_the_field(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        Recipe(**{field: value})


def test_a_recipe_survives_json_and_names_its_differences() -> None:
    recipe = Recipe(rank=3, lr=0.1)
    again = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    assert again == recipe
    assert recipe.differences(again) == []
    assert recipe.differences(Recipe(rank=3, lr=0.2)) == ["lr: 0.1 here, 0.2 there"]
    with pytest.raises(StoreError, match="colour"):
        Recipe.from_json({**recipe.to_json(), "colour": "red"})


# -- learning -----------------------------------------------------------------------------------


def test_two_epochs_of_the_default_optimizer_learn_mnist() -> None:
    train, test = mnist()
    recipe = Recipe(model="2fc", epochs=2, burn_in=1, anneal=1, images=8_000)
    model = build(recipe.model)
    trainer = Trainer(model, train, recipe)
    losses = [step.loss for step in trainer]
    inputs, labels = test.tensors
    with torch.no_grad():
        probabilities = model.eval()(inputs).softmax(dim=1)
    assert accuracy(probabilities, labels) > 0.9
    assert np.mean(losses[-40:]) < 0.4 < np.mean(losses[:40])
    assert trainer.losses.tolist() == losses


def test_a_step_is_the_textbook_step_of_sgd_with_momentum_and_weight_decay(
    images: TensorDataset,
) -> None:
    recipe = Recipe(epochs=1, batch_size=10, lr=0.1, momentum=0.5, weight_decay=0.01, burn_in=0.5,
                    anneal=0)  # fmt: skip
    model, mirror = build("2fc"), build("2fc")
    trainer = Trainer(model, images, recipe)
    order = ShuffledBatches(len(images), batch_size=10, seed=recipe.seed)
    velocity = [torch.zeros_like(p) for p in mirror.parameters()]
    inputs, labels = images.tensors
    for _ in range(5):
        next(trainer)
        indices = next(order)
        loss = nn.functional.cross_entropy(mirror(inputs[indices]), labels[indices])
        gradients = torch.autograd.grad(loss, list(mirror.parameters()))
        with torch.no_grad():
            for p, v, g in zip(mirror.parameters(), velocity, gradients, strict=True):
                v.mul_(0.5).add_(g + 0.01 * p)
                p.sub_(0.1 * v)
    assert torch.allclose(weights(model), weights(mirror), atol=1e-6)


# -- resuming -----------------------------------------------------------------------------------


class Noisy(nn.Module):
    """A network that draws from all three global generators, as a user's own might."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small()
        self.norm = nn.BatchNorm1d(10)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits = nn.functional.dropout(self.net(inputs), 0.3)
        normed: torch.Tensor = self.norm(logits)
        return normed * (1 + 0.1 * random.random() * np.random.rand())  # noqa: NPY002


@pytest.mark.parametrize("stop", [0, 1, 39, 41, 60, 100, 164])
@pytest.mark.parametrize("make", [small, Noisy])
def test_training_goes_on_from_a_saved_state_bit_for_bit(
    images: TensorDataset, make: Callable[[], nn.Module], stop: int
) -> None:
    torch.manual_seed(1)
    straight = Trainer(make(), images, SMALL)
    for _ in range(stop):
        next(straight)
    description, data = pack(straight.state_dict())
    description = json.loads(json.dumps(description))
    rest = list(straight)

    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    resumed = Trainer(make(), images, SMALL)
    resumed.load_state_dict(unpack(description, data))
    assert resumed.step == stop
    again = list(resumed)
    assert [s.loss for s in again] == [s.loss for s in rest]
    assert [s.lr for s in again] == [s.lr for s in rest]
    assert weights(resumed.model).equal(weights(straight.model))
    assert pack(resumed.state_dict())[1].tobytes() == pack(straight.state_dict())[1].tobytes()
    assert len(again) == resumed.n_steps - stop


def test_a_state_of_another_length_is_refused(images: TensorDataset) -> None:
    state = Trainer(small(), images, SMALL).state_dict()
    other = Trainer(small(), images, Recipe(epochs=9, batch_size=25))
    with pytest.raises(ValueError, match="of 164 minibatches, this one has 369"):
        other.load_state_dict(state)


# -- the state as bytes -------------------------------------------------------------------------

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
)
nested = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(nested)
def test_a_nested_state_survives_packing_and_json(state: Any) -> None:
    description, data = pack(state)
    again = unpack(json.loads(json.dumps(description)), data)
    assert again == state
    assert repr(again) == repr(state)  # == holds between 1, 1.0 and True


@given(
    st.lists(
        st.tuples(
            st.sampled_from([torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64]),
            st.lists(st.integers(0, 4), max_size=3),
            st.booleans(),
        ),
        max_size=5,
    )
)
def test_tensors_of_any_shape_and_dtype_survive_packing(
    specs: list[tuple[torch.dtype, list[int], bool]],
) -> None:
    generator = torch.Generator().manual_seed(0)
    state = []
    for dtype, shape, transposed in specs:
        tensor = torch.randint(-3, 4, shape, generator=generator).to(dtype)
        state.append(tensor.mT if transposed and tensor.ndim >= 2 else tensor)
    again = unpack(*pack(state))
    assert [t.dtype for t in again] == [t.dtype for t in state]
    assert all(a.equal(b) for a, b in zip(again, state, strict=True))


def test_non_finite_floats_survive_strict_json() -> None:
    description, data = pack([math.nan, math.inf, -math.inf])
    text = json.dumps(description, allow_nan=False)
    nan, inf, minus = unpack(json.loads(text), data)
    assert math.isnan(nan)
    assert (inf, minus) == (math.inf, -math.inf)


@pytest.mark.parametrize("state", [object(), {1.5: 0}, {True: 0}, np.ones(3), [torch.nn]])
def test_what_cannot_be_described_is_refused(state: Any) -> None:
    with pytest.raises(TypeError):
        pack(state)


@pytest.mark.parametrize(
    "description",
    [
        {"tensor": ["float32", [100], 0]},
        {"tensor": ["object", [1], 0]},
        {"pickle": "gASV"},
        {},
        [1],
    ],
)
def test_a_damaged_description_is_refused(description: Any) -> None:
    with pytest.raises(StoreError, match="damaged"):
        unpack(description, np.zeros(8, np.uint8))
