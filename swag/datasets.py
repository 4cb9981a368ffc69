"""MNIST, shipped with the package and read without a network, and data in stored arrays."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from swag._arrays import ArrayDataset, ArrayLoader
from swag.errors import DatasetError

__all__ = [
    "MNIST",
    "MNIST_MEAN",
    "MNIST_STD",
    "ArrayDataset",
    "ArrayLoader",
    "mnist",
    "mnist_part",
]

MNIST_MEAN = 0.1307
"""Mean of the training pixels, as fractions of white."""

MNIST_STD = 0.3081
"""Standard deviation of the training pixels, as fractions of white."""

_SHA256 = {
    f"{name}-ubyte.gz": digest
    for name, digest in (
        ("train-images-idx3", "0b367032e93c5d0cea0925647cfdb18614af8ee15f83e6f2fc2ad904a6835971"),
        ("train-labels-idx1", "1787548bbe0bff1ec2ecdc0ef292b02df999e2d1a6002d27500982c652b17203"),
        ("t10k-images-idx3", "1a1a05eab793c14bb050b398624a11b0ffd1a2953baed553b1b9bd079e2a20be"),
        ("t10k-labels-idx1", "b91679a0acfe4ba0e50a2437a903084cba1f5f92592b016a25a7dfd00455798b"),
    )
}

# The IDX format names the element type in the third byte of the file; 8 is unsigned bytes.
_IDX_UBYTE = 0x08


class MNIST(NamedTuple):
    """The two parts of MNIST; ``train, test = mnist()`` unpacks it."""

    train: TensorDataset
    """60,000 pairs: images (60000, 1, 28, 28), float32, and labels (60000,), int64."""

    test: TensorDataset
    """10,000 pairs, of the same shapes and dtypes otherwise."""


def mnist(directory: Path | str | None = None) -> MNIST:
    """Read MNIST, standardised: a pixel p of 0 to 255 becomes (p / 255 - 0.1307) / 0.3081.

    The two constants are the mean and standard deviation of the training pixels, so that the
    training images as a whole have mean 0 and variance 1. Each file is compared with its SHA-256
    before it is decoded. The images take 220 MB of memory.

    Parameters
    ----------
    directory
        Where the four files lie; None for those that come with the package.

    Returns
    -------
    MNIST
        A named tuple ``(train, test)`` of :class:`torch.utils.data.TensorDataset`, each of images
        (n, 1, 28, 28) float32 and labels (n,) int64.

    Raises
    ------
    DatasetError
        A file is missing, truncated or corrupt; the message names it and what is wrong.

    Examples
    --------
    >>> train, test = mnist()
    >>> images, labels = train.tensors
    >>> images.shape, labels[:5].tolist()
    (torch.Size([60000, 1, 28, 28]), [5, 0, 4, 1, 9])
    >>> round(images.mean().abs().item(), 2), round(images.std().item(), 2)
    (0.0, 1.0)
    """
    return MNIST(train=mnist_part("train", directory), test=mnist_part("test", directory))


def mnist_part(part: Literal["train", "test"], directory: Path | str | None) -> TensorDataset:
    """Read one part, as `mnist` does: the test set alone takes a seventh of the time and memory.

    Examples
    --------
    >>> len(mnist_part("test", None))
    10000
    """
    prefix = {"train": "train", "test": "t10k"}[part]
    pixels = _read(f"{prefix}-images-idx3-ubyte.gz", directory)
    labels = _read(f"{prefix}-labels-idx1-ubyte.gz", directory)
    images = pixels.unsqueeze(1).to(torch.float32)
    images.div_(255).sub_(MNIST_MEAN).div_(MNIST_STD)  # in place: a temporary would be 188 MB
    return TensorDataset(images, labels.to(torch.int64))


def _read(name: str, directory: Path | str | None) -> Tensor:
    """Check one file against its SHA-256 and decode it."""
    path = (resources.files("swag") / "_data" if directory is None else Path(directory)) / name
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from error
    found = hashlib.sha256(packed).hexdigest()
    if found != _SHA256[name]:
        # Decode it all the same, to say what is wrong rather than only that something is.
        raise DatasetError(
            f"{path} is not the file that was shipped: {_diagnosis(packed)}; its SHA-256 is {found}"
            f" where {_SHA256[name]} is expected. Install the package again to restore it"
        )
    return decode_idx(gzip.decompress(packed))


def _diagnosis(packed: bytes) -> str:
    """Say in words what is wrong with the bytes of a gzipped IDX file."""
    try:
        decode_idx(gzip.decompress(packed))
    except EOFError:
        return f"it is truncated, at {len(packed):,} bytes"
    except (OSError, zlib.error) as error:
        return f"it is corrupt ({error})"
    return "it is whole, but its content differs"


def decode_idx(raw: bytes) -> Tensor:
    """Decode an IDX file of unsigned bytes, of any number of axes.

    Parameters
    ----------
    raw
        The whole file, uncompressed: two zero bytes, the element type, the number of axes, the
        length of each as a big-endian 32-bit number, then the elements in row-major order.

    Returns
    -------
    torch.Tensor
        Of the file's shape, uint8.

    Raises
    ------
    DatasetError
        The header is not that of such a file, or its length disagrees with its shape.

    Examples
    --------
    >>> decode_idx(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
    tensor([7, 8, 9], dtype=torch.uint8)
    """
    if len(raw) < 4 or raw[:3] != bytes([0, 0, _IDX_UBYTE]):
        raise DatasetError(f"not an IDX file of unsigned bytes: it begins with {raw[:4].hex(' ')}")
    start = 4 + 4 * raw[3]
    if len(raw) < start:
        raise DatasetError(f"an IDX header of {raw[3]} axes takes {start} bytes, found {len(raw)}")
    shape = struct.unpack(f">{raw[3]}I", raw[4:start])
    if len(raw) - start != math.prod(shape):
        raise DatasetError(
            f"an IDX file of shape {shape} holds {math.prod(shape):,} bytes after its header,"
            f" found {len(raw) - start:,}"
        )
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)[start:].reshape(shape)
