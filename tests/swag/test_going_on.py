"""Going on with a store: whoever becomes its writer, and whatever order its model has."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import swag
from pmarray.errors import GroupLockedError
from swag._joining import Joining
from swag.errors import ModelError, StoreError, StoreExistsError, SwagWarning, WindowError

RANKS = (None, 3, 0)


def network() -> nn.Linear:
    """Two weights and a bias, drawn without the global generator."""
    model = nn.Linear(2, 1, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def collect(posterior: swag.SWAG, model: nn.Module, values: range) -> None:
    """Collect the model with all its weights of one value after another."""
    for value in values:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(value)
        posterior.update_parameters(model)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("checkpoint_every", [2, 100])
def test_what_was_collected_since_it_was_opened(
    tmp_path: Path, rank: int | None, checkpoint_every: int
) -> None:
    """As in a notebook: the cell that opens runs again while the first posterior is still there."""
    store, model = f"memmap:{tmp_path}/s", network()

    def posterior() -> swag.SWAG:
        return swag.SWAG(model, store, rank, mode="a", checkpoint_every=checkpoint_every)

    first = posterior()
    collect(first, model, range(5))
    first.flush()
    second = posterior()
    collect(first, model, range(5, 12))
    with pytest.raises(GroupLockedError, match="close that handle"):
        collect(second, model, range(50, 51))
    first.close()
    collect(second, model, range(12, 15))
    assert second.n_averaged == 15
    second.close()
    with swag.load(store) as found:
        assert found.n_averaged == 15
        assert found.mean()["weight"].tolist() == [[7, 7]]
        if rank is None:
            iterates = [found.iterate(i)["bias"].item() for i in range(15)]
            assert iterates == [*range(15)]


@pytest.mark.parametrize("rank", RANKS)
def test_a_new_posterior_does_not_go_on_with_anothers(tmp_path: Path, rank: int | None) -> None:
    store, model = f"memmap:{tmp_path}/s", network()
    first = swag.SWAG(model, store, rank)
    with swag.SWAG(model, store, rank) as second:  # there are no iterates yet
        collect(first, model, range(3))
        first.close()
        with pytest.raises(StoreExistsError, match="3 iterates"):
            collect(second, model, range(3, 4))
    with swag.load(store) as found:
        assert found.n_averaged == 3


def test_a_store_that_was_replaced_meanwhile(tmp_path: Path) -> None:
    store, model = f"memmap:{tmp_path}/s", network()
    with swag.SWAG(model, store) as first:
        collect(first, model, range(3))
    with swag.SWAG(model, store, mode="a") as second:
        with swag.SWAG(model, store, 2, mode="w") as other:
            collect(other, model, range(2))
        with pytest.raises(StoreError, match="another posterior"):
            collect(second, model, range(3, 4))


def test_the_schedule_counts_calls_before_the_first_iterate(tmp_path: Path) -> None:
    store, model = f"memmap:{tmp_path}/s", network()
    swag.SWAG(model, store).close()
    with swag.SWAG(model, store, mode="a", start=3, every=2) as posterior:
        collect(posterior, model, range(8))
        found = [posterior.iterate(i)["bias"].item() for i in range(3)]
    assert found == [3, 5, 7]


def test_a_rewind_before_the_first_iterate(tmp_path: Path) -> None:
    store, model = f"memmap:{tmp_path}/s", network()
    with swag.SWAG(model, store) as first:
        collect(first, model, range(3))
    with swag.SWAG(model, store, mode="a") as second:
        with swag.SWAG(model, store, mode="a") as other:
            collect(other, model, range(3, 6))
        assert second.rewind(to=5) == 5
        assert second.iterate(-1)["bias"].item() == 4


class Registered(nn.Module):
    """Two parameters, registered in either order."""

    def __init__(self, names: str, length: int) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, nn.Parameter(torch.zeros(3 if name == "a" else length)))


@pytest.mark.parametrize("length", [3, 5])
@pytest.mark.parametrize("rank", RANKS)
def test_parameters_are_paired_by_name(tmp_path: Path, length: int, rank: int | None) -> None:
    store = f"memmap:{tmp_path}/s"

    def drawn(names: str, seed: int) -> Registered:
        model, generator = Registered(names, length), np.random.default_rng(seed)
        with torch.no_grad():
            for name in "ab":
                parameter: Tensor = getattr(model, name)
                parameter.copy_(torch.from_numpy(generator.normal(size=len(parameter))))
        return model

    models = [drawn("ab", 1), drawn("ba", 2), drawn("ab", 3)]
    for model in models:
        with swag.SWAG(model, store, rank, mode="a") as posterior:
            posterior.update_parameters(model)
    with swag.load(store) as found:
        for name in "ab":
            values = [getattr(model, name).detach() for model in models]
            assert torch.allclose(found.mean()[name], torch.stack(values).mean(0))
            if rank is None:
                assert all(
                    torch.equal(found.iterate(i)[name], value) for i, value in enumerate(values)
                )


def test_a_layer_that_is_frozen_when_training_goes_on(tmp_path: Path) -> None:
    """As within one session: it is collected as it stands."""
    store = f"memmap:{tmp_path}/s"
    model = nn.Sequential(network(), nn.Linear(1, 1))
    with swag.SWAG(model, store) as posterior:
        collect(posterior, model, range(1))
    model[0].requires_grad_(False)
    with swag.SWAG(model, store, mode="a") as posterior:
        with pytest.warns(SwagWarning, match="do not require a gradient") as caught:
            collect(posterior, model, range(1, 2))
        assert caught[0].filename == __file__
        assert posterior.n_averaged == 2
    for narrower in ("1.*", model[1]):
        with pytest.raises(StoreError, match=r"0\.weight is not among those of parameters="):
            swag.SWAG(model, store, mode="a", parameters=narrower)


def test_weights_of_a_wider_dtype_are_refused() -> None:
    model = network()
    with swag.SWAG(model) as posterior:
        collect(posterior, model, range(2))
        model.double()
        with pytest.raises(ModelError, match=r"torch\.float64, and was torch\.float32"):
            collect(posterior, model, range(2, 3))
        model.float()
        collect(posterior, model, range(2, 3))
        assert posterior.n_averaged == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_change_that_rounding_hides_is_one(dtype: torch.dtype) -> None:
    """Two weights change places, or by what sums to zero: no sum tells."""
    model = network()
    with swag.SWAG(model, dtype=dtype) as posterior, torch.no_grad():
        for change in (0.0, 1e-7, 2e-7, 2e-7, 3e-7):
            model.weight.copy_(torch.tensor([[1 + change, 1 - change]]))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SwagWarning)
                posterior.update_parameters(model)
        assert posterior.n_averaged == 4
        assert posterior.n_repeated == 1


def test_a_sparse_buffer_that_comes_later_is_told_by_name() -> None:
    model = network()
    with swag.SWAG(model) as posterior:
        collect(posterior, model, range(1))
        model.register_buffer("mask", torch.eye(2).to_sparse())
        with pytest.raises(ModelError, match="the buffer mask has the layout"):
            collect(posterior, model, range(1, 2))
        del model.mask
        collect(posterior, model, range(1, 2))
        assert posterior.n_averaged == 2


def test_large_weights_have_a_sum() -> None:
    model = nn.Linear(100, 1, bias=False).double()
    nn.init.constant_(model.weight, 1e37)
    for dtype in (None, torch.float32):
        with swag.SWAG(model, dtype=dtype) as posterior:
            posterior.update_parameters(model)
            assert posterior.n_averaged == 1


def test_what_float16_cannot_hold_is_told_by_name() -> None:
    model = network()
    nn.init.constant_(model.weight, 1e5)
    with swag.SWAG(model, dtype=torch.float16) as posterior:
        with pytest.warns(SwagWarning, match=r"not finite in float16.*bfloat16"):
            posterior.update_parameters(model)
        assert posterior.n_averaged == 0


def test_a_warning_that_is_an_error_changes_no_schedule() -> None:
    model, found = nn.Sequential(network(), nn.Linear(1, 1)), []
    with swag.SWAG(model, every=5) as posterior, warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(12):
            if i == 4:
                model[0].requires_grad_(False)
            before = posterior.n_averaged
            try:
                collect(posterior, model, range(i, i + 1))
            except SwagWarning:
                assert i == 5
            if posterior.n_averaged > before:
                found.append(i)
    assert found == [0, 5, 10]


def test_columns_that_a_checkpoint_has_given_up(tmp_path: Path) -> None:
    """A reader that has seen the checkpoint believes none of them, overwritten or not."""
    store, model = f"memmap:{tmp_path}/s", network()
    with swag.SWAG(model, store, 2, checkpoint_every=5) as posterior:
        collect(posterior, model, range(13))
        posterior.group.flush()
        with swag.load(store) as found:
            assert found.iterate(-1)["bias"].item() == 12
            collect(posterior, model, range(13, 19))
            posterior.group.flush()
            assert found.iterate(-1)["bias"].item() == 12
            # At 20 iterates a checkpoint comes, and gives up those before 20 - (2 + 2 * 5) + 5.
            collect(posterior, model, range(19, 20))
            posterior.group.flush()
            with pytest.raises(WindowError, match="overwritten"):
                found.iterate(-1)


@contextmanager
def torn_between(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.ExceptionInfo[BaseException]]:
    """An interrupt between the two halves of a transaction's ``with``, where no block sees it.

    It is kept, as a notebook keeps the last exception, and with it whatever was begun.
    """
    enter = Joining.__enter__

    def torn(joining: Joining) -> Joining:
        enter(joining)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Joining, "__enter__", torn)
        with pytest.raises(KeyboardInterrupt) as kept:
            yield kept


def test_an_interrupt_while_it_becomes_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is not left behind."""
    store, model = f"memmap:{tmp_path}/s", network()
    with swag.SWAG(model, store) as first:
        collect(first, model, range(3))
    with swag.SWAG(model, store, mode="a") as second:
        with torn_between(monkeypatch) as kept:
            collect(second, model, range(3, 4))
        collect(second, model, range(3, 5))
        assert kept.traceback
        assert second.group.transaction_owner is None
    with swag.load(store) as found:
        assert [found.iterate(i)["bias"].item() for i in range(5)] == [*range(5)]


@pytest.mark.parametrize("call", ["rewind", "flush"])
def test_an_interrupt_before_what_goes_back_or_is_stored(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same of any other transaction: whoever collects next is not a part of what was torn."""
    store, model = f"memmap:{tmp_path}/s", network()
    with swag.SWAG(model, store) as posterior:
        collect(posterior, model, range(3))
        posterior.mean()  # something for a checkpoint to store
        with torn_between(monkeypatch) as kept:
            posterior.rewind(to=1) if call == "rewind" else posterior.flush()
        assert posterior.n_averaged == 3
        assert posterior.group.transaction_owner is None
        collect(posterior, model, range(3, 5))
        assert kept.traceback
    with swag.load(store) as found:
        assert [found.iterate(i)["bias"].item() for i in range(5)] == [*range(5)]
