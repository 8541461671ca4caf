"""Stands in for testcontainers, which arq's conftest starts a Redis with: here a Valkey runs already."""

import os
from typing import Self
from urllib.parse import urlsplit


class RedisContainer:
    """As much of testcontainers' class as arq's conftest asks for."""

    port = 6379

    def __init__(self, _image: str) -> None:
        self._server = urlsplit(os.environ["REDIS_URL"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Whoever started the server stops it."""

    def get_container_host_ip(self) -> str:
        return self._server.hostname or "127.0.0.1"

    def get_exposed_port(self, _port: int) -> int:
        return self._server.port or self.port
