"""The four classifiers of MNIST that the experiments use, from 22 thousand to 2.8 million weights.

======== =============================================== ==========
name     layers                                          parameters
======== =============================================== ==========
2conv2fc conv 5x5 1-10-20, fully connected 320-50-10         21,840
2fc      fully connected 784-1000-10                        795,010
3fc      fully connected 784-1000-500-10                  1,290,510
4fc      fully connected 784-1000-1000-1000-10            2,797,010
======== =============================================== ==========

Every one takes images of shape (batch, 1, 28, 28) and gives logits of shape (batch, 10). None has
dropout: the spread of the weights is what this package measures, and dropout would add its own.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn

__all__ = ["MODELS", "build", "conv_2conv2fc", "fully_connected"]


def fully_connected(*widths: int) -> nn.Sequential:
    """Make a multilayer perceptron with ReLU between its layers.

    Parameters
    ----------
    *widths
        Number of inputs, of units in each hidden layer, and of classes: at least two numbers.

    Returns
    -------
    torch.nn.Sequential
        Takes (batch, ...) whose trailing axes hold ``widths[0]`` numbers; gives logits of shape
        (batch, ``widths[-1]``).

    Raises
    ------
    ValueError
        Fewer than two widths.

    Examples
    --------
    >>> import torch
    >>> net = fully_connected(784, 32, 10)
    >>> net(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 10])
    """
    if len(widths) < 2:
        raise ValueError(f"a network needs an input and an output width, got {widths}")
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def conv_2conv2fc() -> nn.Sequential:
    """Make the classic small convolutional net for MNIST: two 5x5 convolutions, two dense layers.

    Returns
    -------
    torch.nn.Sequential
        Takes images of shape (batch, 1, 28, 28); gives logits of shape (batch, 10).

    Examples
    --------
    >>> import torch
    >>> conv_2conv2fc()(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 10])
    """
    return nn.Sequential(
        nn.Conv2d(1, 10, kernel_size=5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(10, 20, kernel_size=5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(320, 50),
        nn.ReLU(),
        nn.Linear(50, 10),
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "2conv2fc": conv_2conv2fc,
    "2fc": lambda: fully_connected(784, 1000, 10),
    "3fc": lambda: fully_connected(784, 1000, 500, 10),
    "4fc": lambda: fully_connected(784, 1000, 1000, 1000, 10),
}
"""The models by name, each as a function of no arguments that makes one."""


def build(name: str, *, seed: int = 0) -> nn.Module:
    """Make a model by name, its weights drawn from a seed; PyTorch's own generator is left alone.

    Parameters
    ----------
    name
        A key of :data:`MODELS`.
    seed
        The same seed gives the same weights.

    Returns
    -------
    torch.nn.Module
        On the CPU, float32, in training mode.

    Raises
    ------
    ValueError
        There is no model of that name; the message lists those there are.

    Examples
    --------
    >>> net = build("4fc", seed=1)
    >>> sum(p.numel() for p in net.parameters())
    2797010
    """
    if name not in MODELS:
        raise ValueError(f"no model is called {name!r}; there are {', '.join(MODELS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name]()
