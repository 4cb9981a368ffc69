"""A signal that asks training to end: the loop ends after a step, and what was trained is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch

import swag
from swag.app import runs
from swag.app.recipe import Recipe
from swag.app.training import Step, Trainer
from tests.crash.training import digests
from tests.swag.commands import SWAG

SMALL = Recipe(model="2conv2fc", epochs=1, images=800, batch_size=40, burn_in=0.2, anneal=0.1)


def test_a_signal_is_noted_and_a_second_one_is_what_it_was() -> None:
    before = signal.getsignal(signal.SIGTERM)
    reached: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: reached.append(number))
    try:
        own = signal.getsignal(signal.SIGTERM)
        with swag.Preemption() as preemption:
            seen = [preemption.requested]
            os.kill(os.getpid(), signal.SIGTERM)
            assert reached == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert reached == [signal.SIGTERM]
            seen.append(preemption.requested)
        assert seen == [False, True]
        assert signal.getsignal(signal.SIGTERM) is own
        with preemption:
            assert not preemption.requested
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_handler_that_somebody_set_inside_is_left_alone() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    try:
        with swag.Preemption([signal.SIGUSR1]):
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_on_another_thread_it_is_refused() -> None:
    raised: list[Exception] = []

    def enter() -> None:
        try:
            swag.Preemption().__enter__()
        except ValueError as error:
            raised.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert "main thread" in str(raised[0])


@pytest.mark.parametrize("rank", [None, 2, 0])
def test_training_that_was_asked_to_end_goes_on_bit_for_bit(
    tmp_path: Path, rank: int | None
) -> None:
    recipe = Recipe(**{**SMALL.to_json(), "rank": rank})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of two, a sum has two orders
    try:
        whole = f"memmap:{tmp_path / 'whole'}"
        torch.manual_seed(0)
        assert runs.train(whole, recipe, checkpoint_every=4).finished
        store = f"memmap:{tmp_path / 'store'}"
        stops = [2, 11, 12]  # in the burn-in, and between and at checkpoints

        def watch(trainer: Trainer, step: Step, written: int) -> None:
            if trainer.step in stops:
                os.kill(os.getpid(), signal.SIGTERM)

        for number, stop in enumerate(stops):
            done = runs.train(store, recipe, checkpoint_every=4, watch=watch)
            assert (done.steps, done.finished) == (stop, False), number
        assert runs.train(store, recipe, checkpoint_every=4).finished
    finally:
        torch.set_num_threads(threads)
    assert digests(store) == digests(whole)


def test_the_command_tells_and_goes_on(tmp_path: Path) -> None:
    store = f"memmap:{tmp_path / 'store'}"
    command = [*SWAG, "train", store, "--threads", "1"]
    command += ["--model", "2conv2fc", "--epochs", "1", "--images", "4000", "--batch-size", "40"]
    training = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "store" / "pmarray.json"
    while training.poll() is None and not (folder.exists() and "trajectory" in folder.read_text()):
        time.sleep(0.05)
    training.send_signal(signal.SIGTERM)
    _, told = training.communicate(timeout=120)
    assert training.returncode == 143, told
    assert "terminated" in told
    assert "the same command goes on" in told
    assert "finished" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
