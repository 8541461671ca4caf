"""Connections to Redis or Valkey from a URL: tcp, TLS, unix socket, or through sentinels."""

from typing import Any
from urllib.parse import unquote, urlsplit

import redis
from arq.connections import ArqRedis
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.sentinel import Sentinel

from worker.wire import deserialize, serialize

OPTIONS: dict[str, Any] = {"socket_connect_timeout": 5, "socket_timeout": 10, "health_check_interval": 15}
"""Seconds. A server that is cut off is noticed; the lease of 15 s decides about its jobs."""


def connect_broker(url: str) -> ArqRedis:
    """arq's client with JSON codecs. Connects when it is first used.

    Raises ValueError for a URL that names no sentinel or service.
    """
    if url.startswith("redis+sentinel://"):
        hosts, service, options = _sentinel(url)
        sentinels = AsyncSentinel(hosts, **options)  # type: ignore[no-untyped-call]  # redis-py 5 leaves it untyped
        client: ArqRedis = sentinels.master_for(service, redis_class=ArqRedis, **OPTIONS)
    else:
        client = ArqRedis.from_url(url, **OPTIONS)
    client.job_serializer = serialize
    client.job_deserializer = deserialize
    return client


def connect_blocking(url: str) -> redis.Redis:
    """A client for the thread that renews leases, which no blocked event loop holds up."""
    if url.startswith("redis+sentinel://"):
        hosts, service, options = _sentinel(url)
        sentinels: Any = Sentinel(hosts, **options)  # type: ignore[no-untyped-call]  # redis-py 5 leaves it untyped
        primary: redis.Redis = sentinels.master_for(service, **OPTIONS)
        return primary
    return redis.Redis.from_url(url, **OPTIONS)


def _sentinel(url: str) -> tuple[list[tuple[str, int]], str, dict[str, Any]]:
    """redis+sentinel://user:password@host:port,host:port/service/db"""
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    service, _, database = parts.path.strip("/").partition("/")
    addresses = [host.rpartition(":") for host in hosts.split(",") if host]
    if not service or not addresses or not all(port.isdigit() for _, _, port in addresses):
        raise ValueError("REDIS_URL names no sentinels; write redis+sentinel://host:port,host:port/service.")
    username, _, password = credentials.partition(":")
    options: dict[str, Any] = {"socket_timeout": OPTIONS["socket_timeout"], "db": int(database or 0)}
    if password:
        options |= {"username": unquote(username) or None, "password": unquote(password)}
    return [(host, int(port)) for host, _, port in addresses], service, options
