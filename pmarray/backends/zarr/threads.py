"""Lets zarr-python work until the process has ended.

It runs its coroutines on an event loop of its own, and blocking calls on a thread pool of that
loop. Python stops such a pool before other threads have ended, and zarr-python stops the loop by
`atexit`, which may be before our turn. So the loop gets a pool that goes on, and is stopped by us.
"""

from __future__ import annotations

import atexit
import os
from typing import Any

from zarr.core import sync as zarr_sync
from zarr.core.config import config as zarr_config

from pmarray._system import lifetime
from pmarray._system.threads import DaemonPool

__all__ = ["keep_working"]

_attached: list[Any] = [None]
"""The loop that has our pool; a forked process makes a new one."""


def keep_working() -> None:
    """See to it that groups in chunk stores can be written until they are closed at exit."""
    try:
        loop = zarr_sync._get_loop()
        if loop is _attached[0]:
            return
        count = zarr_config.get("threading.max_workers", None) or min(32, (os.cpu_count() or 1) + 4)
        pool = DaemonPool(count, "pmarray-zarr")
        loop.set_default_executor(pool)
        zarr_sync._executor = pool  # or it would make one of its own
        atexit.unregister(zarr_sync.cleanup_resources)
        lifetime.call_after_closing(zarr_sync.cleanup_resources)
        _attached[0] = loop
    except AttributeError:
        # A zarr-python that has none of this: a group is closed while its threads still work.
        lifetime.close_before_threads_end()
