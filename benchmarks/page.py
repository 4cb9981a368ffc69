"""The page of the documentation that is made of results."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks import peers
from benchmarks._machine import describe
from benchmarks._records import Recording, read
from benchmarks._tables import Table

__all__ = ["SECTIONS", "Section", "write"]


@dataclass(frozen=True, slots=True)
class Section:
    """What the page says of one benchmark."""

    benchmark: str
    """Its name, and that of the module which lays its results out."""
    title: str
    text: str


SECTIONS = (
    Section(
        "limits",
        "What the machine can do",
        "Nothing that follows can be faster than this.",
    ),
    Section(
        "collect",
        "Collection",
        "A network trains alone; with a copy of its weights a step, and with a copy that a thread"
        " writes, which is the least that collecting can cost; with every iterate collected; and"
        " with the row-major matrix that one would write first.",
    ),
    Section(
        "collect-parts",
        "The parts of its cost",
        "Collection attached to the optimizer, whole, and with each of its parts left out.",
    ),
    Section(
        "collect-gpt2",
        "A larger network",
        "A network of GPT-2's shape on random tokens, collected as often as the disk can take it.",
    ),
    Section(
        "peers",
        "What else could keep every iterate",
        "The same training loop, with each library used as its documentation recommends.",
    ),
    Section(
        "paper",
        "The paper's table and figures",
        "The paper's access pattern, in memory and in a memory map, beside ours. The published"
        " figures are of another machine: only ratios can be compared.",
    ),
    Section(
        "regime",
        "More posterior than memory",
        "The process may hold only so much memory, the page cache of its files included: training"
        " data, model and posterior compete for it. This is where the paper's memory map stopped"
        " scaling, and what its question about Memory mode is about (`dram:?spill=` is Memory"
        " mode's counterpart here).",
    ),
    Section(
        "scaling",
        "Scaling",
        "What a step and a draw cost by size, and a model of three parameters for each. The last"
        " table says what the models make of sizes and devices that are not here: predictions. What"
        " the device costs is told from the rest by slowing it down.",
    ),
    Section("rss", "Memory", "An epoch in a process of its own."),
    Section(
        "transactions", "Transactions", "Columns written with a transaction each, and without."
    ),
    Section(
        "opening",
        "Opening, and recovery",
        "Opening reads what describes arrays, and nothing of them. After a kill it undoes what the"
        " last transaction had not ended.",
    ),
    Section(
        "array",
        "Arrays, beside other libraries",
        "The everyday operations of one matrix.\n\n"
        "Where another library is ahead of `zarr:`, this is why. Durable writes, h5py: HDF5 writes"
        " into one file, in place, and a power cut may tear what it was writing. Here a chunk is a"
        " new file beside the old one, made durable and renamed, and then its directory is made"
        " durable: a power cut leaves the old chunk or the new one. Cold items, blosc2: a thread"
        " opens the file and waits for the device, so that Ctrl-C need not; `memmap:`, whose file"
        " is open, shows what the device takes. Columns from the page cache, h5py and tensorstore:"
        " a chunk's name is looked up at every read, since another process may have replaced the"
        " file.",
    ),
    Section(
        "loader",
        "Training data larger than memory",
        "A loader that reads blocks of rows in random order, beside one that has all in memory.",
    ),
    Section("shelf", "Persistent memory", "Stores in place, and through the write cache."),
    Section(
        "guest",
        "Persistent memory, emulated",
        "FS-DAX and Dev-DAX in the machine that `make powercut` boots.",
    ),
    Section(
        "codecs",
        "Codecs",
        "What compression makes of a trajectory, of the store that `swag train memmap:./runs/demo"
        " --epochs 3 --burn-in 2 --fresh` has collected.",
    ),
    Section("imports", "Imports", "In fresh processes."),
    Section(
        "mnist",
        "Posteriors of MNIST",
        "What the methods predict, on the paper's four networks. Of the trainings, the last two"
        " epochs of seven are collected, an iterate a minibatch. Out of distribution are test"
        " images turned by 90 degrees, and noise.",
    ),
    Section(
        "burn-in",
        "The end of the burn-in",
        "Where `suggest_burn_in` finds it, on quadratics whose mixing time is known; and what the"
        " posteriors of windows that begin earlier and later predict of MNIST's test set.",
    ),
    Section(
        "toy-regression",
        "Subspace inference",
        "The toy regression of Izmailov et al. 2019: what is held out lies in the three clusters of"
        " the training data, or in the gaps between them.",
    ),
)
_HEAD = """\
# Benchmarks

