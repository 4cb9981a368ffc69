"""The command line: ``swag train | evaluate | sample | diagnose | report | info | prune``.

PyTorch takes seconds to import, so it is imported inside the commands; ``swag --help`` is quick.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

import pmarray
from pmarray._extras import MissingPackageError, wanted
from pmarray._terminal import complain, run, say, say_done
from swag.app.recipe import Recipe
from swag.errors import RecipeError, SwagError

__all__ = ["app"]

# Exits with 0, 1 after a told error, 2 after wrong usage, 130 after an interrupt.
app = typer.Typer(
    help="SWA-Gaussian posteriors over network weights, collected on disk while training.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_DEFAULTS = Recipe()
_MNIST_FOLDER = "Folder of the four MNIST files; those that come with swag if not given."


def main() -> None:
    """Run the command line."""
    run("swag", app)


def _print_version(asked: bool) -> None:
    if asked:
        say(f"swag {pmarray.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    pass


Store = Annotated[
    str, typer.Argument(help="Where the posterior is kept, as a pmarray URL: memmap:./runs/demo.")
]
Data = Annotated[Path | None, typer.Option(help=_MNIST_FOLDER)]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads that compute; PyTorch's choice if not given.")
]


@app.command(epilog="Example: swag train memmap:./runs/demo --model 2fc --epochs 7")
def train(
    store: Store,
    model: Annotated[
        Literal["2conv2fc", "2fc", "3fc", "4fc"],
        typer.Option(help="Network: 21,840, 795,010, 1,290,510 or 2,797,010 parameters."),
    ] = "4fc",
    epochs: Annotated[int, typer.Option(help="Passes over the training set.")] = _DEFAULTS.epochs,
    batch_size: Annotated[int, typer.Option(help="Images in a minibatch.")] = _DEFAULTS.batch_size,
    images: Annotated[
        int | None,
        typer.Option(help="Train on the first so many images, for a trial; all if not given."),
    ] = _DEFAULTS.images,
    lr: Annotated[float, typer.Option(help="Learning rate at first.")] = _DEFAULTS.lr,
    momentum: Annotated[float, typer.Option(help="Momentum of SGD.")] = _DEFAULTS.momentum,
    weight_decay: Annotated[float, typer.Option(help="L2 penalty.")] = _DEFAULTS.weight_decay,
    swa_lr: Annotated[
        float, typer.Option(help="Learning rate while collecting.")
    ] = _DEFAULTS.swa_lr,
    anneal: Annotated[
        float | None,
        typer.Option(
            help="Epochs, the last of the burn-in, from one rate to the other. "
            "If not given: 1, or the burn-in if that is shorter."
        ),
    ] = None,
    anneal_strategy: Annotated[
        Literal["cos", "linear"], typer.Option(help="Shape of the annealing.")
    ] = _DEFAULTS.anneal_strategy,
    burn_in: Annotated[
        float | None,
        typer.Option(
            help="Epochs before the first collection. If not given: 5, or 5/7 of fewer than 7."
        ),
    ] = None,
    interval: Annotated[
        int, typer.Option(help="Minibatches from one collection to the next.")
    ] = _DEFAULTS.interval,
    rank: Annotated[
        int | None,
        typer.Option(help="Keep the last so many iterates; 0 for the diagonal; all if not given."),
    ] = _DEFAULTS.rank,
    seed: Annotated[
        int, typer.Option(help="Of the first weights and of the order of minibatches.")
    ] = _DEFAULTS.seed,
    threads: Threads = None,
    data: Data = None,
    checkpoint_every: Annotated[
        int, typer.Option(min=1, help="Minibatches after which the state of training is stored.")
    ] = 100,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace what the store holds.")] = False,
) -> None:
    """Train on MNIST and collect the iterates of SGD into a store.

    Run again with the same store, it goes on where it was interrupted, and ends with the same
    numbers as if it had not been. SIGTERM ends it after a minibatch, with its state stored.

    The learning rate is --lr during the burn-in, is annealed to --swa-lr over the last --anneal
    epochs of it, and stays there while the weights are collected.
    """
    with _plain_errors():
        try:
            recipe = Recipe.of(
                model=model,
                epochs=epochs,
                batch_size=batch_size,
                images=images,
                lr=lr,
                momentum=momentum,
                weight_decay=weight_decay,
                swa_lr=swa_lr,
                anneal=anneal,
                anneal_strategy=anneal_strategy,
                burn_in=burn_in,
                interval=interval,
                rank=rank,
                seed=seed,
                threads=threads,
            )
        except RecipeError as error:
            raise typer.BadParameter(
                f"must be {error.wanted}, not {error.value!r}",
                param_hint=f"--{error.field.replace('_', '-')}",
            ) from None
        from swag.app import runs
        from swag.app.progress import TrainingProgress

        _set_threads(threads)
        _seed_everything(seed)
        with TrainingProgress(Console()) as progress:
            done = runs.train(
                store,
                recipe,
                data=data,
                fresh=fresh,
                checkpoint_every=checkpoint_every,
                watch=progress.update,
            )
        told = f"{done.steps:,} minibatches, {done.n_averaged:,} iterates in {store}"
        if not done.finished:
            complain(
                f"terminated: {told} so far, and the state of training is stored with them; the "
                "same command goes on"
            )
            raise typer.Exit(128 + signal.SIGTERM)
        if done.trained:
            say_done(f"finished: {told}")
        else:
            say(f"this training was finished before: {told}; --fresh does it again")


@app.command(epilog="Example: swag evaluate memmap:./runs/demo --rank 20 --figure demo.png")
def evaluate(
    store: Store,
    images: Annotated[
        int | None,
        typer.Option(
            min=1, help="Evaluate on the first so many images, for a trial; all if not given."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Networks drawn from each posterior.")] = 30,
    scale: Annotated[
        float,
        typer.Option(min=0.0, help="Factor of the covariance of SWAG; 0.5 as in its paper."),
    ] = 0.5,
    start: Annotated[int, typer.Option(min=0, help="First iterate to use, from 0.")] = 0,
    every: Annotated[int, typer.Option(min=1, help="Use every so many iterates.")] = 1,
    rank: Annotated[
        int | None, typer.Option(min=0, help="Columns of the low-rank part; all if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    figure: Annotated[
        Path | None, typer.Option(help="Write a picture there: .png, .pdf or .svg.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
    threads: Threads = None,
    data: Data = None,
) -> None:
    """Compare the last iterate, SWA, SWAG-diagonal and SWAG on the MNIST test set."""
    with _plain_errors():
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        from swag.app import evaluation, report

        if figure is not None:  # before the work
            try:
                report.check_picture(figure)
            except ValueError as error:
                raise typer.BadParameter(str(error), param_hint="--figure") from None
        _set_threads(threads)
        console = Console(stderr=True)
        spinner = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        # Elsewhere older versions of rich print an empty line, also where it is disabled.
        with spinner if console.is_terminal else nullcontext():
            task = spinner.add_task("reading", total=None)
            found = evaluation.evaluate(
                store,
                data=data,
                images=images,
                samples=samples,
                scale=scale,
                start=start,
                every=every,
                rank=rank,
                seed=seed,
                watch=lambda name: spinner.update(task, description=f"predicting with {name}"),
            )
        if as_json:
            say(json.dumps(report.as_json(found), indent=2))
        else:
            Console().print(report.table(found))
        if figure is not None:
            report.picture(found, figure)
            complain(f"picture: {figure}")


@app.command(
    epilog="Examples: swag sample memmap:./runs/demo draws --samples 10"
    " | swag sample memmap:./runs/demo memmap:./drawn#draws --start 200 --rank 50 --seed 1"
)
def sample(
    store: Store,
    destination: Annotated[
        str,
        typer.Argument(
            help="A folder, for files of safetensors, one a draw; or, with a #name, the URL of a "
            "pmarray array, for a matrix with a row a draw: memmap:./drawn#draws."
        ),
    ],
    samples: Annotated[int, typer.Option(min=1, help="Draws.")] = 30,
    scale: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Factor of the covariance. If not given: 0.5, or 1 without a low-rank part.",
        ),
    ] = None,
    part: Annotated[
        Literal["both", "diagonal", "low-rank"],
        typer.Option(help="What of the covariance is drawn from."),
    ] = "both",
    antithetic: Annotated[
        bool, typer.Option("--antithetic", help="Draw in pairs, mirrored in the mean.")
    ] = False,
    start: Annotated[int, typer.Option(min=0, help="First iterate to use, from 0.")] = 0,
    every: Annotated[int, typer.Option(min=1, help="Use every so many iterates.")] = 1,
    rank: Annotated[
        int | None, typer.Option(min=0, help="Columns of the low-rank part; all if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace draws that are there.")
    ] = False,
) -> None:
    """Draw weights from a posterior, of any model, into files of safetensors or an array.

    The same seed gives the same draws. The trajectory is read once, and no more than a gigabyte of
    draws is held at a time.
    """
    if antithetic and samples % 2:
        raise typer.BadParameter("must be even with --antithetic", param_hint="--samples")
    with _plain_errors():
        from swag.app import drawing

        told = drawing.sample(
            store,
            destination,
            samples=samples,
            window={"start": start, "every": every, "rank": rank},
            overwrite=overwrite,
            scale=scale,
            part=part,
            antithetic=antithetic,
            generator=seed,
        )
        say_done(told)


@app.command(epilog="Example: swag diagnose memmap:./runs/demo --figure burn-in.png")
def diagnose(
    store: Store,
    figure: Annotated[
        Path | None, typer.Option(help="Write a picture there: .png, .pdf or .svg.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
) -> None:
    """Say where the burn-in of a stored trajectory ends, and what speaks for it.

    Any posterior that was collected with its iterates will do, of any training.
    """
    with _plain_errors():
        from swag.app import diagnosis, report

        if figure is not None:
            try:
                report.check_picture(figure)
            except ValueError as error:
                raise typer.BadParameter(str(error), param_hint="--figure") from None
        found = diagnosis.diagnose(store)
        if as_json:
            say(json.dumps(diagnosis.as_json(found), indent=2))
        else:
            Console().print(diagnosis.table(found))
        if figure is not None:
            diagnosis.picture(found, figure)
            complain(f"picture: {figure}")


@app.command(epilog="Example: swag report memmap:./runs/demo --output demo.html")
def report(
    store: Store,
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("report.html"),
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Evaluate on the first so many images; all if not given."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Networks drawn from each posterior.")] = 30,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    threads: Threads = None,
    data: Data = None,
) -> None:
    """Write a page about a posterior: one HTML file that needs nothing else.

    Burn-in, trajectory and spectrum of any posterior; scores, reliability and cost of each step
    where swag train made it.
    """
    with _plain_errors():
        from swag.app import evaluation, html, runs
        from swag.posterior import load

        output.parent.mkdir(parents=True, exist_ok=True)
        _set_threads(threads)
        found = None
        if runs.describe(store)["recipe"] is not None:
            found = evaluation.evaluate(
                store, data=data, images=images, samples=samples, seed=seed, outside=1000
            )
        with load(store) as posterior:
            html.write(html.find(posterior, found), output)
        complain(f"report: {output}")


@app.command(epilog="Example: swag info memmap:./runs/demo --json")
def info(
    store: Store,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
) -> None:
    """Say what a store holds: the model, the iterates, their size and how they were made."""
    with _plain_errors():
        from swag.app import report, runs

        facts = runs.describe(store)
        if as_json:
            say(json.dumps(facts, indent=2))
        else:
            Console().print(report.facts_table(facts))


@app.command(epilog="Example: swag prune memmap:./runs/demo --start 1000 --every 5")
def prune(
    store: Store,
    start: Annotated[int, typer.Option(min=0, help="First iterate to keep, from 0.")] = 0,
    every: Annotated[int, typer.Option(min=1, help="Keep every so many iterates.")] = 1,
) -> None:
    """Keep some of the iterates and give back the space of the others."""
    with _plain_errors():
        from swag import pruning

        left = pruning.prune(store, start, every)
        say_done(f"{left:,} iterates are left in {store}")


def _seed_everything(seed: int) -> None:
    """Seed the global generators, which are this process's own and part of the training state."""
    import random

    import numpy as np
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global one is what is meant
    random.seed(seed)


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Print errors that a user can act on as one line, without a traceback."""
    try:
        with wanted():
            yield
    except KeyboardInterrupt:
        complain("interrupted")
        raise typer.Exit(130) from None
    except (SwagError, pmarray.PMArrayError, MissingPackageError, OSError) as error:
        complain(f"swag: {error}")
        raise typer.Exit(1) from None
