"""A sample of what ``make fuzz`` runs for as long as it is told to."""

from __future__ import annotations

import pytest

from tests.fuzz.targets import TARGETS
from tests.fuzz.watch import run_here


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_inputs_lead_to_errors_of_the_tree(name: str) -> None:
    run_here(TARGETS[name], name, 1, 0, 40, lambda number: None)
