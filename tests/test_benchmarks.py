"""The benchmarks run, on a small network for a few steps, and clean up after themselves."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks import _keepers, limits, mnist, paper, peers, regime, scaling
from benchmarks.__main__ import app
from benchmarks._harness import Contender, race, table_of
from benchmarks._records import Recording, read, recording
from benchmarks._reference import PlainCopies
from benchmarks._tables import Table
from benchmarks.page import SECTIONS
from tests.limited import run_with_memory

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the JSON lines go: not beside what a benchmark writes and removes."""
    return tmp_path_factory.mktemp("output")


def run(*arguments: str) -> str:
    before = torch.get_num_threads()
    try:
        done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    finally:
        torch.set_num_threads(before)
    assert done.exit_code == 0, done.output
    return done.stdout


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_collect_compares_every_way_with_training_alone(scratch: Path, output: Path) -> None:
    out = run(
        "collect", "--model", "2conv2fc", "--rounds", "2", "--steps", "2", "--warm-up", "1",
        "--reference-rank", "4", "--reference-steps", "2", "--probe-mib", "16", "--threads", "1",
        "--directory", str(scratch), "--output", str(output),
    )  # fmt: skip
    lines = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()]
    rows = {cells[0]: cells for cells in lines if len(cells) == 11}
    assert list(rows) == [
        "training alone",
        "copied, no more",
        "copied and written, no more",
        "SWAG on dram:",
        "SWAG on dram:, attached",
        "SWAG on dram:, rank 20",
        "SWAG on dram:, attached, rank 20",
        "SWAG on memmap:",
        "SWAG on memmap:, attached",
        "SWAG on memmap:, rank 20",
        "SWAG on memmap:, attached, rank 20",
        "SWAG on memmap:, attached, bfloat16",
        "SWAG on zarr:, attached",
        "row-major in DRAM",
        "row-major np.memmap",
    ]
    assert rows["training alone"][2] == "1.00"
    assert re.search(r"device, written in order: [\d.]+ [MG]B/s", out)
    assert list(scratch.iterdir()) == []
    header, *records = lines_of(output / "collect.jsonl")
    assert header["parameters"]["steps"] == 2
    assert header["machine"]["cores"]
    timings = [one for one in records if one["what"] == "timing"]
    assert [one["name"] for one in timings[::2]] == list(rows)
    assert all(one["steps"] == 2 and one["cpu_seconds"] > 0 for one in timings)


@pytest.mark.parametrize("writes", [False, True])
def test_the_plain_copies_are_those_of_the_weights(scratch: Path, writes: bool) -> None:
    model = torch.nn.Linear(40, 30)
    size = sum(p.numel() for p in model.parameters())
    plain = PlainCopies(size, 11, scratch / "plain" if writes else None)
    expected = []
    for step in range(11):
        with torch.no_grad():
            model.weight.fill_(step)
        plain.collect(model)
        expected.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy())
    plain.flush()
    plain.close()
    last = plain._vectors[10 % len(plain._vectors)][:size].numpy()
    np.testing.assert_array_equal(last, expected[-1])
    if writes:
        found = np.fromfile(scratch / "plain", np.float32).reshape(11, -1)[:, :size]
        np.testing.assert_array_equal(found, np.stack(expected))


def test_collect_leaves_out_each_part_in_turn(scratch: Path, output: Path) -> None:
    out = run(
        "collect-parts", "--model", "2conv2fc", "--rounds", "1", "--steps", "1", "--warm-up", "1",
        "--threads", "1", "--directory", str(scratch), "--output", str(output),
    )  # fmt: skip
    names = [one["name"] for one in lines_of(output / "collect-parts.jsonl")[1:] if "name" in one]
    assert names[:2] == ["training alone", "every iterate: all of it"]
    assert "every iterate: without the barriers" in names
    assert names[-1] == "the last 20: without the moments"
    assert all(name in out for name in names)
    assert list(scratch.iterdir()) == []


