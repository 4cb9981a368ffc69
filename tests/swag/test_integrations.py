"""What a callback collects is what a plain loop collects of the same iterates, to the bit."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import swag
from swag.cli import app
from swag.errors import ModelError, StoreError, StoreExistsError
from swag.integrations import Collector
from tests.swag.nets import Facts, facts, network, same, stored
from tests.swag.trainers import classifier, language_model, texts, train

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of these libraries, about one another
    import accelerate
    import lightning
    import lightning.pytorch as pl
    import peft
    import transformers

    from swag.integrations.lightning import SWAGCallback as LightningCallback
    from swag.integrations.transformers import SWAGCallback as TrainerCallback

pytestmark = pytest.mark.filterwarnings("ignore:::(lightning|torch|transformers|accelerate|peft)")


class Seen:
    """The weights after each optimizer step, noted apart from what is tested."""

    def __init__(self) -> None:
        self.states: dict[int, dict[str, Tensor]] = {}

    def note(self, step: int, model: nn.Module) -> None:
        self.states[step] = {k: v.clone() for k, v in model.state_dict().items()}

    def in_a_plain_loop(self, model: nn.Module, steps: list[int], **options: Any) -> Facts:
        model = copy.deepcopy(model)
        posterior = swag.SWAG(model, **options)
        for step in steps:
            model.load_state_dict(self.states[step])
            posterior.update_parameters(model)
        return facts(posterior)


def loops_of_the_tutorial() -> list[str]:
    """The blocks on its first screen, in which steps are fewer here."""
    text = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text(encoding="utf-8")
    screen = text.partition("## A posterior, in five lines")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", screen, re.DOTALL)
    return [block.replace("start=1000, every=10", "start=2, every=2") for block in blocks]


def names_of_the_tutorial(number: int) -> dict[str, Any]:
    """What one of its loops is given."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randn(8, 3, generator=generator) for _ in range(8)]

    def train_step(*given: Any) -> None:
        model, optimizer, batch = given[-3:]
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()

    model: Any = network()
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.05)
    names: dict[str, Any] = {
        "swag": swag,
        "train_step": train_step,
        "loader": rows,
        "accelerator": None,
    }
    if number == 1:
        module = Module()
        options: dict[str, Any] = {"max_epochs": 1, "accelerator": "cpu", "logger": False}
        options |= {"enable_progress_bar": False, "enable_checkpointing": False}
        pairs = torch.utils.data.TensorDataset(inputs := torch.cat(rows), inputs[:, :1])
        loader = torch.utils.data.DataLoader(pairs, 8)
        setattr(module, "train_dataloader", lambda: loader)  # noqa: B010
        names |= {
            "module": module,
            "lightning": SimpleNamespace(Trainer=partial(pl.Trainer, **options)),
        }
    elif number == 2:
        model = classifier()
        names |= {
            "transformers": transformers,
            "data": texts(labels=True),
            "arguments": transformers.TrainingArguments(
                "out", max_steps=6, use_cpu=True, report_to=[], dataloader_pin_memory=False
            ),
        }
    elif number == 3:
        names["accelerator"] = accelerate.Accelerator(cpu=True)
        model, optimizer = names["accelerator"].prepare(model, optimizer)
    return {**names, "model": model, "optimizer": optimizer}


@pytest.mark.parametrize(("number", "count"), [(0, 8), (1, 3), (2, 2), (3, 3)])
def test_the_loops_of_the_tutorial_run(
    number: int, count: int, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scratch)
    loops = loops_of_the_tutorial()
    assert len(loops) == 4
    lines = [line for line in loops[number].splitlines() if line and " import " not in line]
    assert len(lines) <= 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(loops[number], names_of_the_tutorial(number))
    with swag.load("memmap:./posterior") as posterior:
        assert posterior.n_averaged == count


class TrainingDiedError(Exception):
    """Training comes to an end that it did not plan."""


# -- Lightning ------------------------------------------------------------------------------------


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss: Tensor = (self.net(batch[0]) - batch[1]).square().mean()
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]