<!-- Made by `python -m benchmarks page` from benchmarks/results: do not edit. -->

Each section is one run of one command, on the machine that it names. Figures of different sections
may be of different machines or hours; only those of one table are to be compared. Rounds are
interleaved: what disturbs the machine for a while falls on all rows alike.
"""


_README_FIGURES = re.compile(r"<!-- figures -->.*?<!-- /figures -->", re.DOTALL)
_README_HEADINGS = ("", "ms a step", "x alone", "peak RSS", "32 draws, s", "after a kill")


def write(results: Path, to: Path, readme: Path | None = None) -> None:
    """Write the page, and its figures into a folder of its name.

    Parameters
    ----------
    results
        Directory of files of JSON lines, each named for its benchmark: ``collect.jsonl``, and
        ``collect.one-thread.jsonl`` for another run of it.
    to
        The page, which is replaced.
    readme
        Takes a few columns of the comparison with peers, where it says so.
    """
    parts = [_HEAD]
    # The same results give the same bytes.
    with mpl.rc_context({"svg.hashsalt": "pmarray"}):
        for section in SECTIONS:
            parts += [f"## {section.title}", section.text]
            runs = _runs(results, section.benchmark)
            parts += [part for run in runs for part in _of(run, to)] or [_not_yet(section)]
    to.write_text("\n\n".join(part.strip() for part in parts) + "\n", encoding="utf-8")
    compared = results / "peers.jsonl"
    if readme is not None and compared.exists():
        text = readme.read_text(encoding="utf-8")
        shown = _README_FIGURES.sub(lambda _: _in_short(read(compared)), text)
        readme.write_text(shown, encoding="utf-8")


def _runs(results: Path, benchmark: str) -> list[Recording]:
    files = [results / f"{benchmark}.jsonl", *sorted(results.glob(f"{benchmark}.*.jsonl"))]
    return [read(file) for file in files if file.exists()]


def _in_short(run: Recording) -> str:
    (whole,) = peers.tables(run)
    at = [whole.headings.index(heading) for heading in _README_HEADINGS]
    header = run.header
    table = Table(
        "",
        [whole.headings[i] for i in at],
        [[row[i] for i in at] for row in whole.rows],
        f"`{header['command']}`, {header['date'][:10]}, {header['machine']['cores']} cores: a"
        f" network of {run.of('network')[0]['weights']:,} weights, every iterate kept and made"
        " durable. The whole table, and what its columns mean, is in `docs/benchmarks.md`.",
    )
    return f"<!-- figures -->\n{table.to_markdown()}\n<!-- /figures -->"


def _not_yet(section: Section) -> str:
    return (
        f"No result is kept here; `python -m benchmarks {section.benchmark}` measures it on your"
        " machine."
    )


def _of(run: Recording, to: Path) -> list[str]:
    header = run.header
    module: Any = importlib.import_module(f"benchmarks.{header['benchmark'].replace('-', '_')}")
    parts = [
        f"```\n{header['command']}\n```",
        f"{header['date'][:10]}: {describe(header['machine'])}.",
    ]
    parts += [table.to_markdown() for table in module.tables(run)]
    if hasattr(module, "words"):
        parts.append(module.words(run))
    figures: Callable[[Recording], dict[str, Any]] = getattr(module, "figures", lambda _: {})
    for name, figure in figures(run).items():
        folder = to.with_suffix("")
        folder.mkdir(exist_ok=True)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        parts.append(f"![{name.replace('-', ' ')}]({folder.name}/{name}.svg)")
    return parts