def test_collect_tells_the_longest_pause_of_a_larger_network(scratch: Path, output: Path) -> None:
    out = run(
        "collect-gpt2", "--width", "64", "--depth", "1", "--tokens", "4", "--rounds", "1",
        "--interval", "2", "--intervals", "2", "--probe-mib", "16", "--threads", "1",
        "--directory", str(scratch), "--output", str(output),
    )  # fmt: skip
    (found,) = (one for one in lines_of(output / "collect-gpt2.jsonl") if "pauses" in one)
    assert found["weights"] == 64 * (50257 + 1024 + 2) + 49984
    assert found["nbytes"] == 4 * found["weights"]
    assert len(found["pauses"]) == 1 + 5 * 2 + 2 * 2 - 1, "a trial has one"
    assert min(found["pauses"]) >= 0
    assert "steps from one iterate to the next: 2" in " ".join(out.split())
    assert list(scratch.iterdir()) == []


def test_rss_checks_what_it_collected(scratch: Path, output: Path) -> None:
    run(
        "rss", "--model", "2conv2fc", "--steps", "20",
        "--directory", str(scratch), "--output", str(output),
    )  # fmt: skip
    _, epoch = lines_of(output / "rss.jsonl")
    assert epoch["steps"] == 20
    assert epoch["file_bytes"] >= 21_840 * 4 * 20
    assert list(scratch.iterdir()) == []


def test_loaders_give_every_row(scratch: Path, output: Path) -> None:
    out = run(
        "loader", "--rows", "3000", "--columns", "20", "--rounds", "1",
        "--directory", str(scratch), "--output", str(output),
    )  # fmt: skip
    _, *epochs = lines_of(output / "loader.jsonl")
    assert len(epochs) == 5
    assert {one["cold"] for one in epochs if "TensorDataset" in one["name"]} == {False}
    assert "ArrayLoader" in out
    assert list(scratch.iterdir()) == []


def test_recovery_takes_no_longer_for_a_larger_array(scratch: Path, output: Path) -> None:
    run("opening", "--quick", "--directory", str(scratch), "--output", str(output))
    records = lines_of(output / "opening.jsonl")[1:]
    opened = [one for one in records if one["what"] == "open"]
    assert {one["mode"] for one in opened} == {"r", "r+"}
    assert {one["nbytes"] for one in opened if one["name"] == "memmap:"} == {4 * 10**8, 4 * 10**11}
    small, large = (one for one in records if one["what"] == "recovery")
    assert small["journal_bytes"] == large["journal_bytes"] >= 4 << 20
    assert list(scratch.iterdir()) == []


def test_imports_times_every_module_in_every_process(output: Path) -> None:
    run("imports", "numpy", "pmarray", "--processes=2", "--output", str(output))
    records = lines_of(output / "imports.jsonl")[1:]
    assert [one["module"] for one in records] == ["numpy", "pmarray"] * 2
    assert all(one["seconds"] > 0 for one in records)


