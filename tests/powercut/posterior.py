"""A posterior over a network that is trained on MNIST in the guest; prints what came of it.

``python -m tests.powercut run --medium devdax --packages torch --memory 3072
tests/powercut/posterior.py {url}``: the lines are the same on every medium.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping

import torch

import swag
from swag.datasets import mnist
from swag.models import build

STEPS, BATCH, RANK = 40, 50, 20


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a few letters that two sets of weights share only if they are equal bit for bit."""
    found = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def main(url: str) -> None:
    """Train, collect every minibatch, sample."""
    torch.set_num_threads(1)
    model = build("2conv2fc", seed=0)
    images, labels = mnist().train.tensors
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with swag.SWAG(model, store=url, max_rank=RANK) as posterior:
        for step in range(STEPS):
            batch = slice(step * BATCH, (step + 1) * BATCH)
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            posterior.update_parameters(model)
    with swag.load(url) as loaded:
        print(f"collected {loaded.n_averaged}, rank {loaded.rank}, mean {digest(loaded.mean())}")
        print(f"three draws {digest(loaded.sample(3, generator=1))}")
        window = loaded.window(start=20, rank=15)
        print(f"three of a window {digest(window.sample(3, generator=2))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