class Watch(pl.Callback):
    """Notes the weights at each new optimizer step; ends training in the middle, if told."""

    def __init__(self, die_at: int | None = None) -> None:
        self.seen, self.die_at, self._last = Seen(), die_at, 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step > self._last:
            self._last = trainer.global_step
            self.seen.note(self._last, pl_module)
        if self._last == self.die_at:
            raise TrainingDiedError


def fit(
    directory: Path,
    *callbacks: Any,
    epochs: int = 3,
    resume: str | None = None,
    module: Module | None = None,
    validates: bool = False,
    **options: Any,
) -> tuple[Module, Any]:
    generator = torch.Generator().manual_seed(1)
    data = torch.utils.data.TensorDataset(
        torch.randn(24, 3, generator=generator), torch.randn(24, 1, generator=generator)
    )
    module = module or Module()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=directory,
        callbacks=list(callbacks),
        accumulate_grad_batches=2,
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = torch.utils.data.DataLoader(data, 4)
        trainer.fit(module, loader, loader if validates else None, ckpt_path=resume)
    return module, trainer


def test_lightning_collects_what_a_plain_loop_does(scratch: Path) -> None:
    store = f"memmap:{scratch / 'posterior'}"
    watch = Watch()
    callback = LightningCallback(store, start=2, every=3)
    module, trainer = fit(scratch, watch, callback, enable_checkpointing=False)
    assert trainer.global_step == 9  # six minibatches an epoch, two to a step
    assert same(stored(store), watch.seen.in_a_plain_loop(module, [3, 6, 9]))
    with pytest.raises(RuntimeError, match="has ended"):
        _ = callback.posterior


@pytest.mark.parametrize("rank", [None, 2])
def test_lightning_leaves_training_as_it_is_and_resumes(scratch: Path, rank: int | None) -> None:
    def saves() -> pl.Callback:
        # Lightning before 2.5 trains the last minibatch of an epoch twice, in the model, when it
        # resumes from what was saved just after it (its issue 19815); an epoch later is as good.
        when: dict[str, Any] = {"every_n_train_steps": 3}
        if lightning.__version__.startswith("2.4."):
            when = {"every_n_epochs": 1, "save_on_train_epoch_end": True}
        return pl.callbacks.ModelCheckpoint(scratch, filename="{step}", save_top_k=-1, **when)

    store, whole = f"memmap:{scratch / 'posterior'}", f"memmap:{scratch / 'whole'}"
    plain, _ = fit(scratch / "plain", Watch(), enable_checkpointing=False)
    module, _ = fit(
        scratch / "whole", LightningCallback(whole, max_rank=rank), enable_checkpointing=False
    )
    for name, value in plain.state_dict().items():
        assert torch.equal(value, module.state_dict()[name])
    with pytest.raises(TrainingDiedError):
        fit(scratch, LightningCallback(store, max_rank=rank), saves(), Watch(die_at=5))
    with swag.load(store) as posterior:
        assert posterior.n_averaged == 5  # ahead of the checkpoint of step 3
    checkpoint = torch.load(scratch / "step=3.ckpt", weights_only=False)
    assert not [name for name in checkpoint["callbacks"] if "SWAG" in name]
    assert not [name for name in checkpoint["state_dict"] if not name.startswith("net.")]
    with pytest.raises(StoreExistsError, match="resume it from a checkpoint"):
        fit(scratch, LightningCallback(store, max_rank=rank), enable_checkpointing=False)
    resumed, _ = fit(
        scratch,
        LightningCallback(store, max_rank=rank),
        resume=str(scratch / "step=3.ckpt"),
        enable_checkpointing=False,
    )
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name])
    assert same(stored(store), stored(whole))
    fit(scratch, LightningCallback(store, max_rank=rank, mode="w"), epochs=1)
    assert stored(store)["n_averaged"] == 3