def test_the_command_line_is_a_module(output: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "imports", "numpy", "--processes=1"]
    done = subprocess.run(
        [*command, "--output", str(output)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    command_line = lines_of(output / "imports.jsonl")[0]["command"]
    assert command_line.startswith("python -m benchmarks imports numpy --processes=1")


def test_array_compares_what_is_installed_and_says_what_is_not(scratch: Path, output: Path) -> None:
    run(
        "array", "--rows", "2000", "--columns", "16", "--rounds", "1",
        "--enough-seconds", "0.01", "--probe-mib", "8", "--weights", "3000", "--iterates", "6",
        "--directory", str(scratch), "--output", str(output),
    )  # fmt: skip
    records = lines_of(output / "array.jsonl")[1:]
    read_whole = {(one["of"], one["name"]) for one in records if one["what"] in ("plain", "scan")}
    assert {("matrix", "np.memmap"), ("trajectory", "32 draws")} <= read_whole
    assert {one["threads"] for one in records if one["what"] == "threads"} == {1, 2, 4, 8}
    times: dict[tuple[str, bool], dict[str, float]] = {}
    for one in records:
        if one["what"] == "operation":
            times.setdefault((one["name"], one["cold"]), {})[one["peer"]] = one["seconds"]
    assert {("read an item", False), ("sum", True), ("append columns", False)} <= set(times)
    for name in ("pmarray memmap:", "pmarray zarr:", "np.memmap", "zarr-python"):
        assert all(times[operation][name] > 0 for operation in times)
    notes = {one["name"]: one["note"] for one in records if one["what"] == "peer"}
    for name in ("tensorstore", "h5py", "blosc2", "dask", "pmarray icechunk:"):
        assert name in times["sum", False] or notes[name].startswith("skipped, needs")
    assert list(scratch.iterdir()) == []


def test_shelf_compares_stores_in_place_with_the_write_cache(output: Path) -> None:
    out = run("shelf", "--rows", "2000", "--columns", "8", "--rounds", "1", "--output", str(output))
    records = lines_of(output / "shelf.jsonl")[1:]
    writes = [one for one in records if one["what"] == "write"]
    assert len({one["workload"] for one in writes}) == 7
    assert all(one["seconds"] > 0 for one in writes)
    assert "DRAM that stands for persistent memory" in out


def recorded(
    benchmark: str, output: Path, directory: Path, measure: Callable[..., object], **sizes: Any
) -> Recording:
    """Measure at a tiny size, in this process, and read back what was written down."""
    before = torch.get_num_threads()
    try:
        with recording(benchmark, output, directory, **sizes) as run_:
            measure(run_, directory=directory, **sizes)
    finally:
        torch.set_num_threads(before)
    assert list(directory.iterdir()) == []
    return read(output / f"{benchmark}.jsonl")


def cells(table: Table) -> dict[str, dict[str, str]]:
    return {row[0]: dict(zip(table.headings, row, strict=True)) for row in table.rows}


def test_limits_are_of_memory_device_and_barriers(scratch: Path, output: Path) -> None:
    found = recorded(
        "limits", output, scratch, limits.measure,
        file_bytes=4 << 20, rounds=2, cell_seconds=0, requests=[4096, 1 << 20],
    )  # fmt: skip
    memory, device, barriers = map(cells, limits.tables(found))
    assert len(memory) == 3
    assert len(device) == 8  # read and write, buffered and direct, one and four deep
    assert all(float(row["1.0 MB"]) >= 0 for row in device.values())
    assert set(barriers) == {"buffered write and fdatasync", "direct write and fdatasync"}
    assert all(one["bytes_per_second"] > 0 for one in found.of("device"))


def test_the_papers_figures_stand_beside_ours_as_ratios(scratch: Path, output: Path) -> None:
    found = recorded(
        "paper", output, scratch, paper.measure,
        model="2conv2fc", threads=1, steps=3, rounds=2, most_seconds=60.0, least_steps=1,
        probe_bytes=8 << 20,
    )  # fmt: skip
    sizes, epochs = map(cells, paper.tables(found))
    assert [row["published"] for row in sizes.values()] == [
        "6.28 GB", "156.33 GB", "312.62 GB", "468.92 GB"
    ]  # fmt: skip
    assert epochs[paper.DRAM]["x DRAM"] == "1.00"
    assert epochs["row-major np.memmap"]["published 75"] == "8.99"
    assert {"swag on memmap:", "swag on zarr:", "swag on dram:?spill="} <= set(epochs)
    assert set(paper.figures(found)) == {"paper-epoch"}


def test_a_run_that_is_broken_off_leaves_the_results_of_the_one_before(output: Path) -> None:
    with recording("limits", output) as run_:
        run_.add("memory", bytes_per_second=1.0)
    with pytest.raises(KeyboardInterrupt), recording("limits", output) as run_:
        run_.add("memory", bytes_per_second=2.0)
        raise KeyboardInterrupt
    (kept,) = read(output / "limits.jsonl").of("memory")
    assert kept["bytes_per_second"] == 1.0
    (partial,) = read(output / "limits.jsonl.part").of("memory")
    assert partial["bytes_per_second"] == 2.0


def test_a_run_goes_on_with_what_one_of_the_same_parameters_has_left(output: Path) -> None:
    def run_once(value: int, seeds: int) -> list[int]:
        with (
            pytest.raises(KeyboardInterrupt),
            recording("mnist", output, goes_on=True, seeds=seeds) as run_,
        ):
            run_.add("method", value=value)
            raise KeyboardInterrupt
        part = output / "mnist.jsonl.part"
        found = [one["value"] for one in read(part).records]
        part.write_text(part.read_text() + '{"what": "meth')  # killed in the middle of a line
        return found

    assert run_once(1, 3) == [1]
    assert run_once(2, 3) == [1, 2]
    assert run_once(3, 4) == [3]


def test_a_seed_that_lacks_methods_is_in_no_mean_of_mnist() -> None:
    figures = dict.fromkeys(("nll", "ece", "brier", "auroc_rotated", "auroc_noise"), 0.5)
    run_ = Recording({"benchmark": "mnist"})
    run_.add("rate", network="2fc", rate=0.05, held_out_nll=0.2)
    run_.add("rate", network="2fc", rate=0.1, held_out_nll=0.1)
    for seed, method, accuracy in ((0, "SGD", 0.9), (0, "SWA", 0.8), (1, "SGD", 0.1)):
        run_.add("method", network="2fc", seed=seed, method=method, accuracy=accuracy, **figures)
    (table,) = mnist.tables(run_)
    assert cells(table)["SGD"]["accuracy %"] == "90.00"
    assert "1 seed." in table.note
    assert "Learning rate 0.1," in table.note


def test_a_run_that_takes_too_long_is_broken_off_and_marked() -> None:
    class Slow:
        def step(self) -> None:
            time.sleep(0.01)

        def finish(self) -> None:
            pass

    slow = Contender("slow", lambda: nullcontext(Slow()))
    (result,) = race([slow], rounds=1, steps=1000, warm_up=1, most_seconds=0.05, least_steps=2)
    assert 2 <= result.steps <= 6
    assert result.seconds >= 0.01
    assert table_of([result]).rows[0][0] == "slow *"


def test_a_posterior_larger_than_memory_is_collected_where_memory_is_little(
    scratch: Path, output: Path
) -> None:
    found = recorded(
        "regime", output, scratch, regime.measure,
        model="2conv2fc", threads=1, memory_bytes=1 << 20, ratios=[0.25, 1.0], rounds=1,
        most_seconds=0.0, least_steps=2, enforced=False,
    )  # fmt: skip
    (table,) = map(cells, regime.tables(found))
    assert table["row-major in DRAM"]["1"] == "-"  # it would not fit
    assert float(table["swag on memmap:"]["last / first"]) > 0
    assert set(regime.figures(found)) == {"regime"}


def test_the_memory_of_a_cgroup_is_all_that_a_process_gets() -> None:
    script = "x = bytearray(20 << 20); print(len(x), flush=True); x = bytearray(400 << 20)"
    done = run_with_memory(100 << 20, script)
    assert done.stdout == f"{20 << 20}\n"
    assert done.returncode == -9


PEAKS = """
import numpy as np
from benchmarks._counters import peak_rss, reset_peak_rss

def touch(megabytes):
    np.ones(megabytes * 1_000_000, np.uint8)  # given back at once: it is only in the peak

touch(200)
reset_peak_rss()
before = peak_rss()
touch(50)
print(0 if before is None else peak_rss() - before)
"""


def test_the_peak_of_memory_is_counted_anew_after_a_reset() -> None:
    if not re.search("^VmHWM:", Path("/proc/self/status").read_text(), re.MULTILINE):
        pytest.skip("this kernel does not count the peak of a process's memory")
    # In a process of its own: what other threads and tests give back is not measured with it.
    done = subprocess.run(
        [sys.executable, "-c", PEAKS], cwd=REPOSITORY, text=True, capture_output=True, check=True
    )
    assert 45_000_000 < int(done.stdout) < 100_000_000


def test_peers_keep_the_same_training_and_are_killed(scratch: Path, output: Path) -> None:
    found = recorded(
        "peers", output, scratch, peers.compare,
        model="2conv2fc", threads=1, rounds=1, steps=2, warm_up=1, most_seconds=60.0, kills=3,
        probe_bytes=8 << 20, only=["swag", "torch.save"],
    )  # fmt: skip
    (table,) = map(cells, peers.tables(found))
    assert table["training alone"]["x alone"] == "1.00"
    assert float(table["swag on memmap:"]["32 draws, s"]) > 0
    assert table["torch.save"]["after a kill"] == "3"
    # What was on its way is lost, and nothing is half there.
    assert table["swag on memmap:"]["after a kill"] in {"0", "1", "2", "3"}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("kind", _keepers.KEEPERS, ids=lambda kind: kind.__name__)
def test_a_keeper_gives_back_what_it_was_given(kind: type[_keepers.Keeper], scratch: Path) -> None:
    if missing := _keepers.missing(kind):
        pytest.skip(f"needs {', '.join(missing)}")
    model = torch.nn.Linear(400, 1, bias=False)
    given = []
    with closing(kind(scratch, model, 3)) as kept:
        for _ in range(3):
            torch.nn.init.normal_(model.weight)
            given.append(model.weight.detach().numpy().ravel().copy())
            kept.collect(model)
        kept.finish()
        if kind is not _keepers.TorchUncertainty:
            np.testing.assert_allclose(list(kept.iterates()), given, atol=1e-6)
        drawn = kept.draw(1000)
    assert drawn.shape == (1000, 400)
    np.testing.assert_allclose(drawn.mean(0), np.mean(given, 0), atol=0.3)
    # Half of the variance of the iterates, and half of their sample covariance.
    expected = (np.var(given, 0) + np.var(given, 0, ddof=1)).mean() / 2
    if kind not in (_keepers.Ours, _keepers.TorchUncertainty):  # deviations from the running mean
        np.testing.assert_allclose(drawn.var(0).mean(), expected, rtol=0.1)


def test_the_page_says_in_words_who_wins_and_where_we_lose(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    run("page", str(REPOSITORY / "benchmarks" / "results"), "--to", str(page))
    text = page.read_text()
    found = read(REPOSITORY / "benchmarks" / "results" / "paper.jsonl")
    table = paper.tables(found)[1]
    at = table.headings.index("x DRAM")
    faster = {row[0].rstrip(" *") for row in table.rows if row[at] < "1" and row[at] != "-"}
    (sentence,) = re.findall(r"Faster than the row-major matrix in DRAM: (.*?)\. ", text)
    assert {name.rpartition(" (")[0] for name in sentence.split(", ")} == faster - {
        "training alone"
    }
    assert "Least time a step: " in text
    assert "times what it costs at the smallest" in text


def test_scaling_fits_models_and_marks_predictions(scratch: Path, output: Path) -> None:
    found = recorded(
        "scaling", output, scratch, scaling.measure,
        weights=[1000, 20_000], ranks=[2, 4], caches=[8], slowed=[50e6], rounds=2, steps=2,
        most_seconds=60.0, probe_bytes=8 << 20,
    )  # fmt: skip
    steps, draws, predictions = scaling.tables(found)
    slow = [] if found.of("note") else [row for row in steps.rows if row[3] == "50.0 MB/s"]
    assert len(steps.rows) == 5 + len(slow)
    assert len(slow) == 1 or found.of("note")
    assert len(draws.rows) == 8  # 2 and 3 of the sizes at one rank, 3 of the second at the other
    assert predictions.title.startswith("Predictions, not measurements")


def test_the_page_says_of_every_benchmark_what_was_measured_or_how_to(
    output: Path, tmp_path: Path
) -> None:
    run("imports", "numpy", "--processes=1", "--output", str(output))
    shutil.copy(output / "imports.jsonl", output / "imports.again.jsonl")
    page = tmp_path / "benchmarks.md"
    run("page", str(output), "--to", str(page))
    text = page.read_text()
    assert text.count("| import | ms, median of 1 | fastest | slowest |") == 2
    assert text.count("\n## ") == len(SECTIONS)
    assert "`python -m benchmarks peers` measures it" in text
    commands = {
        command.name or command.callback.__name__.replace("_", "-")
        for command in app.registered_commands
        if command.callback is not None
    }
    assert commands == {section.benchmark for section in SECTIONS} | {"page"}
