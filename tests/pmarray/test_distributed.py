"""Workers in processes of their own, which open the same store and read their part of it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pmarray
import swag
from swag.sampling import Seeds
from tests.pmarray.conftest import Bucket
from tests.pmarray.objectstore import KEYS

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Two workers, which have the credentials of the object store in their environment."""
    environment = {**KEYS, "OMP_NUM_THREADS": "1"}
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": environment}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(params=["directory", "s3"])
def location(request: pytest.FixtureRequest) -> str:
    if request.param == "s3":
        bucket: Bucket = request.getfixturevalue("bucket")
        return bucket.url()
    scratch: Path = request.getfixturevalue("scratch")
    return f"zarr:{scratch / 'shared'}"


def test_products_are_computed_by_workers(client: Any, location: str) -> None:
    rng = np.random.default_rng(0)
    model = rng.normal(size=(3000, 24)).astype("float32")
    z = rng.normal(size=24).astype("float32")
    with pmarray.open(location, model.shape, "float32", layout="col", chunks=(500, 8)) as a:
        a[...] = model
    with pmarray.open(location, mode="r") as a:
        lazy = a.to_dask(chunks=(1000, 24))
        workers = lazy.map_blocks(lambda _: np.array([[os.getpid()]]), chunks=(1, 1))
        pids = set(client.compute(workers).result().ravel().tolist())
        assert pids
        assert os.getpid() not in pids
        product, gram = client.gather(client.compute([lazy @ z, lazy.T @ lazy]))
        np.testing.assert_allclose(product, model @ z, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(gram, model.T @ model, rtol=1e-4, atol=1e-2)
        # And the same as the library computes on its own.
        np.testing.assert_allclose(gram, pmarray.linalg.gram(a), rtol=1e-4, atol=1e-2)


def test_workers_see_what_was_flushed_before(client: Any, location: str) -> None:
    with pmarray.open(location, (100, 4), chunks=(25, 4)) as a:
        a[...] = 1
        assert client.compute(a.to_dask().sum()).result() == 400
        a[...] = 2
        assert client.compute(a.to_dask().sum()).result() == 800


def test_draws_from_a_posterior_by_workers(client: Any, scratch: Path) -> None:
    location = f"zarr:{scratch / 'posterior'}"
    torch.manual_seed(0)
    network = nn.Linear(60, 50)
    with swag.SWAG(network, store=location) as posterior:
        for _ in range(12):
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
            posterior.update_parameters(network)
        posterior.mean()  # so that the moments are stored

    with swag.load(location) as posterior:
        wanted = posterior.window(center="mean").sample(3, generator=7)
    expected = torch.cat([wanted[name].reshape(3, -1) for name in ("weight", "bias")], dim=1)

    with pmarray.open_group(location, mode="r") as group:
        rows = 1000
        x = group["trajectory"].to_dask(chunks=(rows, -1))
        anchor, mean, squares = (
            group[name].to_dask(chunks=(rows,)) for name in ("anchor", "mean", "sum_of_squares")
        )
        n, k = x.shape
        z1, z2 = normal_numbers(Seeds.take(3, 7), n, k)
        scale = 0.5
        diagonal = da.sqrt(squares / k)[:, None] * da.from_array(z1, chunks=(rows, -1))
        low_rank = ((x - anchor[:, None]) @ z2 - mean[:, None] * z2.sum(axis=0)) / math.sqrt(k - 1)
        draws = (anchor + mean)[:, None] + math.sqrt(scale) * (diagonal + low_rank)
        found = client.compute(draws).result()
    np.testing.assert_allclose(found.T, expected.numpy(), rtol=1e-4, atol=1e-5)


def normal_numbers(seeds: Seeds, n: int, k: int) -> tuple[Any, Any]:
    """What `sample` draws from these seeds, shapes (n, draws) and (k, draws)."""
    z1 = [torch.randn(n, generator=torch.Generator().manual_seed(s)) for s in seeds.diagonal]
    z2 = [
        torch.randn(k, generator=torch.Generator().manual_seed(s), dtype=torch.float64)
        for s in seeds.low_rank
    ]
    return torch.stack(z1, 1).numpy(), torch.stack(z2, 1).numpy().astype("float32")
