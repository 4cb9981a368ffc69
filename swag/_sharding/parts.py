"""Making, and going on with, the part of a posterior that this process collects."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

import pmarray
from pmarray.errors import ForeignDataError, GroupNotFoundError
from swag._held import held_box, locals_of, placement_of
from swag._iterates import Iterates
from swag._joining import Joining
from swag._location import Location, Mode, holds_posterior
from swag._parameters import ParameterTable
from swag._records import Configuration
from swag._sharding.agreement import Agreement
from swag._sharding.joined import JoinedIterates
from swag._sharding.layout import Layout
from swag._sharding.manifest import PART, Manifest, Place, part_place, read_manifest, write_manifest
from swag._store import Store
from swag.errors import ModelError, StoreError, StoreExistsError

__all__ = ["Part", "open_iterates", "open_part"]


@dataclass(frozen=True)
class Part:
    """The part of this process, open for collecting."""

    store: Store
    """Of what it holds."""
    layout: Layout
    """Of all parts."""
    agreement: Agreement
    """With the other processes."""

    def held(self, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """Of the parameters, in the order of the table, what this process collects."""
        return locals_of(parameters, self.layout.boxes[self.agreement.rank])


@dataclass(frozen=True, slots=True)
class _There:
    """A posterior that was found."""

    manifest: Manifest
    configuration: Configuration
    collected: int


def open_iterates(location: Location) -> Iterates:
    """Open the posterior at a location to read it, whether it is in one store or in parts.

    Raises
    ------
    StoreError
        There is none, or it is damaged.
    pmarray.errors.GroupNotFoundError
        There is no group.
    """
    try:
        return Store.open(location)
    except (GroupNotFoundError, ForeignDataError):  # a directory that holds only other groups
        manifest = None if isinstance(location, pmarray.Group) else read_manifest(location)
        if manifest is None or isinstance(location, pmarray.Group):
            raise
    return JoinedIterates.open(location, manifest)


def open_part(
    location: Location,
    configuration: Configuration,
    parameters: Sequence[nn.Parameter],
    mode: Mode,
    differences_of: Callable[[ParameterTable], list[str]],
) -> Part:
    """Make the parts of a posterior, or open those there; every process calls it, with the same.

    Parameters
    ----------
    configuration
        Of the whole.
    parameters
        In the order of its table.
    differences_of
        As for `Store.create`.

    Raises
    ------
    StoreError
        The location cannot have parts, or it failed on another process, or as for `Store.create`.
    StoreExistsError
        As for `Store.create`.
    ModelError
        The processes have different parameters, or do not hold all of one.
    """
    agreement = Agreement()
    try:
        place = agreement.together(lambda: _refuse_unshared(location, agreement.size))
        layout, placements = _lay_out(agreement, configuration.table, parameters)
        there = agreement.first(lambda: _look(place))
        if there is not None and mode != "w":
            if mode == "w-" and there.collected:
                raise StoreExistsError(
                    f"{place} holds a posterior of {there.collected} iterates already: give"
                    ' mode="a" to go on with it, or mode="w" to replace it'
                )
            differences = differences_of(there.manifest.layout.table)
            differences += configuration.differences(there.configuration)
            if not differences and there.manifest.layout != layout:
                differences.append(
                    f"it is laid out over {len(there.manifest.layout.boxes)} processes in another "
                    f"way than over these {agreement.size} (it can be read on any number)"
                )
            if not differences:
                return _go_on(place, there, agreement)
            if there.collected:
                raise StoreError(
                    f"{place} holds a posterior of another kind: {'; '.join(differences)}"
                )
        return _make(place, configuration, layout, placements, there is not None, agreement)
    except BaseException:
        agreement.close()
        raise


def _refuse_unshared(location: Location, processes: int) -> Place:
    """Raise unless each process can have a group of its own at the location."""
    if isinstance(location, pmarray.Group):
        raise StoreError(
            f"{location.url} is one group, and each process of a sharded model collects into a "
            "group of its own: give store= the URL of a place for all of them"
        )
    if isinstance(location, str) and location.startswith("dram:") and processes > 1:
        raise StoreError(
            f"{location} is memory of one process, and the model is spread over {processes}: "
            "give a place in files"
        )
    return location


def _lay_out(
    agreement: Agreement, table: ParameterTable, parameters: Sequence[nn.Parameter]
) -> tuple[Layout, tuple[str, ...]]:
    boxes = agreement.together(
        lambda: tuple(
            held_box(entry.name, parameter, agreement.rank)
            for entry, parameter in zip(table.entries, parameters, strict=True)
        )
    )
    tables, all_boxes = zip(*agreement.gather((table, boxes)), strict=True)
    for rank, other in enumerate(tables):
        if other != tables[0]:
            raise ModelError(
                f"process {rank} trains other parameters than the first one: the stages of a "
                "pipeline are collected one by one, into a store of each"
            )
    layout = Layout(table, all_boxes)
    if faults := layout.faults():
        raise ModelError(f"the processes do not hold the model once: {'; '.join(faults[:5])}")
    return layout, agreement.gather(tuple(map(placement_of, parameters)))[0]


def _look(place: Place) -> _There | None:
    if holds_posterior(place):
        raise StoreError(
            f"{place} holds the posterior of a model that was in one process: name another place"
        )
    manifest = read_manifest(place)
    if manifest is None:
        return None
    there = JoinedIterates.open(place, manifest)
    try:
        return _There(manifest, there.configuration, there.progress().collected)
    finally:
        there.close()


def _go_on(place: Place, there: _There, agreement: Agreement) -> Part:
    """Open this process's part; all have the same iterates on return, durably."""
    layout, rank = there.manifest.layout, agreement.rank
    configuration = there.configuration.of_part(layout.part_table(rank))
    store = agreement.together(lambda: Store.open_part(part_place(place, rank), configuration))
    try:
        count = agreement.least(store.progress().collected)

        def cut() -> None:
            if store.progress().collected > count:
                store.rewind(count, Joining(store.group))
            store.group.flush()

        agreement.together(cut)
        return Part(store, layout, agreement)
    except BaseException:
        store.close()
        raise


def _make(
    place: Place,
    configuration: Configuration,
    layout: Layout,
    placements: tuple[str, ...],
    replaces: bool,
    agreement: Agreement,
) -> Part:
    """Make this process's part; the posterior is announced on return."""
    rank = agreement.rank
    run = agreement.first(lambda: uuid.uuid4().hex)
    if replaces:
        agreement.first(lambda: write_manifest(place, None))
    own = configuration.of_part(layout.part_table(rank))
    mark = {PART: [run, rank]}
    store = agreement.together(lambda: Store.make_part(part_place(place, rank), own, mark))
    try:
        manifest = Manifest(run, layout, placements)
        agreement.first(lambda: write_manifest(place, manifest))
        return Part(store, layout, agreement)
    except BaseException:
        store.close()
        raise
