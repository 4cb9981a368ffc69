"""A posterior that is being collected, and what it may lead to.

Iterate number i is made of weights that all are one number, so that moments tell which iterates
they are of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import pmarray
import swag
import swag._attached
from tests.crash.interrupts.scenarios import GivenUpError, Scenario, Stage

if TYPE_CHECKING:
    from tests.crash.interrupts.aftermath import Aftermath

__all__ = ["COLLECTION"]

_WEIGHTS = (40, 25)


class Collect(Scenario):
    """Some iterates, over checkpoints.

    Parameters
    ----------
    max_rank, checkpoint_every
        As for `swag.SWAG`.
    spare
        Whether there is a core to spare. If not, moments of a ring are taken by who trains.
    """

    def __init__(
        self, max_rank: int | None, checkpoint_every: int = 3, *, spare: bool = True
    ) -> None:
        self._max_rank = max_rank
        self._checkpoint_every = checkpoint_every
        self._spare = spare

    def prepare(self, stage: Stage) -> None:
        """Collect two iterates without being interrupted."""
        torch.set_num_threads(1)
        setattr(swag._attached, "has_spare_core", lambda: self._spare)  # noqa: B010
        stage.kept["model"] = torch.nn.Linear(*_WEIGHTS, bias=False)
        stage.kept["done"] = []
        stage.kept["trying"] = None
        self.begin(stage)
        for value in (1, 2):
            self.collect(stage, value)

    def begin(self, stage: Stage) -> None:
        """Make the posterior, or go on with it."""
        group = stage.open("a")
        stage.kept["posterior"] = self.make(stage, group)

    def make(self, stage: Stage, store: Any) -> swag.SWAG:
        """A posterior in a store."""
        return swag.SWAG(
            stage.kept["model"],
            store,
            self._max_rank,
            mode="a",
            checkpoint_every=self._checkpoint_every,
            on_checkpoint=self.on_checkpoint,
        )

    def on_checkpoint(self, group: pmarray.Group) -> None:
        """What the program adds."""
        group.attrs["program"] = group.attrs.get("program", 0) + 1

    def collect(self, stage: Stage, value: int) -> None:
        """Train, and collect."""
        kept = stage.kept
        with torch.no_grad():
            kept["model"].weight.fill_(value)
        kept["trying"] = value
        kept["posterior"].update_parameters(kept["model"])
        kept["done"].append(value)
        kept["trying"] = None

    def operate(self, stage: Stage) -> None:
        for value in (3, 4, 5, 6):
            self.collect(stage, value)

    def candidates(self, stage: Stage) -> list[list[int]]:
        """What may have been collected."""
        done, trying = list(stage.kept["done"]), stage.kept["trying"]
        return [done] if trying is None else [done, [*done, trying]]

    def examine(self, look: Aftermath) -> None:
        """Go on, or be told that it has ended; close; find there what was collected."""
        stage = look.stage
        posterior = stage.kept["posterior"]
        candidates = self.candidates(stage)
        look.in_another_thread("another thread asks", lambda: len(stage.opened().attrs))
        count = posterior.n_averaged
        ended = posterior.closed
        if not ended:
            try:
                with torch.no_grad():
                    stage.kept["model"].weight.fill_(50)
                look.as_told(lambda: posterior.update_parameters(stage.kept["model"]))
                candidates = [[*one, 50] for one in candidates if len(one) == count]
            except pmarray.errors.ClosedError:
                ended = True  # it says so
            except BaseException as error:
                look.fail("collect another", error)
        if not ended:
            self.ask(look, posterior, [one for one in candidates if len(one) == count + 1])
        look.attempt("close the posterior", posterior.close)
        look.in_another_thread("another thread closes", stage.opened().close)
        look.attempt("close the group", stage.close)
        if not stage.place.has_readers:
            return
        found = look.attempt("load", lambda: self._found(stage))
        if self._max_rank == 0 and ended:
            candidates = [one[:n] for one in candidates for n in range(len(one) + 1)]
        wrong = [_objection(found, one) for one in candidates] or [f"it said {count} iterates"]
        if all(wrong):
            look.note("torn", f"collected {candidates}, and found: {wrong[-1]}")
        look.check_medium()
        look.attempt("go on in a new process", lambda: self._go_on(stage))

    def ask(self, look: Aftermath, posterior: swag.SWAG, candidates: list[list[int]]) -> None:
        """What there is to see before it is closed."""

    def _found(self, stage: Stage) -> dict[str, Any]:
        with pmarray.open_group(stage.url, mode="r") as group:
            columns = group["trajectory"].shape[1] if "trajectory" in group else None
            program = group.attrs.get("program", 0)
        with swag.load(stage.url) as posterior:
            count = posterior.n_averaged
            found = {"count": count, "columns": columns, "program": program}
            if count:
                found["mean"] = float(posterior.mean()["weight"][0, 0])
                found["variance"] = float(posterior.variance()["weight"][0, 0])
        if self._max_rank is not None:
            found["columns"] = None  # a ring
        return found

    def _go_on(self, stage: Stage) -> None:
        with self.make(stage, stage.url) as posterior:
            count = posterior.n_averaged
            with torch.no_grad():
                stage.kept["model"].weight.fill_(60)
            posterior.update_parameters(stage.kept["model"])
            if posterior.n_averaged != count + 1:
                raise AssertionError(f"{posterior.n_averaged} iterates after {count} and one")


def _objection(found: dict[str, Any], collected: list[int]) -> str | None:
    if found["count"] != len(collected):
        return f"{found['count']} iterates"
    if found["columns"] not in (None, len(collected)):
        return f"{len(collected)} iterates and {found['columns']} columns"
    return _objection_to_moments(found, collected) if collected else None


def _objection_to_moments(found: dict[str, Any], collected: list[int]) -> str | None:
    for name, expected in (("mean", np.mean(collected)), ("variance", np.var(collected))):
        if not np.isclose(found[name], expected, rtol=1e-4, atol=1e-4):
            return f"{name} {found[name]} and not {expected}"
    return None


class CheckpointFails(Collect):
    """The program's own part of a checkpoint raises, and the program goes on."""

    def operate(self, stage: Stage) -> None:
        for value in (3, 4, 5, 6):
            stage.kept["fails"] = value == 3
            try:
                self.collect(stage, value)
            except GivenUpError:
                stage.kept["gave up"] = True
            except pmarray.errors.ClosedError:
                stage.kept["trying"] = None
                return  # collection has ended, and says so
            finally:
                stage.kept["fails"] = False

    def make(self, stage: Stage, store: Any) -> swag.SWAG:
        posterior = super().make(stage, store)
        self._stage = stage
        return posterior

    def on_checkpoint(self, group: pmarray.Group) -> None:
        super().on_checkpoint(group)
        if self._stage.kept.get("fails"):
            raise GivenUpError

    def candidates(self, stage: Stage) -> list[list[int]]:
        """The one of the checkpoint that failed is not among them, or is if it has been retried."""
        return [
            [value for value in one if value != 3 or not stage.kept.get("gave up")]
            for one in super().candidates(stage)
        ]


