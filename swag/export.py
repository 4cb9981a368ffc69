"""The mean or a draw for other programs: a state dict, safetensors, an adapter, NumPy.

Each function takes a posterior and the weights to give away: ``weights=None`` is the mean, known as
SWA; a draw is ``{name: draws[name][3] for name in draws}`` with ``draws = posterior.sample(10)``.
What the posterior is not of is given as `Posterior.sampled` has it: other parameters as the model
at hand has them, and the buffers of the last iterate, or those that ``loader=`` recomputes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from swag._forward import Forward
from swag.posterior import Posterior

__all__ = ["save_pretrained", "save_safetensors", "state_dict", "to_numpy"]

Weights = Mapping[str, Tensor]


def state_dict(
    posterior: Posterior,
    model: nn.Module,
    weights: Weights | None = None,
    *,
    loader: Iterable[Any] | None = None,
    forward: Forward | None = None,
) -> dict[str, Tensor]:
    """What ``model.load_state_dict(strict=True)`` takes.

    Parameters
    ----------
    posterior
        Of the model.
    model
        Has the parameters collected; it is as before afterwards.
    weights
        By parameter, with its shape; the mean if None.
    loader, forward
        As for `swag.Posterior.predict`.

    Returns
    -------
    dict of str to torch.Tensor
        Parameters under all their names and buffers, in host memory, in the model's dtypes; a
        tensor with two names is one.

    Raises
    ------
    ModelError
        The model has other parameters, or weights are missing or of another shape.
    ValueError
        The weights are several draws; or the model has batch normalisation, and `loader` is None.

    Examples
    --------
    >>> import torch, swag
    >>> model = torch.nn.Linear(2, 1)
    >>> posterior = swag.SWAG(model)
    >>> posterior.update_parameters(model)
    >>> torch.nn.Linear(2, 1).load_state_dict(state_dict(posterior, model))
    <All keys matched successfully>
    """
    copies: dict[tuple[int, Any, Any], Tensor] = {}
    given = {}
    with _holding(posterior, model, weights, loader, forward):
        for name, value in model.state_dict().items():
            if isinstance(value, Tensor):
                same = (value.data_ptr(), value.shape, value.stride())
                if same not in copies or not value.numel():
                    copies[same] = value.detach().cpu().clone()
                value = copies[same]
            given[name] = value
    return given


def save_safetensors(
    posterior: Posterior,
    model: nn.Module,
    directory: str | os.PathLike[str],
    weights: Weights | None = None,
    *,
    max_shard_size: int | str = "5GB",
    loader: Iterable[Any] | None = None,
    forward: Forward | None = None,
) -> None:
    """Write a state dict as safetensors, sharded as Hugging Face reads it.

    ``model.safetensors``; or, where that would be larger than a shard,
    ``model-00001-of-00003.safetensors`` and so on with ``model.safetensors.index.json``. The files
    appear when all are written, the index last; those of an earlier call are replaced. Needs
    ``huggingface_hub`` and ``safetensors``.

    Parameters
    ----------
    posterior, model, weights, loader, forward
        As for `state_dict`.
    directory
        Made if it is not there.
    max_shard_size
        Bytes of a shard, or text such as ``"5GB"``.

    Raises
    ------
    ModelError, ValueError
        As `state_dict`.

    Examples
    --------
    >>> import torch, swag
    >>> from safetensors.torch import load_file
    >>> model = torch.nn.Linear(2, 1)
    >>> posterior = swag.SWAG(model)
    >>> posterior.update_parameters(model)
    >>> save_safetensors(posterior, model, "mean")
    >>> sorted(load_file("mean/model.safetensors"))
    ['bias', 'weight']
    """
    from huggingface_hub import save_torch_state_dict

    place = Path(directory)
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".swag-", dir=place) as written:
        with _holding(posterior, model, weights, loader, forward):
            # The model's own tensors, so that those with two names are seen to be one.
            save_torch_state_dict(model.state_dict(), written, max_shard_size=max_shard_size)
        new = {path.name for path in Path(written).iterdir()}
        for name in sorted(new, key=lambda name: (name.endswith(".json"), name)):
            Path(written, name).replace(place / name)
        for old in place.glob("model*.safetensors*"):
            if old.name not in new:
                old.unlink()


def save_pretrained(
    posterior: Posterior,
    model: nn.Module,
    directory: str | os.PathLike[str],
    weights: Weights | None = None,
    *,
    loader: Iterable[Any] | None = None,
    forward: Forward | None = None,
    **options: Any,
) -> None:
    """Call the model's own `save_pretrained` while it has the weights.

    A model of Transformers is written with its configuration, so that ``from_pretrained`` reads it
    back. A model of PEFT is written as its adapter, which `PeftModel.from_pretrained` puts on the
    base model: the way out for a posterior of adapters.

    Parameters
    ----------
    posterior, model, weights, loader, forward
        As for `state_dict`.
    directory
        Where to.
    **options
        Of the model's `save_pretrained`.

    Raises
    ------
    ModelError, ValueError
        As `state_dict`.
    TypeError
        The model has no such method.

    Examples
    --------
    >>> import torch, swag
    >>> model = torch.nn.Linear(2, 1)
    >>> save_pretrained(swag.SWAG(model), model, "mean")
    Traceback (most recent call last):
        ...
    TypeError: a Linear has no save_pretrained: use save_safetensors
    """
    save = getattr(model, "save_pretrained", None)
    if save is None:
        raise TypeError(f"a {type(model).__name__} has no save_pretrained: use save_safetensors")
    with _holding(posterior, model, weights, loader, forward):
        save(directory, **options)


def to_numpy(posterior: Posterior, weights: Weights | None = None) -> dict[str, NDArray[Any]]:
    """The mean, or other weights of the posterior, as arrays of NumPy.

    Parameters
    ----------
    posterior
        Whose mean is meant.
    weights
        By parameter, also many draws at a time; the mean if None.

    Returns
    -------
    dict of str to numpy.ndarray
        Without a copy where NumPy has the dtype; bfloat16 becomes float32.

    Examples
    --------
    >>> import torch, swag
    >>> model = torch.nn.Linear(2, 1)
    >>> posterior = swag.SWAG(model)
    >>> posterior.update_parameters(model)
    >>> to_numpy(posterior, posterior.sample(3))["weight"].shape
    (3, 1, 2)
    """
    values = posterior.mean() if weights is None else weights
    return {name: _array(value) for name, value in values.items()}


def _array(value: Tensor) -> NDArray[Any]:
    value = value.detach().cpu()
    try:
        return value.numpy()
    except TypeError:  # bfloat16
        array: NDArray[np.float32] = value.float().numpy()
        return array


@contextmanager
def _holding(
    posterior: Posterior,
    model: nn.Module,
    weights: Weights | None,
    loader: Iterable[Any] | None,
    forward: Forward | None,
) -> Iterator[None]:
    """Put the weights into the model; it gets its own back."""
    lead, vectors = posterior._table.join(posterior.mean() if weights is None else weights)
    if len(lead):
        raise ValueError(
            f"weights are one draw, and these are of the shape {tuple(lead)}: give "
            "{name: draws[name][0] for name in draws}"
        )
    target = posterior._target(model, loader, forward)
    with target.borrowed():
        target.put(vectors[0])
        yield
