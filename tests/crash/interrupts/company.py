"""Other threads that use the group while an exception arrives in this one."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

from pmarray.errors import PMArrayError
from tests.crash.interrupts.patience import patience
from tests.crash.interrupts.scenarios import Scenario, Stage

__all__ = ["Company"]

_ENDING_SECONDS = 5.0


class Company:
    """Does what accompanies a scenario as fast as it can, from `begin` to `end`.

    Parameters
    ----------
    scenario, stage
        What is interrupted meanwhile.
    """

    def __init__(self, scenario: Scenario, stage: Stage) -> None:
        self.errors: list[str] = []
        """What was raised, and should not have been."""
        self._scenario = scenario
        # Of its own: the scenario may close the group.
        self._stage = replace(stage)
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name="company", daemon=True)
            for _ in range(scenario.company)
        ]

    def begin(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def end(self) -> bool:
        """End; return whether it could."""
        self._ending.set()
        for thread in self._threads:
            thread.join(patience(_ENDING_SECONDS))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                self._scenario.accompany(self._stage)
            except PMArrayError:
                pass  # deleted, closed or interrupted meanwhile
            except Exception as error:
                self.errors.append(f"another thread: {type(error).__name__}: {error}")
                return
            # What is at hand is read without a lock: others would get their turn too late.
            time.sleep(0)
