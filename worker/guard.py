"""What a handler may not do with its session, and the sentence that it gets."""

import asyncio
from collections.abc import Sequence
from typing import Any, NoReturn, Self

from sqlalchemy import Engine, event
from sqlalchemy.engine.interfaces import DBAPICursor, ExecutionContext
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.pool import ConnectionPoolEntry

from worker.errors import SessionMisuse, TransactionEnded
from worker.statements import Effect, effect_of

ROLLBACK = "ROLLBACK;"
"""As asyncpg writes it."""
GUARD = "ratchet_guard"
"""Where an attempt's Guard is found: in the info of its session, and of its connection's place in the pool."""


class Guard:
    """Of one attempt. Remembers a misuse, which a handler may have swallowed: what it asked for did not happen."""

    rolled_back = False
    """Whether the transaction that the attempt began is gone."""
    leaves_behind = False
    """Whether its connection has something of it that the next attempt must not find."""
    misuse: SessionMisuse | TransactionEnded | None = None
    is_watching = False
    """Whether the handler runs. Whoever sets it has to raise the misuse at the end."""

    def __init__(self, owner: asyncio.Task[Any] | None = None) -> None:
        """`owner` is the task that may use the session; None: the calling one. Raises RuntimeError outside of one."""
        task = owner or asyncio.current_task()
        if task is None:
            raise RuntimeError("An attempt was begun outside a task; run it in one.")
        self.owner: asyncio.Task[Any] = task

    def refuse_other_tasks(self) -> None:
        """Raises SessionMisuse in any task but the owner."""
        try:
            task = asyncio.current_task()
        except RuntimeError:  # a thread, without a loop
            task = None
        if task is not self.owner:
            self.refuse(
                "A handler used its session from a second task or thread (gather, create_task, wait_for, to_thread), "
                "but one transaction runs one statement a time: await them one after another, or enqueue a job each."
            )

    def refuse(self, sentence: str) -> NoReturn:
        """Raises SessionMisuse."""
        self.misuse = SessionMisuse(sentence)
        raise self.misuse

    def sees(self, statement: str, parameters: Sequence[object] = ()) -> None:
        """Raises TransactionEnded where it ends the transaction while the handler runs.

        The run may be marked done already, and the handler's work isn't. A rollback on the connection is remembered
        only: a session does that by itself where a flush has failed.
        """
        if not self.is_watching:
            return
        effect = effect_of(statement)
        if effect is Effect.LEAVES or (effect is Effect.SETS and any(value is False for value in parameters)):
            self.leaves_behind = True
        elif effect is Effect.ENDS and statement == ROLLBACK:
            self.rolled_back = True
        elif effect is Effect.ENDS:
            self.misuse = TransactionEnded()
            raise self.misuse

    def __enter__(self) -> Self:
        self.is_watching = True
        return self

    def __exit__(self, *_raised: object) -> None:
        """Raises the misuse that happened within, at the latest at the end."""
        self.is_watching = False
        if self.misuse is not None:
            raise self.misuse


class GuardedSession(Session):
    """A session whose transaction belongs to the runtime. `begin_nested()` is the handler's."""

    def commit(self) -> NoReturn:
        """Raises SessionMisuse."""
        self._refuse("commit", "the job's work, its done mark and its follow-up jobs commit together")

    def rollback(self) -> NoReturn:
        """Raises SessionMisuse."""
        self._refuse("rollback", "raise an error and everything is rolled back")

    def close(self) -> NoReturn:
        """Raises SessionMisuse."""
        self._refuse("close", "it is closed when the handler has returned")

    def reset(self) -> NoReturn:
        """Raises SessionMisuse."""
        self._refuse("reset", "it is closed when the handler has returned")

    def invalidate(self) -> NoReturn:
        """Raises SessionMisuse."""
        self._refuse("invalidate", "raise an error and everything is rolled back")

    def begin(self, nested: bool = False) -> SessionTransaction:  # noqa: FBT001, FBT002 - SQLAlchemy's
        """Raises SessionMisuse, unless `begin_nested()` asks."""
        if not nested:
            self._refuse("begin", "the transaction is open already")
        return super().begin(nested=True)

    def _refuse(self, call: str, reason: str) -> NoReturn:
        guard: Guard = self.info.get(GUARD) or Guard()
        guard.refuse(
            f"A handler called {call}() on its session, which the runtime owns: {reason}. "
            "Use begin_nested() for a part that may fail."
        )


def watch(engine: Engine) -> None:
    """Have `engine` ask the guards of its connections before each statement, until they go back to the pool.

    By the dialect's events: one listener of the connection's own would make each statement dispatch all of them.
    """
    for name in ("do_execute", "do_executemany"):
        event.listen(engine, name, _before_execute)
    event.listen(engine, "do_execute_no_params", _before_execute_without)
    event.listen(engine, "checkin", _given_back)


def _before_execute_without(cursor: DBAPICursor, statement: str, context: ExecutionContext) -> None:
    _before_execute(cursor, statement, None, context)


def _given_back(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
    """Whoever has the connection next is no handler's concern, though the one that gave it away may still run.

    One that would hand on what a handler has left in it is thrown away: to connect anew is quicker, and surer, than to
    undo all that a session can be told.
    """
    guard: Guard | None = record.record_info.pop(GUARD, None) if record.record_info else None
    if dbapi_connection is None:
        return
    driver: Any = dbapi_connection.driver_connection
    driver.guard = None
    # A commit that the guard refused is one for SQLAlchemy, which then takes the transaction for ended.
    if guard is not None and (guard.leaves_behind or driver.is_in_transaction()):
        record.invalidate()


def _before_execute(_cursor: DBAPICursor, statement: str, parameters: Any, context: ExecutionContext) -> None:
    """Raises SessionMisuse in a second task, and TransactionEnded for a statement that ends the transaction."""
    info = context.root_connection.connection.record_info
    guard: Guard | None = info.get(GUARD) if info else None
    if guard is not None:
        guard.refuse_other_tasks()
        guard.sees(statement, parameters or ())