class Averages(pl.Callback):
    """Puts an average in for each validation, and at the end, as `EMAWeightAveraging` does."""

    def __init__(self) -> None:
        self._others: list[Tensor] = []

    def swap(self, module: nn.Module) -> None:
        parameters = list(module.parameters())
        self._others = self._others or [torch.zeros_like(p) for p in parameters]
        with torch.no_grad():
            for parameter, other in zip(parameters, self._others, strict=True):
                before = parameter.clone()
                parameter.copy_(other)
                other.copy_(before)

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.swap(pl_module)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.swap(pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.swap(pl_module)


class Validated(Module):
    def validation_step(self, batch: Any, index: int) -> None:
        self.net(batch[0])


@pytest.mark.parametrize("first", [False, True])
def test_weights_that_another_callback_puts_in(
    scratch: Path, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect = swag.SWAG._collect_behind

    def late(self: Any, *arguments: Any) -> None:
        time.sleep(0.05)
        collect(self, *arguments)

    monkeypatch.setattr(swag.SWAG, "_collect_behind", late)
    monkeypatch.setattr("swag._attached.has_spare_core", lambda: True)
    store, watch = f"memmap:{scratch / 'posterior'}", Watch()
    callbacks = [LightningCallback(store), Averages()][:: -1 if first else 1]
    module, _ = fit(
        scratch, watch, *callbacks, module=Validated(), validates=True, enable_checkpointing=False
    )
    assert same(stored(store), watch.seen.in_a_plain_loop(module, list(range(1, 10))))


class SkipsStep(pl.Callback):
    """Leaves one step without a gradient, as a gradient scaler does: its weights stay."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == 2:
            for group in optimizer.param_groups:
                group["weight_decay"] = group["momentum"] = 0.0
            optimizer.zero_grad()


@pytest.mark.parametrize("rank", [None, 0, 2])
def test_lightning_resumes_from_what_it_saves_of_an_exception(
    scratch: Path, rank: int | None
) -> None:
    """Such a checkpoint cannot be found by counting; and its step was not collected yet."""
    saves = pl.callbacks.OnExceptionCheckpoint(scratch, "torn")
    store, whole = f"memmap:{scratch / 'posterior'}", f"memmap:{scratch / 'whole'}"
    fit(scratch / "whole", SkipsStep(), LightningCallback(whole, max_rank=rank))
    with pytest.raises(TrainingDiedError):
        fit(scratch, SkipsStep(), Watch(die_at=5), LightningCallback(store, max_rank=rank), saves)
    with swag.load(store) as posterior:
        assert posterior.n_averaged == 4
    torn = str(scratch / "torn.ckpt")
    fit(scratch, LightningCallback(store, max_rank=rank), resume=torn, enable_checkpointing=False)
    assert stored(store)["n_averaged"] == stored(whole)["n_averaged"] == 8


def test_a_store_that_fails_does_not_keep_lightning_from_saving(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise StoreError("the disk is gone")

    told: list[str] = []
    monkeypatch.setattr(swag.SWAG, "flush", fails)
    monkeypatch.setattr(warnings, "warn", lambda message, *_, **__: told.append(str(message)))
    saves = pl.callbacks.OnExceptionCheckpoint(scratch, "torn")
    callback = LightningCallback(f"memmap:{scratch / 'posterior'}")
    with pytest.raises(TrainingDiedError):
        fit(scratch, Watch(die_at=5), callback, saves)
    assert (scratch / "torn.ckpt").exists()
    assert "the posterior could not be saved: the disk is gone" in told


# -- Transformers ---------------------------------------------------------------------------------


class Record(transformers.TrainerCallback):
    def __init__(self, die_at: int | None = None) -> None:
        self.seen, self.die_at = Seen(), die_at

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.note(state.global_step, kwargs["model"])
        if state.global_step == self.die_at:
            raise TrainingDiedError


def test_a_trainer_collects_what_a_plain_loop_does(scratch: Path) -> None:
    store = f"memmap:{scratch / 'posterior'}"
    record, model = Record(), language_model()
    with TrainerCallback(store, start=1, every=2) as callback:
        train(model, scratch, record, callback)
    assert same(stored(store), record.seen.in_a_plain_loop(language_model(), [2, 4, 6]))
    assert "lm_head.weight" not in stored(store)["mean"]  # tied to the embedding
    with swag.load(store) as posterior:
        ids = torch.stack([text["input_ids"] for text in texts(labels=False)])
        predicted = posterior.predict(
            model,
            ids,
            activation=nn.Softmax(dim=-1),
            samples=3,
            generator=0,
            forward=lambda model, batch: model(batch).logits,
        )
    assert predicted.shape == (16, 6, 16)
    torch.testing.assert_close(predicted.sum(dim=-1), torch.ones(16, 6))


def test_a_trainer_resumes_from_its_checkpoint(scratch: Path) -> None:
    store, whole = f"memmap:{scratch / 'posterior'}", f"memmap:{scratch / 'whole'}"
    train(classifier(), scratch / "w", TrainerCallback(whole), labels=True)
    options: dict[str, Any] = {"labels": True, "save_strategy": "steps", "save_steps": 2}
    with pytest.raises(TrainingDiedError), TrainerCallback(store) as callback:
        train(classifier(), scratch, callback, Record(die_at=5), **options)
    with swag.load(store) as posterior:
        assert posterior.n_averaged == 5
    saved = {path.name for path in (scratch / "checkpoint-4").iterdir()}
    resumed = classifier()
    train(resumed, scratch, TrainerCallback(store), resume=str(scratch / "checkpoint-2"), **options)
    assert same(stored(store), stored(whole))
    assert {path.name for path in (scratch / "checkpoint-4").iterdir()} == saved
    with swag.load(store) as posterior:
        predicted = posterior.predict(
            resumed,
            [{key: item[None] for key, item in text.items()} for text in texts(labels=True)],
            activation="softmax",
            samples=3,
            forward=lambda model, batch: model(input_ids=batch["input_ids"]).logits,
        )
    assert predicted.shape == (16, 2)


@pytest.mark.parametrize(("saves", "checkpoint"), [("steps", 3), ("best", 2)])
def test_an_evaluation_is_no_checkpoint(scratch: Path, saves: str, checkpoint: int) -> None:
    """A ring goes back to the model's last checkpoint, whatever was evaluated since."""
    store, whole = f"memmap:{scratch / 'posterior'}", f"memmap:{scratch / 'whole'}"
    losses = [2.0, 1.0, 3.0, 4.0, 5.0, 6.0]
    options: dict[str, Any] = {
        "labels": True,
        "save_strategy": saves,
        "save_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "metric_for_best_model": "eval_own",
        "greater_is_better": False,
        "load_best_model_at_end": True,
    }

    def run(directory: Path, found: list[float], *callbacks: Any, **more: Any) -> None:
        own = iter(found)
        train(
            classifier(),
            directory,
            *callbacks,
            measure=lambda _: {"own": next(own)},
            **options,
            **more,
        )

    run(scratch / "w", losses, TrainerCallback(whole, max_rank=2))
    with pytest.raises(TrainingDiedError), TrainerCallback(store, max_rank=2) as callback:
        run(scratch, losses, callback, Record(die_at=5))
    last = scratch / f"checkpoint-{checkpoint}"
    run(scratch, losses[checkpoint:], TrainerCallback(store, max_rank=2), resume=str(last))
    assert same(stored(store), stored(whole))


KILLED = """
import os, signal, sys, transformers
from pathlib import Path
from swag.integrations.transformers import SWAGCallback
from tests.swag.nets import Facts, facts, network, same, stored
from tests.swag.trainers import classifier, train

class Kill(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

directory = Path(sys.argv[1])
train(classifier(), directory, SWAGCallback(f"memmap:{directory / 'posterior'}"), Kill(),
      labels=True, save_strategy="steps", save_steps=2)
"""


def test_a_killed_trainer_resumes(scratch: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(scratch)], capture_output=True, text=True, check=False
    )
    assert run.returncode == -9, run.stderr
    store, whole = f"memmap:{scratch / 'posterior'}", f"memmap:{scratch / 'whole'}"
    train(classifier(), scratch / "w", TrainerCallback(whole), labels=True)
    train(
        classifier(),
        scratch,
        TrainerCallback(store),
        labels=True,
        resume=str(scratch / "checkpoint-4"),
    )
    assert same(stored(store), stored(whole))


@pytest.mark.parametrize("labels", [False, True])
def test_adapters_alone(labels: bool, scratch: Path) -> None:
    torch.manual_seed(3)
    model = classifier() if labels else language_model()
    layers = ["query", "value"] if labels else ["c_attn"]
    config = peft.LoraConfig(r=2, target_modules=layers, fan_in_fan_out=not labels)
    adapted = peft.get_peft_model(model, config)
    fresh = copy.deepcopy(adapted)
    store, record = f"memmap:{scratch / 'posterior'}", Record()
    train(adapted, scratch, record, TrainerCallback(store), labels=labels)
    found = stored(store)
    assert found["mean"]
    assert all("lora_" in name for name in found["mean"])
    assert same(found, record.seen.in_a_plain_loop(fresh, [1, 2, 3, 4, 5, 6]))
    ids = {"input_ids": torch.stack([text["input_ids"] for text in texts(labels=labels)])}
    with swag.load(store) as posterior:
        probabilities = posterior.predict(
            adapted, [ids], activation=nn.Softmax(dim=-1), samples=3, generator=0
        )
        alone = posterior.window(rank=0, every=6).predict(
            adapted, [ids], activation=nn.Softmax(dim=-1), samples=1, scale=0.0
        )
    assert probabilities.shape == ((16, 2) if labels else (16, 6, 16))
    assert not torch.equal(probabilities, alone)
    page = scratch / "report.html"
    told = CliRunner().invoke(app, ["report", store, "--output", str(page)])
    assert told.exit_code == 0, told.output
    assert "6 iterates" in page.read_text(encoding="utf-8")


def test_adapters_that_are_not_in_use_are_refused() -> None:
    model = language_model()

    def lora(**options: Any) -> Any:
        layers = ["c_attn", "wte"]
        return peft.LoraConfig(r=2, target_modules=layers, fan_in_fan_out=True, **options)

    adapted: Any = peft.get_peft_model(model, lora(modules_to_save=["ln_f"]))
    posterior = swag.SWAG(adapted)
    heads = swag.SWAG(adapted, parameters="*modules_to_save*")

    def fill(*posteriors: swag.SWAG) -> None:
        for _ in range(3):
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    nn.init.normal_(parameter)
            for each in posteriors:
                each.update_parameters(adapted)

    fill(posterior, heads)
    ids = [{"input_ids": torch.stack([text["input_ids"] for text in texts(labels=False)])}]

    def spread(each: swag.SWAG) -> float:
        return float(each.predict_each(adapted, ids, samples=3, generator=0).std(0).max())

    adapted.add_adapter("other", lora())
    for each in (posterior, heads):
        assert spread(each) > 0
        adapted.set_adapter("other")
        with pytest.raises(ModelError, match="adapter default of"):
            spread(each)
        adapted.set_adapter("default")
        with adapted.disable_adapter(), pytest.raises(ModelError, match="are disabled"):
            spread(each)
        assert spread(each) > 0
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_("lora_" in name)
    fill(together := swag.SWAG(adapted))
    for active in ("default", "other"):
        adapted.set_adapter(active)
        assert spread(together) > 0


# -- accelerate, and loops of one's own -----------------------------------------------------------


def rows() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(5)
    while True:
        yield torch.randn(4, 3, generator=generator)


def loop(
    directory: Path, *, steps: range, resume: bool = False, store: str, **options: Any
) -> Seen:
    """A loop of accelerate, that accumulates two minibatches and saves its state every 3 steps."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model: Any
    optimizer: Any
    model, optimizer = accelerator.prepare(
        plain := network(), torch.optim.SGD(plain.parameters(), lr=0.05)
    )
    if resume:
        accelerator.load_state(str(directory / f"state-{steps.start}"))
    seen, batches = Seen(), rows()
    for _ in range(2 * steps.start):
        next(batches)
    with Collector(store, every=2, **options) as collector:
        collector.begin(model, step=steps.start, optimizers=[optimizer])
        step = steps.start
        while step < steps.stop:
            with accelerator.accumulate(model):
                accelerator.backward(model(next(batches)).square().mean())
                optimizer.step()
                optimizer.zero_grad()
            step += accelerator.sync_gradients
            if accelerator.sync_gradients:
                seen.note(step, accelerator.unwrap_model(model))
            collector.stepped(model, step)
            if accelerator.sync_gradients and step % 3 == 0:
                collector.saving(step)
                accelerator.save_state(str(directory / f"state-{step}"))
    return seen


def test_an_optimizer_of_accelerate_is_attached(scratch: Path) -> None:
    plain: Any = network()
    inner = torch.optim.SGD(plain.parameters(), lr=0.05)
    model: Any
    optimizer: Any
    model, optimizer = accelerate.Accelerator(cpu=True).prepare(plain, inner)
    seen, batches = Seen(), rows()
    with swag.SWAG(model, f"memmap:{scratch}") as posterior:
        posterior.attach(optimizer, gradients=True)
        posterior.attach(inner)  # the same
        assert len(posterior._attached._optimizers) == 1
        for step in range(1, 6):
            optimizer.zero_grad()
            model(next(batches)).square().mean().backward()
            optimizer.step()
            posterior.update_parameters(model)
            seen.note(step, plain)
    assert same(stored(f"memmap:{scratch}"), seen.in_a_plain_loop(network(), [1, 2, 3, 4, 5]))


def test_accelerate_collects_what_a_plain_loop_does_and_resumes(scratch: Path) -> None:
    store, whole = f"memmap:{scratch / 'posterior'}", f"memmap:{scratch / 'whole'}"
    seen = loop(scratch / "w", steps=range(8), store=whole)
    assert same(stored(whole), seen.in_a_plain_loop(network(), [1, 3, 5, 7]))
    loop(scratch, steps=range(5), store=store)  # and no further
    with swag.load(store) as posterior:
        assert posterior.n_averaged == 3
    loop(scratch, steps=range(3, 8), resume=True, store=store)
    assert same(stored(store), stored(whole))


def test_a_checkpoint_that_the_store_does_not_know_is_refused(scratch: Path) -> None:
    store = f"memmap:{scratch / 'posterior'}"
    model: Any = network()
    with Collector(store) as collector:
        with pytest.raises(StoreError, match="does not know the checkpoint at step 7"):
            collector.begin(model, step=7)
        collector.begin(model)
        for step in range(1, 4):
            nn.init.normal_(model[0].weight)
            collector.stepped(model, step)
    with Collector(store) as collector:
        collector.begin(model, step=2)  # never announced, and all that was due was collected
        assert collector.posterior.n_averaged == 2


def collect(collector: Collector, model: Any, *, steps: range, saves: int | None = None) -> None:
    """Train from one step to another; of a run that ends in an exception, nobody says so."""
    collector.begin(model, step=steps.start)
    for step in range(steps.start + 1, steps.stop + 1):
        nn.init.normal_(model[0].weight)
        collector.stepped(model, step)
        if step == saves:
            collector.saving(step)


def test_what_begins_again_was_interrupted(scratch: Path) -> None:
    collector = Collector(f"memmap:{scratch / 'posterior'}")
    collect(collector, network(), steps=range(3))  # as in a notebook's cell, that is run again
    collect(collector, network(), steps=range(2))  # there was no checkpoint to resume from
    assert collector.posterior.n_averaged == 2
    collector.end()


def test_what_resumes_was_interrupted(scratch: Path) -> None:
    """The ring has not made a checkpoint, behind which it could not go, where training ended."""
    collector = Collector(f"memmap:{scratch / 'posterior'}", max_rank=2)
    collect(collector, network(), steps=range(7), saves=5)
    collect(collector, network(), steps=range(5, 6))
    assert collector.posterior.n_averaged == 6
    collector.end()


class OutOfMemory(transformers.TrainerCallback):
    """One minibatch does not find room."""

    raised = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2 and not self.raised:
            self.raised = True
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_a_trainer_that_looks_for_the_size_of_its_batches(scratch: Path) -> None:
    store = f"memmap:{scratch / 'posterior'}"
    train(
        language_model(), scratch, OutOfMemory(), TrainerCallback(store), auto_find_batch_size=True
    )
    assert stored(store)["n_averaged"] == 6
