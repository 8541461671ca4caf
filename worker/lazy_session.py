"""The fresh session of an attempt, made when it is first used: to make one takes 6 us, and some jobs need none."""

from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from worker.database import SESSION_OPTIONS


class LazySession(AsyncSession):
    """An AsyncSession over a session of the given class, with the runtime's options."""

    def __init__(
        self, session_class: type[Session], *, bind: AsyncConnection | AsyncEngine, info: dict[str, Any] | None = None
    ) -> None:
        self._given = session_class, bind, info

    def __getattr__(self, name: str) -> Any:
        """Called where an attribute is missing, so the first time that anything of the session is asked for."""
        given = self.__dict__.pop("_given", None)
        if given is None:
            raise AttributeError(name)
        session_class, bind, info = given
        super().__init__(bind, sync_session_class=session_class, info=info, **SESSION_OPTIONS)
        return getattr(self, name)

    def in_transaction(self) -> bool:
        """No, while it was never used."""
        return "_given" not in self.__dict__ and super().in_transaction()
