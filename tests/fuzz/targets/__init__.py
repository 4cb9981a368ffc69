"""What is fuzzed, by name."""

from __future__ import annotations

from tests.fuzz.targets import files, pools, posteriors, zarrs
from tests.fuzz.watch import Target

__all__ = ["TARGETS"]

TARGETS: dict[str, Target] = {
    **files.TARGETS,
    **zarrs.TARGETS,
    **pools.TARGETS,
    **posteriors.TARGETS,
}
