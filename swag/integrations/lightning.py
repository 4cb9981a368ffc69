"""Collecting in a `Trainer` of Lightning."""

from __future__ import annotations

import warnings
from typing import Any

from pmarray._extras import wanted
from swag._held import is_sharded
from swag._location import Location, Mode
from swag.collect import SWAG
from swag.errors import SwagWarning
from swag.integrations._collector import Collector

with wanted():
    import lightning.pytorch as pl

__all__ = ["SWAGCallback"]


class SWAGCallback(pl.Callback):
    """Collects a posterior while Lightning trains.

    Of several processes the first collects; all of them where the model is sharded over them.
    Where ``fit(ckpt_path=...)`` resumes, the store is cut back to the checkpoint. Checkpoints,
    schedulers and the module are left as they are: the callback has no state in them, and averages
    nothing in place.

    Parameters
    ----------
    store
        URL of a `pmarray` group, or an open group.
    start
        Optimizer steps (``trainer.global_step``) before the first that is collected: the burn-in.
    every
        Optimizer steps from one iterate to the next; minibatches whose gradients are accumulated
        are no steps.
    mode
        ``"a"`` goes on where training resumes; ``"w"`` replaces what is there when it begins anew.
    **options
        Of `swag.SWAG`: ``max_rank=``, ``parameters=`` and others.

    Examples
    --------
    >>> from swag.integrations.lightning import SWAGCallback
    >>> callback = SWAGCallback("memmap:./posterior", start=1000, every=10)
    >>> callback  # doctest: +ELLIPSIS
    <swag.integrations.lightning.SWAGCallback object at ...>

    ``Trainer(callbacks=[callback]).fit(module)`` collects, and
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
        super().__init__()
        self._collector = Collector(store, start=start, every=every, mode=mode, **options)

    @property
    def posterior(self) -> SWAG:
        """What is being collected, on the processes that do, while `fit` runs."""
        return self._collector.posterior

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the store, and cut it back to the checkpoint that was loaded."""
        if trainer.is_global_zero or is_sharded(pl_module.parameters()):
            self._collector.begin(pl_module, trainer.global_step, trainer.optimizers)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Collect, if the minibatch ended in an optimizer step whose turn it is."""
        self._collector.stepped(pl_module, trainer.global_step)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have the weights copied before an average is put in (`EMAWeightAveraging`)."""
        self._collector.wait()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same before training ends, when averages are put in for good."""
        self._collector.wait()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Make what was collected durable before the checkpoint is."""
        self._collector.saving(trainer.global_step)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Close the store; what was collected is kept.

        Checkpoints that Lightning writes of the exception come after this, and are noted before.
        """
        collector, step = self._collector, trainer.global_step
        try:
            try:
                # Sharded, each process would wait for others, where it may be alone.
                if _saves_on_exception(trainer) and not is_sharded(pl_module.parameters()):
                    collector.stepped(pl_module, step)  # if an earlier callback has raised
                    collector.saving(step)
            finally:
                collector.fail()
        except Exception as error:
            # Lightning raises the exception itself, once the model is saved.
            warnings.warn(f"the posterior could not be saved: {error}", SwagWarning, stacklevel=2)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the store, after the last checkpoint is written."""
        self._collector.end()


def _saves_on_exception(trainer: pl.Trainer) -> bool:
    """Whether one of the callbacks for checkpoints, which all come last, writes one."""
    return any(
        type(callback).on_exception is not pl.Callback.on_exception
        and getattr(callback, "save_on_exception", True)
        for callback in trainer.checkpoint_callbacks
    )
