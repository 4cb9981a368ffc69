"""Programs on a group, and what a crash may leave of them.

To add one: subclass `GroupScenario`, call ``recorder.mark("begun", n)`` before the work that leads
to state n and ``recorder.mark("committed", n)`` when the library has promised it, and list it in
`SCENARIOS`.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import zarr
from numpy.typing import NDArray

import pmarray
from pmarray._commits import committer, journal
from pmarray._dtypes import parse_dtype
from pmarray._storage import oldbytes
from pmarray._system import pastcache
from pmarray.backends.files import region
from pmarray.testing import Operation, State, Workload, filled
from tests.crash.check import Scenario
from tests.crash.events import Mark
from tests.crash.recorder import Recorder
from tests.persistent import pretend_dax, pretend_devices

__all__ = [
    "BLOCKS",
    "COLUMNS",
    "DEVICE",
    "EMPTY_DEVICE",
    "MEMMAP",
    "SCENARIOS",
    "SHELF",
    "Flushes",
    "Forgetting",
    "Formatting",
    "GroupScenario",
    "Growing",
    "InPlace",
    "Interrupted",
    "Place",
    "Transactions",
]

_SMALL_CACHE_BYTES = 16384
_DEVICE_BYTES = 16 << 20
_UNIT_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Place:
    """Where the group of a scenario is."""

    scheme: str = "memmap"
    chunks: int | str | tuple[int, ...] = "auto"
    """Of its arrays."""
    cache: int | str = _SMALL_CACHE_BYTES
    """Of the group, where it does not matter to the scenario."""
    target: str = "g"

    def __str__(self) -> str:
        name = self.scheme if self.target == "g" else f"{self.scheme} {self.target}"
        return name if self.chunks == "auto" else f"{name} chunks={self.chunks}"

    def url(self, path: Path) -> str:
        """Return the URL of the group, in the directory that is crashed."""
        return f"{self.scheme}:{path}/{self.target}"

    def prepare(self, path: Path) -> None:
        """Make what a group is made in."""

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """Have persistent memory where there is none, and large chunks where they are small."""
        with ExitStack() as pretences:
            if self.scheme == "shelf":
                pretences.enter_context(pretend_dax())
                pretences.enter_context(pretend_devices(_UNIT_BYTES))
            if self == BLOCKS:  # as large chunks are written
                pretences.enter_context(mock.patch.object(pastcache, "_MIN_BYTES", 1))
            yield

    def check_closed(self, path: Path, found: State) -> None:
        """Ask another reader what is there, when the group has been recovered and closed."""
        if self.scheme == "zarr":
            seen = _seen_by_zarr(path / "g")
            if seen != found:
                raise AssertionError(f"zarr-python sees {seen}, and pmarray {found}")


@dataclass(frozen=True, slots=True)
class Device(Place):
    """A file that is mapped as a device would be, and only stored to."""

    is_empty: bool = False
    """Whether the scenario has to make a pool on it."""

    def prepare(self, path: Path) -> None:
        """Plug it in."""
        with (path / self.target).open("wb") as file:
            file.truncate(_DEVICE_BYTES)
        if not self.is_empty:
            with self.surroundings():
                pmarray.open_group(self.url(path)).close()


MEMMAP = Place()
SHELF = Place("shelf", cache="auto")
"""Files on DAX; stored to in place, unless a scenario asks for a cache."""
DEVICE = Device("shelf", cache="auto", target="dax")
EMPTY_DEVICE = Device("shelf", cache="auto", target="dax", is_empty=True)
COLUMNS = Place("zarr", 1)
"""A chunk is a column of a column-major matrix, a row of a row-major one."""
BLOCKS = Place("zarr", (300, 2))
"""A chunk is a part of two columns."""


def _seen_by_zarr(path: Path) -> State:
    """Return what zarr-python finds; it must have nothing to complain of, and nothing be left."""
    files = {str(one.relative_to(path)) for one in path.rglob("*") if not one.is_dir()}
    files.remove("zarr.json")
    arrays: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(path, mode="r")
        for name, array in group.members():
            assert isinstance(array, zarr.Array)
            arrays[name] = array[...]
            keys = (array.metadata.encode_chunk_key(at) for at in np.ndindex(array.cdata_shape))
            files -= {f"{name}/zarr.json", *(f"{name}/{key}" for key in keys)}
    if files:
        raise AssertionError(f"recovery left {sorted(files)}")
    attrs = {key: value for key, value in group.attrs.items() if key != "pmarray"}
    return State.of_model(arrays, attrs)


class GroupScenario(Scenario):
    """A group that goes from state to state; which one it is in, its attribute "step" says.

    Parameters
    ----------
    place
        Where it is.
    """

    states: list[State]

    def __init__(self, place: Place = MEMMAP) -> None:
        self._place = place

    def surroundings(self) -> AbstractContextManager[None]:
        """Those of the place."""
        return self._place.surroundings()

    def prepare(self, path: Path) -> None:
        """Make the place."""
        self._place.prepare(path)

    def look(self, group: pmarray.Group) -> State:
        """Return what a group holds, as far as anything is promised of it."""
        return State.of_group(group)

    def reopen(self, path: Path) -> Any:
        """Look as a reader, which changes nothing; recover; look again: it must be the same."""
        url = self._place.url(path)
        try:
            with pmarray.open_group(url, mode="r") as reader:
                seen = self.look(reader)
        except pmarray.errors.GroupNotFoundError:
            seen = None
        with pmarray.open_group(url, mode="a") as group:
            group._session.recover()
            found = self.look(group)
        if seen is not None and seen != found:
            raise AssertionError(f"a reader saw {seen}, and recovery made it {found}")
        damage = [finding for finding in pmarray.verify(url) if finding.damaged]
        if damage:
            raise AssertionError(f"recovery left {damage}")
        self._place.check_closed(path, found)
        return found

    def objection(self, found: State, marks: Sequence[Mark]) -> str | None:
        """One of the states from the last that was promised to the last that was begun."""
        low, high = promised(marks)
        step = dict(found.attrs).get("step", 0)
        if not low <= step <= high:
            return f"state {step} is not one of {low} to {high}"
        if found != self.states[step]:
            return f"this is not state {step}, which is {self.states[step]}"
        return None


def promised(marks: Sequence[Mark]) -> tuple[int, int]:
    """Return the states between which a crash may leave the group."""
    low = high = 0
    for mark in marks:
        if mark.label == "begun":
            high = max(high, mark.value)
        elif mark.label == "committed":
            low = mark.value
            high = max(high, low)
        elif mark.label == "recovered":
            low = high = mark.value
    return low, high


class Transactions(GroupScenario):
    """A random workload; some of its transactions are rolled back first.

    Parameters
    ----------
    seed
        Of the workload.
    length
        How many transactions.
    pipelined
        Whether commits are waited for only now and then.
    cache
        Of the group; that of the place unless told. A small one makes transactions spill.
    place
        Where the group is.
    workload
        What is done: by default a `Workload`.
    """

    def __init__(
        self,
        seed: int,
        length: int = 6,
        *,
        pipelined: bool = False,
        cache: int | str | None = None,
        place: Place = MEMMAP,
        workload: type[Workload] = Workload,
    ) -> None:
        super().__init__(place)
        cache = place.cache if cache is None else cache
        self.name = (
            f"{workload.__name__} {seed} {'pipelined' if pipelined else 'durable'} cache={cache} "
            f"in {place}"
        )
        self._workload = workload(seed, length + 2, chunks=place.chunks)
        self.states = self._workload.states
        self._seed = seed
        self._length = length
        self._pipelined = pipelined
        self._cache = cache

    def _open(self, path: Path) -> pmarray.Group:
        return pmarray.open_group(self._place.url(path), cache=self._cache)

    def run(self, path: Path, recorder: Recorder) -> None:
        """Make a group and work in it."""
        with self._open(path) as group:
            self._work(group, recorder, 0, self._length)

    def resume(self, path: Path, recorder: Recorder) -> None:
        """Recover, and commit one more."""
        with self._open(path) as group:
            group._session.recover()
            step = group.attrs.get("step", 0)
            recorder.mark("recovered", step)
            self._work(group, recorder, step, min(step + 1, self._length + 2))

    def _work(self, group: pmarray.Group, recorder: Recorder, start: int, stop: int) -> None:
        rng = random.Random(f"{self._seed}/{start}")
        for i in range(start, stop):
            if rng.random() < 0.25:
                self._abandon(group, i)
            recorder.mark("begun", i + 1)
            with group.transaction(wait=not self._pipelined):
                self._workload.apply(i, group)
            if not self._pipelined:
                recorder.mark("committed", i + 1)
            elif rng.random() < 0.3:
                group.flush()
                recorder.mark("committed", i + 1)
        group.flush()
        recorder.mark("committed", stop)

    def _abandon(self, group: pmarray.Group, i: int) -> None:
        try:
            with group.transaction():
                self._workload.apply(i, group)
                raise KeyError("changed my mind")
        except KeyError:
            pass


class Replacing(Workload):
    """Arrays that make way for others of the same name, of other shapes, and of any dimension.

    Most of the time it is one name, so that all of it happens within one transaction, too.
    """

    def _choose(self, arrays: dict[str, Any], layouts: dict[str, str]) -> Operation:
        rng = self._random
        seed = rng.randrange(1 << 16)
        names = ("a", "b") if rng.random() < 0.3 else ("a",)
        free = [name for name in names if name not in arrays]
        if free and rng.random() < 0.6:
            ndim = rng.choice([0, 1, 2, 2, 3])
            shape = tuple(rng.randint(1, 3) for _ in range(ndim - 1))
            shape = (*shape, rng.choice([5, 150])) if ndim else ()  # chunks of 8 KiB at most
            dtype = parse_dtype(rng.choice(["int8", "float64"]))
            chunks = rng.choice([1, 2, "auto"])
            layout = rng.choice(["row", "col"])
            return Operation("create", rng.choice(free), (shape, dtype, layout, chunks), seed)
        if not arrays:
            return Operation("attr", "x", seed)
        name = "a" if names == ("a",) and "a" in arrays else rng.choice(sorted(arrays))
        if rng.random() < 0.5:
            return Operation("delete", name)
        part = tuple(slice(rng.randint(0, n), None) for n in arrays[name].shape)
        return Operation("write", name, part, seed)


class Forgets(Workload):
    """Columns that are given up and written again, as those of a ring are.

    The attribute "dead" says which hold anything whatever: they count as zeros.
    """

    _SHAPES: ClassVar = {"blocks": ((512, 4), "float64"), "shared": ((300, 6), "float32")}
    """Columns of whole blocks, and of less than one."""

    def __init__(self, seed: int, length: int, *, chunks: str | int | tuple[int, ...]) -> None:
        rng = random.Random(seed)
        arrays: dict[str, NDArray[Any]] = {}
        dead: dict[str, set[int]] = {name: set() for name in self._SHAPES}
        self.transactions = [
            [
                Operation("create", name, (shape, parse_dtype(dtype), "col", chunks))
                for name, (shape, dtype) in self._SHAPES.items()
            ]
        ]
        for i in range(length):
            if i:
                self.transactions.append(
                    [self._draw(rng, name, arrays[name].shape[1], dead[name])
                     for name in rng.choices(sorted(arrays), k=rng.randint(1, 3))]
                )  # fmt: skip
            for operation in self.transactions[i]:
                _forget_in_model(operation, arrays, dead)
            said = ";".join(f"{name}:{sorted(those)}" for name, those in sorted(dead.items()))
            self.transactions[i] += [
                Operation("attr", "dead", said), Operation("attr", "step", i + 1)
            ]  # fmt: skip
            attrs = {"step": i + 1, "dead": said}
            self.states = [*getattr(self, "states", [State.of_model({}, {})])]
            self.states.append(State.of_model(_without(arrays, dead), attrs))

    @staticmethod
    def _draw(rng: random.Random, name: str, columns: int, dead: set[int]) -> Operation:
        seed = rng.randrange(1 << 16)
        if not columns:
            return Operation("append", name, 3, seed)
        start = rng.randrange(columns)
        part = (slice(None), slice(start, rng.randint(start + 1, columns)))
        kind = rng.choices(["write", "forget", "append", "resize"], [5, 5, 1, 1])[0]
        if kind == "write":
            if dead and rng.random() < 0.7:
                start = rng.choice(sorted(dead))
                part = (slice(None), slice(start, start + 1))
            return Operation("write", name, part, seed)
        if kind == "forget":
            return Operation("forget", name, part)
        return Operation(kind, name, 1 if kind == "append" else max(1, columns - 1), seed)

    def apply(self, i: int, group: pmarray.Group) -> None:
        """Do transaction `i` to a group."""
        for operation in self.transactions[i]:
            if operation.kind == "forget":
                group[operation.name].forget(operation.argument)
            else:
                operation.on_group(group)


def _forget_in_model(
    operation: Operation, arrays: dict[str, NDArray[Any]], dead: dict[str, set[int]]
) -> None:
    name = operation.name
    if operation.kind in ("write", "forget"):
        these = set(range(*operation.argument[1].indices(arrays[name].shape[1])))
        dead[name] = dead[name] | these if operation.kind == "forget" else dead[name] - these
    if operation.kind != "forget":
        operation.on_model(arrays, dict.fromkeys((*arrays, name), "col"), {})
    dead[name] &= set(range(arrays[name].shape[1]))


def _without(arrays: dict[str, NDArray[Any]], dead: dict[str, set[int]]) -> dict[str, Any]:
    """Return arrays in which what was forgotten is zero."""
    result = {}
    for name, array in arrays.items():
        result[name] = array.copy(order="F")
        result[name][:, sorted(dead[name])] = 0
    return result


class Forgetting(Transactions):
    """Items are forgotten: anything may be there from that commit on, and nothing else before."""

    def __init__(self, seed: int, *, pipelined: bool = False, place: Place = MEMMAP) -> None:
        cache = "4 MiB" if pipelined else None
        super().__init__(seed, pipelined=pipelined, cache=cache, place=place, workload=Forgets)

    def _open(self, path: Path) -> pmarray.Group:
        # Pipelined, all that nobody waits for is merged.
        window = 10.0 if self._pipelined else 0.0
        return pmarray.open_group(self._place.url(path), cache=self._cache, commit_window=window)

    def look(self, group: pmarray.Group) -> State:
        """Leave out what the group says to be forgotten."""
        said = group.attrs.get("dead", "")
        dead = dict(one.split(":") for one in said.split(";") if one)
        arrays = {name: np.asfortranarray(group[name][...]) for name in group}
        gone = {name: set(json.loads(dead[name])) for name in arrays}
        return State.of_model(_without(arrays, gone), dict(group.attrs))


class InPlace(Workload):
    """Writes that lend, share, convert or skip, so that persistent memory is stored to in place."""

    def apply(self, i: int, group: pmarray.Group) -> None:
        """Do transaction `i` to a group; how, its seeds decide."""
        for operation in self.transactions[i]:
            if operation.kind == "write":
                _WAYS_TO_WRITE[operation.seed % len(_WAYS_TO_WRITE)](group, operation)
            else:
                operation.on_group(group)

    def _choose(self, arrays: dict[str, Any], layouts: dict[str, str]) -> Operation:
        operation = super()._choose(arrays, layouts)
        if operation.kind != "write":
            return operation
        rng = self._random
        part = tuple(
            slice(s.start, s.stop, rng.choice([1, 1, 1, 2, 3])) for s in operation.argument
        )
        return replace(operation, argument=part)


def _values(array: pmarray.PMArray, operation: Operation) -> Any:
    shape = np.empty(array.shape, np.bool_)[operation.argument].shape
    return filled(shape, array.dtype, operation.seed)


def _convert(group: pmarray.Group, operation: Operation) -> None:
    array = group[operation.name]
    values = _values(array, operation)
    array[operation.argument] = values.astype(np.result_type(values.dtype, np.float64))


def _lend(group: pmarray.Group, operation: Operation) -> None:
    """Fill the memory itself, line by line; the last loan as a list of items that is too long."""
    array = group[operation.name]
    values = _values(array, operation)
    axis = 0 if array.layout == "row" else array.ndim - 1
    part = operation.argument
    for at, line in enumerate(range(*part[axis].indices(array.shape[axis]))):
        index = tuple(line if i == axis else one for i, one in enumerate(part))
        new = values.take(at, axis)
        if all(one.step == 1 for i, one in enumerate(part) if i != axis) and new.size:
            with array.writing(index) as out:
                out[...] = new
        else:
            array[index] = new


def _share(group: pmarray.Group, operation: Operation) -> None:
    array = group[operation.name]
    values = _values(array, operation)
    if array.size:
        shared = np.from_dlpack(array)
        if shared.flags.writeable:
            shared[operation.argument] = values
            return
    array[operation.argument] = values


_WAYS_TO_WRITE: tuple[Callable[[pmarray.Group, Operation], None], ...] = (
    _convert,
    _lend,
    _lend,
    _share,
    lambda group, operation: operation.on_group(group),
)


class Flushes(GroupScenario):
    """Part 1's promise, without transactions: what was flushed before the last flush is there.

    Operations come in batches, each on items that no earlier batch has written, and a flush after
    each. Between two flushes nothing is promised of the items that a batch touches; those of the
    batches before must be whole, and shapes and attributes those of one flush or the next.
    """

    _ROWS = 300

    def __init__(
        self,
        seed: int,
        batches: int = 5,
        cache: int | str | None = None,
        *,
        place: Place = MEMMAP,
    ) -> None:
        super().__init__(place)
        cache = place.cache if cache is None else cache
        self.name = f"flushes {seed} cache={cache} in {place}"
        # Noise in a sector destroys its neighbours, of which nothing is promised without a journal.
        self.garbage = False
        self._batches = batches
        self._cache = cache
        self._dtype = np.dtype(random.Random(seed).choice(["float32", "float64", "int8"]))

    def _values(self, i: int) -> Any:
        return np.full(self._ROWS, i + 1, self._dtype)

    def run(self, path: Path, recorder: Recorder) -> None:
        """Grow one array, fill another in place, replace a third."""
        with pmarray.open_group(self._place.url(path), cache=self._cache) as group:
            for i in range(self._batches):
                recorder.mark("begun", i + 1)
                if i == 0:
                    self._create(group, "grows", (self._ROWS, 0), layout="col")
                    self._create(group, "filled", (self._batches, self._ROWS))
                group["grows"].append(self._values(i)[:, None])
                group["filled"][i] = self._values(i)
                if f"made{i - 1}" in group:
                    del group[f"made{i - 1}"]
                group.create(f"made{i}", (3,), "int8")[:] = i + 1
                group.attrs["step"] = i + 1
                group.flush()
                recorder.mark("committed", i + 1)

    def _create(self, group: pmarray.Group, name: str, shape: Any, **options: Any) -> None:
        group.create(name, shape, self._dtype, chunks=self._place.chunks, **options)

    def reopen(self, path: Path) -> Any:
        """Return the step, and what is wrong with what belongs to it."""
        with pmarray.open_group(self._place.url(path), mode="a") as group:
            group._session.recover()
            step = int(group.attrs.get("step", 0))
            faults = tuple(self._faults_of(group, step)) if step else ()
            found = State.of_group(group)
        self._place.check_closed(path, found)
        return step, faults

    def _faults_of(self, group: pmarray.Group, step: int) -> Iterator[str]:
        for name in ("grows", "filled"):
            if name not in group:
                yield f"{name} is missing"
                return
        grows, filled = group["grows"], group["filled"]
        # A batch that failed half-way may have got its shapes to the disk and not its step.
        if grows.shape not in ((self._ROWS, step), (self._ROWS, step + 1)):
            yield f"grows has shape {grows.shape}"
            return
        for i in range(step):
            if not np.array_equal(grows[:, i], self._values(i)):
                yield f"grows[:, {i}]"
            if not np.array_equal(filled[i], self._values(i)):
                yield f"filled[{i}]"
        last, after = f"made{step - 1}", f"made{step}"
        yield from (name for name in group if name not in ("grows", "filled", last, after))
        if last in group:
            if not np.array_equal(group[last][...], [step] * 3):
                yield last
        elif after not in group and grows.shape[1] == step:
            yield f"{last} is missing"

    def resume(self, path: Path, recorder: Recorder) -> None:
        """Recover."""
        recorder.mark("recovered", self.reopen(path)[0])

    def objection(self, found: Any, marks: Sequence[Mark]) -> str | None:
        """The items of every flush up to the step that the attributes name are there."""
        step, wrong = found
        low, high = promised(marks)
        if not low <= step <= high:
            return f"step {step} is not one of {low} to {high}"
        return f"at step {step}: {', '.join(wrong)}" if wrong else None


class Interrupted(GroupScenario):
    """A large overwrite, and flushed writes in between: old journal records must not come back.

    The before-images take several records. A crash can leave the later ones without the first;
    then work goes on, records are written where those lie, and the power fails again.
    """

    garbage = False

    def __init__(self, place: Place = MEMMAP, items: int = 3 << 18) -> None:
        super().__init__(place)
        self.name = f"interrupted in {place}"
        self._items = items  # 1.5 MiB of int16, more than one record

    def prepare(self, path: Path) -> None:
        """Make an array that is all ones, and a journal."""
        super().prepare(path)
        with pmarray.open_group(self._place.url(path)) as group:
            group.create("x", (self._items,), "int16", chunks=self._place.chunks)[:] = 1
            with group.transaction():
                group.attrs["committed"] = 0

    def run(self, path: Path, recorder: Recorder) -> None:
        """Overwrite all of it in one transaction."""
        with pmarray.open_group(self._place.url(path), mode="r+") as group:
            recorder.mark("begun", 2)
            with group.transaction():
                group["x"][:] = 2
            recorder.mark("committed", 2)

    def resume(self, path: Path, recorder: Recorder) -> None:
        """Overwrite it without a transaction, flush, and then in one transaction."""
        with pmarray.open_group(self._place.url(path), mode="r+") as group:
            group._session.recover()
            recorder.mark("recovered", int(group["x"][0]))
            recorder.mark("loose")
            group["x"][:] = 3
            group.flush()
            recorder.mark("recovered", 3)
            recorder.mark("begun", 4)
            with group.transaction():
                group["x"][:] = 4
            recorder.mark("committed", 4)

    def reopen(self, path: Path) -> Any:
        """Return all values that are in it."""
        with pmarray.open_group(self._place.url(path), mode="r+") as group:
            group._session.recover()
            values = np.unique(group["x"][:])
            found = State.of_group(group)
        self._place.check_closed(path, found)
        return tuple(int(value) for value in values)

    def objection(self, found: Any, marks: Sequence[Mark]) -> str | None:
        """All of one state, but for the time between a loose write and its flush."""
        if not marks:
            return None if found == (1,) else "not the state before"
        if marks[-1].label == "loose":
            return None
        allowed = {1}
        for mark in marks:
            if mark.label == "begun":
                allowed.add(mark.value)
            elif mark.label in ("committed", "recovered"):
                allowed = {mark.value}
        if len(found) == 1 and found[0] in allowed:
            return None
        return f"not all of one of {sorted(allowed)}"


def _transactions_and_flushes(place: Place) -> dict[str, Callable[[int], Scenario]]:
    # Chunk stores forget nothing, and zarr-python shows what the scenario takes for hidden.
    forgetting: dict[str, Callable[[int], Scenario]] = {
        "forgetting": lambda seed: Forgetting(seed, place=place),
        "forgetting-pipelined": lambda seed: Forgetting(seed, pipelined=True, place=place),
    }
    return {
        "durable": lambda seed: Transactions(seed, place=place),
        "pipelined": lambda seed: Transactions(seed, pipelined=True, place=place),
        "cached": lambda seed: Transactions(seed, cache="4 MiB", place=place),
        "uncached": lambda seed: Transactions(seed, cache=0, place=place),
        "replacing": lambda seed: Transactions(seed, place=place, workload=Replacing),
        **({} if place.scheme == "zarr" else forgetting),
        "flushes": lambda seed: Flushes(seed, place=place),
    }


def _on_persistent_memory(place: Place) -> dict[str, Callable[[int], Scenario]]:
    return {
        **_transactions_and_flushes(place),
        "spilled": lambda seed: Transactions(seed, cache=_SMALL_CACHE_BYTES, place=place),
        "flushes-cached": lambda seed: Flushes(seed, cache=_SMALL_CACHE_BYTES, place=place),
        "in-place": lambda seed: Transactions(seed, place=place, workload=InPlace),
        "in-place-pipelined": lambda seed: Transactions(
            seed, pipelined=True, place=place, workload=InPlace
        ),
        "interrupted": lambda _: Interrupted(place),
    }


class Growing(Transactions):
    """A journal that is too short for most transactions, and is shortened whenever it can be."""

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """Where a journal begins with ten blocks, two of them for records, and grows by a few.

        Old bytes are read, and written to it, on threads, as where there are many.
        """
        sizes = (
            (journal, "_INITIAL_BYTES", 40 << 10),
            (journal, "_INITIAL_REACH", 16 << 10),
            (region, "_GROW_MIN_BYTES", 20 << 10),
            (committer, "_MAX_IDLE_JOURNAL_BYTES", 40 << 10),
            (committer, "_MAX_BUSY_JOURNAL_BYTES", 40 << 10),
            (oldbytes, "_MIN_BYTES", 1),
            (oldbytes, "MAX_PAYLOAD_BYTES", 8 << 10),
            (journal, "MAX_PAYLOAD_BYTES", 8 << 10),
            (journal, "_WRITE_BYTES", 4 << 10),
        )
        saved = [(module, name, getattr(module, name)) for module, name, _ in sizes]
        for module, name, nbytes in sizes:
            setattr(module, name, nbytes)
        try:
            with super().surroundings():
                yield
        finally:
            for module, name, nbytes in saved:
                setattr(module, name, nbytes)


class Formatting(Transactions):
    """The same on a device that is empty; formatting it may be interrupted."""

    def reopen(self, path: Path) -> Any:
        """Do what the message says, if there is one: nothing can have been there but state 0."""
        try:
            return super().reopen(path)
        except (pmarray.errors.ForeignDataError, pmarray.errors.DamagedError) as error:
            if "`pmarray format" not in str(error):
                raise
        pmarray.open_group(self._place.url(path), mode="w").close()
        return super().reopen(path)

    def resume(self, path: Path, recorder: Recorder) -> None:
        """Recover, or format once more, and commit one more."""
        self.reopen(path)
        super().resume(path, recorder)


SCENARIOS: dict[str, Callable[[int], Scenario]] = {
    **_transactions_and_flushes(MEMMAP),
    "interrupted": lambda _: Interrupted(),
    "growing": lambda seed: Growing(seed),
    "device-growing": lambda seed: Growing(seed, place=DEVICE),
    "columns-interrupted": lambda _: Interrupted(COLUMNS, 3),
    **{f"columns-{name}": make for name, make in _transactions_and_flushes(COLUMNS).items()},
    **{f"blocks-{name}": make for name, make in _transactions_and_flushes(BLOCKS).items()},
    **{f"shelf-{name}": make for name, make in _on_persistent_memory(SHELF).items()},
    **{f"device-{name}": make for name, make in _on_persistent_memory(DEVICE).items()},
    "device-formatting": lambda seed: Formatting(seed, 2, place=EMPTY_DEVICE),
}
"""By name; each is made from a seed. Without a prefix they are about ``memmap:``."""
