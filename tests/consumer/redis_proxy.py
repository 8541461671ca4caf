"""A TCP proxy in front of Redis: it holds a chosen command back, or goes away, while Redis keeps its data."""

import hashlib
from typing import Self
from urllib.parse import urlsplit

from tests.support.proxy import Proxy


def sha_of(script: str) -> bytes:
    """What EVALSHA calls it."""
    return hashlib.sha1(script.encode()).hexdigest().encode()  # noqa: S324 - Redis's own choice


class RedisProxy(Proxy):
    """Give workers its `url`, and everybody else Redis's own."""

    def __init__(self, redis_url: str) -> None:
        parts = urlsplit(redis_url)
        super().__init__((parts.hostname or "", parts.port or 0), ("127.0.0.1", 0))

    @property
    def url(self) -> str:
        host, port = self.address if isinstance(self.address, tuple) else ("", 0)
        return f"redis://{host}:{port}"

    def lead_to(self, redis_url: str) -> None:
        """New connections go to this server, and those that are up stay where they are."""
        parts = urlsplit(redis_url)
        self._target = parts.hostname or "", parts.port or 0

    async def away(self) -> None:
        """End all connections and refuse new ones."""
        await self.stop()

    async def back(self) -> None:
        """Listen, on the same port as before. Nothing is held back."""
        await self.start()

    async def __aenter__(self) -> Self:
        await self.back()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.away()
