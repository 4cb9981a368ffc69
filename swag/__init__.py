"""SWA-Gaussian posteriors over network weights, collected on disk while the network trains.

>>> import torch, swag
>>> model = torch.nn.Linear(3, 1)
>>> posterior = swag.SWAG(model, store="dram:")
>>> for _ in range(5):
...     _ = torch.nn.init.normal_(model.weight)  # stands for a step of training
...     posterior.update_parameters(model)
>>> posterior.n_averaged
5
>>> posterior.sample(2, generator=0)["weight"].shape
torch.Size([2, 1, 3])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pmarray._extras import wanted
from swag import errors
from swag.errors import SwagError

if TYPE_CHECKING:
    from swag import calibration as calibration
    from swag import convergence as convergence
    from swag import datasets as datasets
    from swag import divergences as divergences
    from swag import export as export
    from swag import integrations as integrations
    from swag import metrics as metrics
    from swag import models as models
    from swag import uncertainty as uncertainty
    from swag.batchnorm import update_bn as update_bn
    from swag.collect import SWAG as SWAG
    from swag.covariance import Covariance as Covariance
    from swag.mixture import MultiSWAG as MultiSWAG
    from swag.posterior import Posterior as Posterior
    from swag.posterior import StoredPosterior as StoredPosterior
    from swag.posterior import load as load
    from swag.preemption import Preemption as Preemption
    from swag.regression import GaussianPrediction as GaussianPrediction

__all__ = [  # noqa: RUF022 - in the order of `sorted`, which does not put capitals aside
    "Covariance",
    "GaussianPrediction",
    "MultiSWAG",
    "Posterior",
    "Preemption",
    "SWAG",
    "StoredPosterior",
    "SwagError",
    "calibration",
    "convergence",
    "datasets",
    "divergences",
    "errors",
    "export",
    "integrations",
    "load",
    "metrics",
    "models",
    "uncertainty",
    "update_bn",
]

# PyTorch takes seconds to import, and the command line must not wait for it to print its help: what
# needs it is imported when it is first asked for.
_HOMES = {
    "Covariance": "swag.covariance",
    "GaussianPrediction": "swag.regression",
    "MultiSWAG": "swag.mixture",
    "SWAG": "swag.collect",
    "Posterior": "swag.posterior",
    "StoredPosterior": "swag.posterior",
    "load": "swag.posterior",
    "Preemption": "swag.preemption",
    "update_bn": "swag.batchnorm",
}
_MODULES = {
    "calibration",
    "convergence",
    "datasets",
    "divergences",
    "export",
    "integrations",
    "metrics",
    "models",
    "uncertainty",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        with wanted():
            return importlib.import_module(f"swag.{name}")
    if name in _HOMES:
        with wanted():
            value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
        return value
    raise AttributeError(f"module 'swag' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
