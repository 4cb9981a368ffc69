"""Collecting in a `Trainer` of Hugging Face Transformers."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from torch import nn

from pmarray._extras import wanted
from swag._held import is_sharded
from swag._location import Location, Mode
from swag.collect import SWAG
from swag.integrations._collector import Collector

with wanted():
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["SWAGCallback"]


class SWAGCallback(TrainerCallback):
    """Collects a posterior while a `Trainer` trains.

    Of several processes the first collects; all of them where the model is sharded over them.
    Where ``train(resume_from_checkpoint=...)`` resumes,
    the store is cut back to the checkpoint. Checkpoints and schedulers are left as they are.

    A `Trainer` does not tell its callbacks of an exception. As a context manager, the callback
    closes the store then too; without, the process does as it ends. Either way the iterates
    collected are kept.

    Parameters
    ----------
    store
        URL of a `pmarray` group, or an open group.
    start
        Optimizer steps (``state.global_step``) before the first that is collected: the burn-in.
    every
        Optimizer steps from one iterate to the next; minibatches whose gradients are accumulated
        are no steps.
    mode
        ``"a"`` goes on where training resumes; ``"w"`` replaces what is there when it begins anew.
    **options
        Of `swag.SWAG`: ``max_rank=``, ``parameters=`` and others.

    Examples
    --------
    >>> from swag.integrations.transformers import SWAGCallback
    >>> callback = SWAGCallback("memmap:./posterior", start=1000, every=10)
    >>> with callback:
    ...     pass  # Trainer(model, arguments, train_dataset=..., callbacks=[callback]).train()

    ``swag.load("memmap:./posterior")`` opens the posterior, also while training goes on.
    """

    def __init__(
        self,
        store: Location,
        *,
        start: int = 0,
        every: int = 1,
        mode: Mode = "a",
        **options: Any,
    ) -> None:
        self._collector = Collector(store, start=start, every=every, mode=mode, **options)

    @property
    def posterior(self) -> SWAG:
        """What is being collected, on the processes that do, while `train` runs."""
        return self._collector.posterior

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Open the store, and cut it back to the checkpoint that was loaded."""
        if state.is_world_process_zero or is_sharded(_model(kwargs).parameters()):
            optimizer = kwargs.get("optimizer")
            optimizers = [] if optimizer is None else [optimizer]
            self._collector.begin(_model(kwargs), state.global_step, optimizers)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Collect, if it is the step's turn, and make it durable if a checkpoint is to come."""
        if self._collector.collecting:
            self._collector.stepped(_model(kwargs), state.global_step)
        if control.should_save:
            self._collector.saving(state.global_step)
        elif control.should_evaluate:  # for which an average may be put in
            self._collector.wait()

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Make what was collected durable, if a checkpoint is to come."""
        if control.should_save:
            self._collector.saving(state.global_step)
        else:  # training may end, and the best model be loaded
            self._collector.wait()

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """The same where the checkpoint was asked for after this was called.

        Another callback did, or an evaluation that found the best model so far. An evaluation that
        finds none leaves no checkpoint, and the store must be able to go back to the last one.
        """
        self._collector.saving(state.global_step)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Close the store."""
        self._collector.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._collector.__exit__(kind, value, traceback)


def _model(arguments: dict[str, Any]) -> nn.Module:
    model = arguments["model"]
    assert isinstance(model, nn.Module)
    return model
