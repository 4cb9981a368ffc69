"""Whether a barrier is missed by the scenarios in which it comes up, when it is left out."""

from __future__ import annotations

from collections.abc import Iterable

from tests.crash.check import Campaign, scratch
from tests.crash.choices import forget_pages
from tests.crash.mutation import barrier_sites, without_barrier
from tests.crash.recorder import Recorder
from tests.crash.scenarios import SCENARIOS

__all__ = ["is_missed", "is_site", "sites_of"]


def sites_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the barriers, and the scenarios in which each of them comes up."""
    sites: dict[str, list[str]] = {}
    for name in names:
        scenario = SCENARIOS[name](1)
        with scratch() as path, scenario.surroundings():
            scenario.prepare(path)
            with barrier_sites() as found, Recorder(path) as recorder:
                scenario.run(path, recorder)
        for site in found:
            sites.setdefault(site, []).append(name)
    return sites


def is_missed(site: str, where: Iterable[str], *, again: float, limit: int) -> bool:
    """Whether some cut shows that the barrier of a site is missing."""
    for name in where:
        with without_barrier(site):
            report = Campaign(
                SCENARIOS[name](1),
                seed=1,
                limit=limit,
                samples=limit // 2,
                again=again,
                patience=1,
            ).run()
        forget_pages()
        if report.violations:
            return True
    return False


def is_site(site: str, unseen: str) -> bool:
    """Whether a site is one of `UNSEEN`, wherever its line is now."""
    call, module, function = unseen.split()
    return site.startswith(call) and site.endswith(f" {function}") and module in site
