"""What becomes durable, and when: flush, transactions, and the ways back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pmarray._array.transaction import Transaction
from pmarray._cache.source import Commit, CommittedStorage
from pmarray._formats.metadata import GroupMetadata
from pmarray._group.catalog import Catalog
from pmarray._group.session import Session
from pmarray._group.transaction import OpenTransaction
from pmarray.errors import PoisonedError, TransactionError, WriteBehindError

__all__ = ["Commits"]


class Commits:
    """The one writer of a group's metadata, and of its transactions.

    Parameters
    ----------
    session, catalog
        The group's; what is there is opened, for reading.
    """

    def __init__(self, session: Session, catalog: Catalog) -> None:
        self.session = session
        self._catalog = catalog
        self.exists = session.open(self)
        """Whether an opener would find a group."""
        self._published: dict[str, int] | None = None

    # -- flush ----------------------------------------------------------------------------------

    def flush_in_turn(self) -> None:
        """Return when everything written so far is durable; see `Group.flush`."""
        session = self.session
        with session.turn():
            session.admit()
            self.refuse_transaction("flush")
            if session.is_writer:
                session.do(self.flush)

    def flush(self) -> None:
        """Make everything durable, on the writer."""
        # Data before the metadata that count on them, metadata before the files they gave up;
        # unless all of it appears in one step.
        session, catalog = self.session, self._catalog
        session.committer.refuse_lost_lock()
        session.cache.flush()
        if session.kind.commits_itself:
            catalog.remove_deleted()
        session.changed = True  # whatever fails from here on: no transaction begins before a flush
        try:
            self._save()
        except PoisonedError as error:
            session.cache.health.poison = error
            raise
        session.changed = False
        catalog.remove_deleted()
        self._publish()
        self._follow_merge()

    def _save(self) -> None:
        session = self.session
        self._catalog.note_dead()
        metadata = self._catalog.metadata
        for array in self._catalog.arrays.values():
            array._storage.make_durable(array.ndim)
        committer = session.committer
        unsaved = committer.must_checkpoint(metadata) or session.kind.has_changes()
        if unsaved or not self.exists:
            committer.checkpoint(metadata)
            self.exists = True

    def _publish(self) -> None:
        names = {name: array.file_id for name, array in self._catalog.metadata.arrays.items()}
        if names != self._published:
            self.session.kind.publish(names)
            self._published = names

    def _follow_merge(self) -> None:
        merged = self.session.kind.merged()
        if merged is not None:
            self.session.committer.saved = merged
            self.session.follow(merged)

    # -- what the session asks ------------------------------------------------------------------

    def flush_for_good(self) -> None:
        """Flush, with no later chance: an old failure is raised after what can be written is."""
        failure: WriteBehindError | None = None
        try:
            self.flush()
        except WriteBehindError as error:
            failure = error
            self.flush()
            failure.add_note("Closing tried again and wrote everything: nothing was lost.")
        for array in self._catalog.arrays.values():
            array._storage.trim()
        if self.session.kind.can.settles is not None:
            self.session.committer.save_number()
        self.session.kind.settle()
        if failure is not None:
            raise failure

    def adopt(self, metadata: GroupMetadata) -> None:
        """Move on to what is there now."""
        self.exists = True
        self._catalog.adopt(metadata)

    def begin_anew(self) -> None:
        """Forget what belongs to the process that this one was forked from."""
        self._published = None
        self._catalog.begin_anew()

    def releases(self) -> Iterator[Callable[[], object]]:
        """Yield what gives up the handles of each array."""
        for array in self._catalog.arrays.values():
            yield array._storage.close

    # -- transactions ---------------------------------------------------------------------------

    def begin(self, handle: Transaction) -> None:
        """Begin the transaction of a block."""
        session = self.session
        self._refuse_to_begin()
        for array in self._catalog.arrays.values():
            array._refuse_loans("begin a transaction")
        session.begin_writing()
        if session.changed:
            self.flush()
        if session.kind.has_journal:
            try:
                session.cache.transaction = session.committer.begin()
            except PoisonedError as error:
                session.cache.health.poison = error
                raise
        remove = session.backend.remove
        session.begun(OpenTransaction(self._catalog, handle, session.transaction_died, remove))

    def _refuse_to_begin(self) -> None:
        session = self.session
        if session.transaction is not None:
            raise TransactionError(
                f"a transaction of {session.url} is open already, in the thread "
                f"{session.transaction.owner.name!r}; they do not nest. If an interrupt has left "
                "it open, call rollback() on the group"
            )
        if not session.kind.can_create:
            raise TransactionError(
                f"{session.url} is one array, and has no journal: open the group that it is in, or "
                "copy it into one, to have transactions"
            )
        if not session.kind.can_commit:
            raise TransactionError(
                f"{session.url} is in a store that cannot change several objects in one step: use "
                "icechunk: there, or zarr: in a local directory"
            )

    def commit(self, handle: Transaction, *, wait: bool) -> None:
        """Commit the transaction of a block, whose handle this is."""
        session = self.session
        transaction = session.transaction
        if transaction is None or not transaction.is_of(handle):
            raise TransactionError(f"this transaction of {session.url} has ended already")
        try:
            self._seal(wait=wait)
        except PoisonedError as error:
            session.cache.health.poison = error
            session.ended()
            raise
        except BaseException:
            self.roll_back()
            raise
        session.ended()
        transaction.release()

    def _seal(self, *, wait: bool) -> None:
        session, catalog = self.session, self._catalog
        number = session.cache.transaction
        for array in catalog.arrays.values():
            array._refuse_loans("commit")
        marks: dict[CommittedStorage, int] = {}
        for array in catalog.arrays.values():
            marks |= array._storage.seal()
        forgets = catalog.note_dead()
        if number is not None:
            commit = Commit(
                number,
                catalog.metadata,
                marks,
                list(catalog.removed),
                waited_for=wait,
                forgets=forgets,
            )
            session.cache.seal(commit)
            catalog.removed.clear()
            if wait:
                commit.wait()
                if commit.error is not None:
                    raise commit.error
        elif session.kind.commits_itself:
            self.flush()  # and the backend commits

    def admit_rollback(self, handle: Transaction) -> bool:
        """Whether the transaction is still there to be rolled back; called with the lock."""
        self.session.await_pending()
        # Closing has rolled it back, or a poisoned group has nothing to go back to.
        transaction = self.session.transaction
        if not self.session.holds_resources or transaction is None:
            return False
        return transaction.is_of(handle)

    def roll_back(self) -> None:
        """Take back the transaction that is open."""
        session, transaction = self.session, self.session.transaction
        session.changes += 1
        session.ended()
        assert transaction is not None
        try:
            session.cache.forget()
            if session.cache.health.poison is not None:
                return  # a predecessor failed: what is there is for recovery to sort out
            session.kind.forget_unsaved()
            targets = session.kind.targets(transaction.storages())
            session.committer.roll_back(targets.get)
            transaction.restore()
        except BaseException as error:
            code = error.errno if isinstance(error, OSError) else None
            poison = session.cache.health.poison = PoisonedError(
                code, f"rolling back failed ({error}): close the group and open it again"
            )
            raise poison from error

    def roll_back_in_turn(self) -> None:
        """Take back the transaction that an interrupt has left open; see `Group.rollback`."""
        session = self.session
        with session.turn():
            session.admit()
            if session.transaction is not None:
                session.do(self.roll_back)

    def refuse_transaction(self, what: str) -> None:
        """Refuse what cannot be done inside of one."""
        if self.session.transaction is not None:
            raise TransactionError(
                f"cannot {what} inside a transaction: end it first. If an interrupt has left it "
                "open, call rollback() on the group"
            )

    # -- giving changes up ----------------------------------------------------------------------

    def discard_in_turn(self) -> None:
        """Give up what was written since the last commit; see `Group.discard`."""
        session = self.session
        with session.turn():
            session.admit()
            self.refuse_transaction("discard")
            if not session.kind.commits_itself:
                raise TransactionError(f"what was written to {session.url} cannot be taken back")
            session.do(self._discard)

    def _discard(self) -> None:
        session = self.session
        session.cache.forget()
        self._catalog.removed.clear()
        session.changed = False
        if session.is_writer:
            session.kind.forget_unsaved()
        loaded = session.backend.load()
        if loaded is not None:
            session.committer.saved = loaded
            session.follow(loaded)