class CloseCollection(Collect):
    """The end of it: a checkpoint, and everything durable."""

    def operate(self, stage: Stage) -> None:
        stage.kept["posterior"].close()


class DrawFromCollection(Collect):
    """Draws and moments in between, which leave what they have found for the next."""

    def operate(self, stage: Stage) -> None:
        posterior = stage.kept["posterior"]
        for value, memory_bytes in ((3, 1 << 20), (4, 1 << 20), (5, 1000)):
            self.collect(stage, value)
            posterior.sample(2, generator=0, memory_bytes=memory_bytes)
        posterior.mean()

    def ask(self, look: Aftermath, posterior: swag.SWAG, candidates: list[list[int]]) -> None:
        def moments() -> dict[str, float]:
            found = {"mean": posterior.mean(), "variance": posterior.variance()}
            return {name: float(value["weight"][0, 0]) for name, value in found.items()}

        found = look.attempt("ask for the moments", moments)
        wrong = [_objection_to_moments(found, one) for one in candidates]
        if all(wrong):
            look.note("torn", f"collected {candidates}, and before it was closed: {wrong[-1:]}")


class FlushCollection(Collect):
    """A checkpoint that is asked for."""

    def operate(self, stage: Stage) -> None:
        stage.kept["posterior"].flush()


COLLECTION: dict[str, Scenario] = {
    "collect": Collect(None),
    "collect-ring": Collect(2, 2),
    "collect-ring-at-once": Collect(2, 5, spare=False),
    "collect-diagonal": Collect(0, 2),
    "collect-drawn": DrawFromCollection(None),
    "collect-flush": FlushCollection(None),
    "collect-close": CloseCollection(None),
    "collect-failing": CheckpointFails(None),
}
