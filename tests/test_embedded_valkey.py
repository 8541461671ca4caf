"""A Valkey that keeps nothing starts empty, whatever it was before."""

from typing import Any
from urllib.parse import urlsplit

from redis import Redis

from tests.support.waiting import wait_until
from worker.dev import EmbeddedValkey


async def test_one_that_was_a_replica_starts_empty() -> None:
    """A replica writes what it gets from its primary to the disk, and would read that at its next start."""
    with EmbeddedValkey() as first, EmbeddedValkey() as second, Redis.from_url(first.url) as primary:
        primary.set("of", "the primary")
        with Redis.from_url(second.url) as replica:
            replica.replicaof("127.0.0.1", urlsplit(first.url).port)

            async def has_synced() -> bool:
                told: Any = replica.info("replication")
                return bool(told["master_link_status"] == "up")

            await wait_until(has_synced)
            assert replica.get("of") == b"the primary"
        second.kill()
        second.start()
        with Redis.from_url(second.url) as replica:
            assert replica.dbsize() == 0
