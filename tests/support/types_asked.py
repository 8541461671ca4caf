"""Which types asyncpg asks its connections about: for each kind of array but of texts, once a connection."""

from typing import Any

import asyncpg
import pytest


def types_asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Their oids, as they are asked for from now on."""
    asked: list[int] = []
    driver: Any = asyncpg.Connection  # which has no public way to hear of it
    introspect = driver._introspect_types

    async def telling(connection: Any, typeoids: list[int], *rest: Any) -> Any:
        asked.extend(typeoids)
        return await introspect(connection, typeoids, *rest)

    monkeypatch.setattr(driver, "_introspect_types", telling)
    return asked
