"""What a power cut may leave, and what it may not."""

from __future__ import annotations

from typing import TypedDict

from pmarray.testing import State, Workload
from tests.powercut.states import from_json

__all__ = ["Found", "judge", "step_of"]


class Found(TypedDict):
    """What `tests.powercut.checker` returns."""

    state: list[list[object]]
    damage: list[str]


def judge(workload: Workload, committed: int, begun: int, *found: Found) -> str:
    """Say what is wrong with what was found; nothing if it may be.

    Each of `found`, by a reader and by recovery, must be the state after one and the same
    transaction, no earlier than the last one promised and no later than the last one begun.
    """
    states = [from_json(each["state"]) for each in found]
    for state, each in zip(states, found, strict=True):
        if each["damage"]:
            return f"damage: {'; '.join(each['damage'])}"
        step = _step(state)
        if not committed <= step <= begun:
            return f"transaction {step} is the last, {committed} to {begun} may be"
        if state != workload.states[step]:
            return f"not the state after transaction {step}: {state}"
    if len(set(states)) > 1:
        return "a reader and recovery find different states"
    return ""


def step_of(found: Found) -> int:
    """Return the transaction whose state this claims to be."""
    return _step(from_json(found["state"]))


def _step(state: State) -> int:
    step: int = dict(state.attrs).get("step", 0)
    return step
