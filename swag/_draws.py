"""Draws one after another, into an array, and into files, from one reading of the trajectory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import pmarray
from pmarray._extras import wanted
from swag._joining import Joining
from swag._space import free_on_disk
from swag.sampling import Plan, draw, drawn

__all__ = ["Draws", "fill", "save"]

_LEAST_ROOM = 2
"""Nothing is kept on a disk for speed that has not so many times its room."""


@dataclass(frozen=True)
class Draws:
    """Draws from one posterior, one after another, shape (n,) each."""

    plan: Plan
    """What is drawn."""
    memory_bytes: int
    """For draws and for what they are made from."""

    def __len__(self) -> int:
        return len(self.plan)

    def once(self) -> Iterator[Tensor]:
        """The draws, one after another.

        A memory's worth is made at a time, and each time reads the trajectory. Where that takes
        longer than to write them to the disk and to read them, and there is room, they are kept.
        """
        if self._is_better_kept():
            yield from self.kept()
            return
        at_once = self._at_once()
        for first in range(0, len(self), at_once):
            yield from draw(self.plan.some(first, first + at_once), self.memory_bytes // 2)

    def _at_once(self) -> int:
        return max(1, self.memory_bytes // 2 // (self.plan.gaussian.anchor.nbytes or 1))

    def _is_better_kept(self) -> bool:
        anchor, columns = self.plan.gaussian.anchor, self.plan.gaussian.columns
        nbytes = 0 if columns is None else len(columns) * len(anchor) * columns.array.dtype.itemsize
        readings, draws = -(-len(self) // self._at_once()), len(self) * anchor.nbytes
        room = _LEAST_ROOM * draws
        return (readings - 1) * nbytes > 2 * draws and (free_on_disk(_folder()) or 0) >= room

    def kept(self) -> Iterable[Tensor]:
        """The draws, to be gone through again: in memory if they find room, else on the disk.

        The trajectory is read once.
        """
        if len(self) * self.plan.gaussian.anchor.nbytes <= self.memory_bytes // 2:
            return list(draw(self.plan, self.memory_bytes // 2))
        return _Spooled(self.plan, self.memory_bytes // 2)


def _folder() -> Path:
    return Path(tempfile.gettempdir())


class _Spooled:
    """Draws in a file without a name, which goes when nobody reads it any more."""

    def __init__(self, plan: Plan, memory_bytes: int) -> None:
        self._group = pmarray.open_group(f"dram:?spill={_folder()}")
        table = plan.gaussian.table
        dtype = str(table.dtype).removeprefix("torch.")
        self._columns = self._group.create("draws", (table.size, len(plan)), dtype, layout="col")
        for start, stop, block in drawn(plan, memory_bytes):
            self._columns[start:stop, :] = block.numpy().T

    def __iter__(self) -> Iterator[Tensor]:
        for i in range(self._columns.shape[1]):
            yield torch.from_numpy(self._columns[:, i])

    def __del__(self) -> None:
        if hasattr(self, "_group"):
            self._group.close()


def fill(out: pmarray.PMArray, plan: Plan, memory_bytes: int) -> None:
    """Write draws into an array, shape (draws, n), in one transaction of its group.

    Raises
    ------
    ValueError
        The array has another shape.
    """
    shape = (len(plan), plan.gaussian.table.size)
    if not isinstance(out, pmarray.PMArray):
        raise TypeError(
            f"the draws go into a pmarray.PMArray, and this is a {type(out).__name__}: sample() "
            "gives tensors"
        )
    if out.shape != shape:
        raise ValueError(f"the array has shape {out.shape}, and the draws {shape}")
    if out.dtype.kind != "f" and out.dtype.name != "bfloat16":
        raise ValueError(f"the array has dtype {out.dtype}, which would cut draws off: use a float")
    with Joining(out.group):
        for start, stop, block in drawn(plan, memory_bytes):
            out[:, start:stop] = block.numpy()


def save(
    folder: Path, draws: Draws, metadata: Mapping[str, str], overwrite: bool
) -> Iterator[Path]:
    """Write each draw into a file of safetensors, which appears when it is whole.

    Raises
    ------
    FileExistsError
        A file is there, and is not to be overwritten; nothing is written.
    """
    with wanted():
        from safetensors.torch import save_file

    digits = max(5, len(str(len(draws) - 1)))
    paths = [folder / f"draw-{i:0{digits}d}.safetensors" for i in range(len(draws))]
    there = [path for path in paths if path.exists()]
    if there and not overwrite:
        raise FileExistsError(
            f"{len(there)} of the {len(paths)} files are there already, {there[0]} for one: name "
            "another folder, or overwrite them"
        )
    folder.mkdir(parents=True, exist_ok=True)
    table = draws.plan.gaussian.table
    for i, (path, vector) in enumerate(zip(paths, draws.kept(), strict=True)):
        views = table.by_name(vector)
        # The format wants tensors that share no memory.
        tensors = {e.name: views[e.name].to(e.dtype, copy=True) for e in table.entries}
        partial = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            save_file(tensors, partial, {"format": "pt", **metadata, "draw": str(i)})
            partial.replace(path)
        finally:
            with suppress(OSError):
                partial.unlink()
        yield path
