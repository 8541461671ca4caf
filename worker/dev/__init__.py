"""PostgreSQL and Valkey from Python packages: real servers without Docker, for development, the demo and the tests."""

from worker.dev.postgres import EmbeddedPostgres
from worker.dev.server import EmbeddedServerError
from worker.dev.valkey import EmbeddedValkey

__all__ = ["EmbeddedPostgres", "EmbeddedServerError", "EmbeddedValkey"]
