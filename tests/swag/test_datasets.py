"""MNIST as shipped: right content, and no damaged file goes unnoticed."""

from __future__ import annotations

import gzip
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from swag.datasets import MNIST_MEAN, MNIST_STD, decode_idx, mnist
from swag.errors import DatasetError, SwagError

FILES = [
    f"{part}-{kind}-ubyte.gz"
    for part in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
]


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """A directory with the four files, free to be damaged."""
    for name in FILES:
        with resources.as_file(resources.files("swag") / "_data" / name) as source:
            shutil.copy(source, tmp_path / name)
    return tmp_path


@given(hnp.arrays("uint8", hnp.array_shapes(max_dims=4, max_side=5, min_side=0)))
def test_an_idx_file_decodes_to_what_was_encoded(array: NDArray[np.uint8]) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    decoded = decode_idx(header + array.tobytes())
    assert decoded.dtype == torch.uint8
    assert decoded.shape == array.shape
    assert (decoded.numpy() == array).all()


@given(st.binary(max_size=64))
def test_bytes_that_are_no_idx_file_are_refused_or_account_for_every_byte(raw: bytes) -> None:
    try:
        decoded = decode_idx(raw)
    except DatasetError:
        return
    assert 4 + 4 * decoded.ndim + decoded.numel() == len(raw)


def test_shapes_dtypes_and_class_counts_are_those_of_mnist() -> None:
    train, test = mnist()
    images, labels = train.tensors
    assert images.shape == (60_000, 1, 28, 28)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    # The published class counts of the training set.
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert torch.bincount(labels).tolist() == counts
    assert test.tensors[0].shape == (10_000, 1, 28, 28)
    assert torch.bincount(test.tensors[1]).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip


def test_pixels_are_standardised_as_documented() -> None:
    images, _ = mnist().train.tensors
    assert images.min().item() == pytest.approx((0 - MNIST_MEAN) / MNIST_STD)
    assert images.max().item() == pytest.approx((1 - MNIST_MEAN) / MNIST_STD)
    # double: a float32 sum over 47 million pixels would be the error measured
    assert images.double().mean().item() == pytest.approx(0, abs=1e-3)
    assert images.double().std().item() == pytest.approx(1, abs=1e-3)


def test_files_in_a_directory_are_read(copies: Path) -> None:
    ours, shipped = mnist(copies).test.tensors, mnist().test.tensors
    assert all(a.equal(b) for a, b in zip(ours, shipped, strict=True))


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused_and_named(copies: Path, name: str) -> None:
    whole = (copies / name).read_bytes()
    (copies / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=rf"{name}.*truncated"):
        mnist(copies)


@pytest.mark.parametrize("place", [0, 9, 2000, -1])
def test_one_flipped_bit_is_noticed(copies: Path, place: int) -> None:
    path = copies / "t10k-labels-idx1-ubyte.gz"
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DatasetError, match="t10k-labels"):
        mnist(copies)


def test_a_valid_file_of_other_content_is_refused(copies: Path) -> None:
    path = copies / "t10k-labels-idx1-ubyte.gz"
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[-1] = (raw[-1] + 1) % 10
    path.write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(DatasetError, match="whole, but its content differs"):
        mnist(copies)


def test_a_file_that_is_not_gzip_is_refused(copies: Path) -> None:
    (copies / "train-labels-idx1-ubyte.gz").write_bytes(b"<html>404</html>")
    with pytest.raises(DatasetError, match="corrupt"):
        mnist(copies)


def test_a_missing_file_is_an_oserror_that_names_it(copies: Path) -> None:
    (copies / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(OSError, match="train-labels") as caught:
        mnist(copies)
    assert isinstance(caught.value, SwagError)
