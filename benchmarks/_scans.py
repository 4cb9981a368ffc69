"""What reads whole files, beside the fastest plain read of them; columns that threads read."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

import swag
from benchmarks._peers import Peer, drop_caches
from benchmarks._plain import WAYS
from benchmarks._records import Recording
from benchmarks._tables import Table, in_bytes

__all__ = ["THREADED", "Trajectory", "race_plain", "race_threads", "tables_of_scans"]

THREADED = ("pmarray memmap:", "pmarray zarr:", "np.memmap", "zarr-python")
_THREADS = (1, 2, 4, 8)
_WHOLE = ("sum", "a @ z")


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def race_plain(run: Recording, what: str, file: Path, turn: int) -> None:
    """Read a cold file by every plain way."""
    for i in range(len(WAYS)):
        name = list(WAYS)[(i + turn) % len(WAYS)]
        drop_caches(file.parent)
        seconds = _seconds(lambda name=name: WAYS[name](file))  # type: ignore[misc]
        run.add("plain", of=what, name=name, round=turn, seconds=seconds)


def race_threads(
    run: Recording, peers: Sequence[Peer], columns: int, turn: int, enough_seconds: float
) -> None:
    """Let threads read columns of one handle: any, which are in memory, or each once, cold."""
    for count in _THREADS:
        for cold in (False, True):
            for k in range(len(peers)):
                peer = peers[(turn + k) % len(peers)]
                if cold:
                    peer.close()
                    drop_caches(peer.path)
                    peer.open()
                else:  # what was written past the system's cache is not there yet
                    _columns_a_second(peer, columns, 1, turn, 0.0)
                seconds = 0.0 if cold else enough_seconds
                rate = _columns_a_second(peer, columns, count, turn, seconds)
                run.add("threads", peer=peer.name, threads=count, cold=cold, round=turn, rate=rate)


def _columns_a_second(
    peer: Peer, columns: int, threads: int, seed: int, enough_seconds: float
) -> float:
    order = np.random.default_rng(seed).permutation(columns)
    done = [0] * threads
    start = threading.Barrier(threads + 1)
    ends = float("inf")

    def work(mine: int) -> None:
        start.wait()
        while True:
            for j in order[mine::threads]:
                peer.read((slice(None), int(j)))
                done[mine] += 1
                if time.perf_counter() > ends:
                    return
            if not enough_seconds:
                return

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    began = time.perf_counter()
    if enough_seconds:
        ends = began + enough_seconds
    start.wait()
    for worker in workers:
        worker.join()
    return sum(done) / (time.perf_counter() - began)


class Trajectory:
    """A posterior that was collected, to be drawn from."""

    def __init__(self, path: Path, weights: int, columns: int, draws: int) -> None:
        self._path = path
        self._draws = draws
        model = torch.nn.Linear(weights, 1, bias=False)
        collected = swag.SWAG(model, store=str(path))
        for _ in range(columns):
            torch.nn.init.normal_(model.weight)
            collected.update_parameters(model)
        collected.close()
        self.file = max(path.rglob("*.npy"), key=lambda file: file.stat().st_size).resolve()

        with swag.load(str(path)) as posterior:  # what only the first of a process pays
            self._draw(posterior)
            self._moments(posterior)

    def race(self, run: Recording, turn: int) -> None:
        """Draw, compute the moments of a window, and read the file, cold."""
        race_plain(run, "trajectory", self.file, turn)
        for name, work in (
            (f"{self._draws} draws", self._draw),
            ("moments of a window", self._moments),
        ):
            with swag.load(str(self._path)) as posterior:
                drop_caches(self._path)
                seconds = _seconds(lambda work=work: work(posterior))  # type: ignore[misc]
            run.add("scan", of="trajectory", name=name, round=turn, seconds=seconds)

    def _draw(self, posterior: swag.StoredPosterior) -> None:
        posterior.sample(self._draws, generator=0)

    @staticmethod
    def _moments(posterior: swag.StoredPosterior) -> None:
        posterior.window(start=1).mean()


def tables_of_scans(run: Recording) -> list[Table]:
    """Lay out what was read whole, by the fastest plain read of the same round, and threads."""
    found = []
    plain: dict[tuple[str, int], dict[str, float]] = {}
    for one in run.of("plain"):
        plain.setdefault((one["of"], one["round"]), {})[one["name"]] = one["seconds"]
    scans: dict[tuple[str, str], list[tuple[float, float]]] = {}
    ours = [
        {**one, "of": "matrix"}
        for one in run.of("operation")
        if one["cold"] and one["peer"] == "pmarray memmap:" and one["name"] in _WHOLE
    ]
    for one in [*(ours if plain else ()), *run.of("scan")]:
        if (one["of"], one["round"]) not in plain:
            continue
        least = min(plain[one["of"], one["round"]].values())
        scans.setdefault((one["of"], one["name"]), []).append((one["seconds"], least))
    if scans:
        table = Table("Whole files, cold", ["", "of", "ms", "fastest plain read, ms", "ratio"])
        for (of, name), pairs in scans.items():
            ratio = statistics.median(mine / least for mine, least in pairs)
            mine, least = (statistics.median(one) for one in zip(*pairs, strict=True))
            table.rows.append([name, of, f"{mine * 1e3:.0f}", f"{least * 1e3:.0f}", f"{ratio:.2f}"])
        ways = "; ".join(
            f"{of}: "
            + ", ".join(
                f"{way} {statistics.median(all_of[way] for all_of in rounds) * 1e3:.0f}"
                for way in WAYS
            )
            for of in dict.fromkeys(of for of, _ in plain)
            for rounds in [[by_way for (one, _), by_way in plain.items() if one == of]]
        )
        table.note = f"Medians of the rounds; the ratio is of one round. Plain reads, ms: {ways}."
        found.append(table)
    rates: dict[tuple[bool, str], dict[int, list[float]]] = {}
    for one in run.of("threads"):
        by_count = rates.setdefault((one["cold"], one["peer"]), {})
        by_count.setdefault(one["threads"], []).append(one["rate"])
    for cold in (False, True):
        rows = {peer: by_count for (one, peer), by_count in rates.items() if one == cold}
        if rows:
            where = "from the device" if cold else "from the page cache"
            nbytes = in_bytes(4 * run.header["parameters"]["rows"])
            table = Table(
                f"Threads that read columns of {nbytes} of one handle, {where}: columns a second",
                ["", *(str(count) for count in _THREADS)],
            )
            for peer, by_count in rows.items():
                medians = [statistics.median(by_count[count]) for count in _THREADS]
                table.rows.append([peer, *(f"{rate:,.0f}" for rate in medians)])
            found.append(table)
    return found
