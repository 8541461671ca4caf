"""A line to PostgreSQL that can be cut: before a statement arrives, or before its answer does."""

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.support.proxy import COMMIT_SENT, COMMITTED, Proxy

__all__ = ["COMMITTED", "COMMIT_SENT", "PostgresProxy"]

SOCKET = ".s.PGSQL.5432"


class PostgresProxy(Proxy):
    """Forwards bytes between its own unix socket and the server's."""

    def __init__(self, url: str, directory: Path) -> None:
        parts = urlsplit(url)
        super().__init__(Path(parse_qs(parts.query)["host"][0]) / SOCKET, directory / SOCKET)
        self.url = f"postgresql://postgres@{parts.path}?host={directory}"
