"""What a handler may not do with its session, and the sentence that it gets."""

import asyncio
from typing import Any, NoReturn, Self

from sqlalchemy import Connection
from sqlalchemy.engine.interfaces import DBAPICursor, ExecutionContext
from sqlalchemy.orm import Session, SessionTransaction

from worker.errors import SessionMisuse

GUARD = "ratchet_guard"
"""Where an attempt's Guard is found: in its session's info, and among its connection's execution options."""


class Guard:
    """Of one attempt. Remembers a misuse, which a handler may have swallowed: what it asked for did not happen."""

    def __init__(self) -> None:
        """The calling task is the one that may use the session."""
        self._owner = asyncio.current_task()
        self._misuse: SessionMisuse | None = None

    def refuse_other_tasks(self) -> None:
        """Raises SessionMisuse in any task but the owner."""
        if asyncio.current_task() is not self._owner:
            self.refuse(
                "A handler used its session from a second task (gather, create_task, wait_for), but one transaction "
                "runs one statement a time: await them one after another, or enqueue a job each."
            )

    def refuse(self, sentence: str) -> NoReturn:
        """Raises SessionMisuse."""
        self._misuse = SessionMisuse(sentence)
        raise self._misuse

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        """Raises the misuse that happened within, at the latest at the end."""
        if self._misuse is not None:
            raise self._misuse


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


def before_cursor_execute(
    connection: Connection,
    _cursor: DBAPICursor,
    _statement: str,
    _parameters: Any,
    _context: ExecutionContext | None,
    _many: bool,  # noqa: FBT001 - SQLAlchemy's signature
) -> None:
    """SQLAlchemy's event of that name, for the engine: raises SessionMisuse in a second task."""
    guard: Guard | None = connection.get_execution_options().get(GUARD)
    if guard is not None:
        guard.refuse_other_tasks()
