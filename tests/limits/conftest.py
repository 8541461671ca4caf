"""The consumer's fixtures serve here too: workers in this process, on real servers."""

from tests.consumer.conftest import (
    arq,
    burst,
    database_url,
    effects,
    engine,
    logged,
    proxy,
    session,
    settings,
    shared_url,
    work,
)

__all__ = [
    "arq",
    "burst",
    "database_url",
    "effects",
    "engine",
    "logged",
    "proxy",
    "session",
    "settings",
    "shared_url",
    "work",
]
