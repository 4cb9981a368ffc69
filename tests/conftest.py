"""Hypothesis profiles, and directories on a file system that is a real one."""

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from pmarray import config
from tests import machine, sampling

# Examples write real files, and a busy disk is no failure: time limits are off.
settings.register_profile(
    "default",
    max_examples=sampling.AT_EACH_COMMIT,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, print_blob=True)
settings.register_profile(
    "property",
    settings.get_profile("default"),
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "500")),
    print_blob=True,
)
settings.register_profile(
    "nightly", settings.get_profile("default"), max_examples=2000, print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

_REPOSITORY = Path(__file__).parent.parent
_LIMITS = config.work_memory, config.max_result


def _takes_direct_io(directory: Path) -> bool:
    """Whether files there open with O_DIRECT, which tmpfs and some overlays refuse."""
    if not hasattr(os, "O_DIRECT") or machine.taken("direct"):
        return False
    probe = directory / "probe"
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_WRONLY | os.O_DIRECT, 0o600))
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what asks for a directory with direct I/O, or for one where readers count."""
    for item in items:
        for fixture, thing in (("scratch", "direct"), ("counting", "counter")):
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.uses(thing))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Give each test the limits that users begin with: they are of the whole process."""
    yield
    limits = config.work_memory, config.max_result
    config.work_memory, config.max_result = _LIMITS
    assert limits == _LIMITS, f"{item.nodeid} leaves other limits: {limits}"


@pytest.fixture
def counting(tmp_path: Path) -> None:
    """Skip the test where readers of a group in ``tmp_path`` do not go by its counter."""
    if not machine.has_counter(tmp_path):
        pytest.skip("readers ask this file system: it is none that is known to show a counter")


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """An empty directory on a file system with direct I/O; removed after the test.

    ``tmp_path`` may be in memory, where direct writes are refused and nothing is durable.
    """
    if _takes_direct_io(tmp_path):
        yield tmp_path
        return
    for parent in (Path("/var/tmp"), _REPOSITORY):
        directory = Path(tempfile.mkdtemp(prefix=".scratch-", dir=parent))
        try:
            if _takes_direct_io(directory):
                yield directory
                return
        finally:
            shutil.rmtree(directory)
    pytest.skip("neither the temporary directory, /var/tmp nor the checkout takes O_DIRECT")
