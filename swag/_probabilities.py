"""What is taken for probabilities of classes, and what is refused as none."""

from __future__ import annotations

from torch import Tensor

__all__ = ["checked", "checked_labels", "checked_pair", "refuse_others"]


def checked(probabilities: Tensor) -> Tensor:
    """Refuse what are no probabilities; return them within 0 to 1 exactly.

    Parameters
    ----------
    probabilities
        Shape (..., classes), float, each row summing to one. Its sum may be off, and a number be
        below zero, by 0.001, and in dtypes of 16 bits by 0.01.

    Raises
    ------
    TypeError
        It is no tensor.
    ValueError
        A row is not finite, negative, or does not sum to one; or there are none.

    Examples
    --------
    >>> import torch
    >>> checked(torch.tensor([[1.0000001, 0.0]]))
    tensor([[1., 0.]])
    """
    refuse_others(probabilities, "probabilities")
    if not probabilities.ndim or not probabilities.is_floating_point():
        raise ValueError(
            "probabilities are a float tensor of shape (..., classes), not "
            f"{probabilities.dtype} of shape {tuple(probabilities.shape)}"
        )
    if not probabilities.numel():
        raise ValueError("there are no predictions")
    rows = probabilities[..., 0].numel()
    if diverged := int((~probabilities.isfinite()).any(dim=-1).sum()):
        raise ValueError(
            f"{diverged} of {rows} rows of probabilities are not finite: a network that was "
            "averaged has diverged; predict_each(...) gives the outputs of each"
        )
    # Those in float64 may have come from a softmax in float32.
    tolerance = 1e-3 if probabilities.dtype.itemsize >= 4 else 1e-2
    off = (probabilities.sum(dim=-1) - 1).abs().max()
    if not bool((off <= tolerance) & (probabilities.min() >= -tolerance)):
        raise ValueError(
            "each row of probabilities must be non-negative and sum to one: of the outputs of a "
            'network, activation="softmax" makes them'
        )
    return probabilities.clamp(0, 1)


def checked_labels(labels: Tensor, count: int, classes: int) -> Tensor:
    """Refuse what are no labels of so many predictions; return them as int64."""
    refuse_others(labels, "labels")
    if labels.shape != (count,) or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"labels must be integers of shape ({count},),"
            f" not {labels.dtype} of shape {tuple(labels.shape)}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must be from 0 to {classes - 1}")
    return labels.long()


def checked_pair(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Both, of shapes (n, classes) and (n,)."""
    refuse_others(labels, "labels")
    if isinstance(probabilities, Tensor) and probabilities.ndim != 2:
        raise ValueError(
            f"probabilities of shape {tuple(probabilities.shape)} and labels of shape "
            f"{tuple(labels.shape)} do not fit: (n, classes) and (n,) do"
        )
    probabilities = checked(probabilities)
    return probabilities, checked_labels(labels, *probabilities.shape)


def refuse_others(value: object, name: str) -> None:
    """Raise a TypeError where something is no tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} are a torch.Tensor, and this is {type(value).__name__}: torch.as_tensor "
            "makes one of it"
        )
