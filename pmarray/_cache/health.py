"""What has gone wrong behind the caller's back, until somebody is told."""

from __future__ import annotations

from pmarray.errors import PoisonedError, WriteBehindError

__all__ = ["Health"]


class Health:
    """The failures of a cache's writer; changed and read under the cache's lock."""

    def __init__(self) -> None:
        self.poison: PoisonedError | None = None
        """Why the group can only be closed, if so; set by whoever finds out."""
        self.unreported: BaseException | None = None
        """A failure that nobody has been told of."""

    @property
    def is_well(self) -> bool:
        """Whether there is nothing that anybody should be told."""
        return self.poison is None and self.unreported is None

    def raise_failure(self) -> None:
        """Raise what went wrong since the last call; what is poisoned raises at every call."""
        if self.poison is not None:
            self.unreported = None
            raise self.poison
        failure, self.unreported = self.unreported, None
        if failure is None:
            return
        if isinstance(failure, OSError):
            raise WriteBehindError(
                failure.errno,
                f"writing behind failed: {failure.strerror}; the data are still in memory: "
                "free space or repair the medium, then flush again",
                failure.filename,
            ) from failure
        raise failure

    def poison_by(self, failure: BaseException, what: str) -> None:
        """Note that after this failure memory and medium may differ."""
        code = failure.errno if isinstance(failure, OSError) else None
        self.poison = PoisonedError(
            code, f"{what}; close the group and open it again, as of the last commit"
        )
        self.poison.__cause__ = failure
