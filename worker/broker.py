"""Connections to Redis or Valkey from a URL: tcp, TLS, unix socket, or through sentinels."""

import ssl
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import redis
from arq.connections import ArqRedis, RedisSettings
from redis.asyncio import Redis
from redis.asyncio import SSLConnection as TlsConnection
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.sentinel import Sentinel

from worker.redis_connection import OURS
from worker.wire import deserialize, serialize

CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S = 5.0, 10.0
"""A server that is cut off is noticed; the lease of 15 s decides about its jobs."""
OPTIONS: dict[str, Any] = {"health_check_interval": 15}
SENTINEL = "redis+sentinel://"
TLS_OPTIONS = ("ssl_keyfile", "ssl_certfile", "ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_data", "ssl_check_hostname")

IDENTITY = ("db", "username", "password", "credential_provider")
"""Of a client, for its blocking twin: without one of them the server refuses to renew leases."""


def connect_broker(url: str) -> ArqRedis:
    """arq's client with JSON codecs. Connects when it is first used. Raises as `check_url` does."""
    timeouts: dict[str, Any] = {"socket_connect_timeout": CONNECT_TIMEOUT_S, "socket_timeout": ANSWER_TIMEOUT_S}
    if url.startswith(SENTINEL):
        hosts, service, options = _sentinel(url)
        sentinels = AsyncSentinel(hosts, **options, **timeouts)  # type: ignore[no-untyped-call]  # redis-py 5 leaves it untyped
        client: Any = sentinels.master_for(service, ArqRedis, _Pool, **OPTIONS)
    else:
        client = ArqRedis.from_url(url, **OPTIONS, **_checks(url), **timeouts)
    client.connection_pool.connection_class = OURS[client.connection_pool.connection_class]
    client.job_serializer = serialize
    client.job_deserializer = deserialize
    made: ArqRedis = client
    return made


def connect_blocking(server: str | Redis, timeout: float = ANSWER_TIMEOUT_S) -> redis.Redis:
    """A client for the thread that renews leases, which no blocked event loop holds up. `timeout` in seconds.

    `server`: its URL, or another client of it.
    """
    timeouts: dict[str, Any] = {"socket_connect_timeout": timeout, "socket_timeout": timeout}
    return _by_url(server, timeouts) if isinstance(server, str) else _twin(server, timeouts)


def _by_url(url: str, timeouts: Mapping[str, Any]) -> redis.Redis:
    if url.startswith(SENTINEL):
        hosts, service, options = _sentinel(url)
        sentinels: Any = Sentinel(hosts, **options, **timeouts)  # type: ignore[no-untyped-call]  # redis-py 5 leaves it untyped
        primary: redis.Redis = sentinels.master_for(service, **OPTIONS)
        return primary
    return redis.Redis.from_url(url, **OPTIONS, **_checks(url), **timeouts)


def _twin(client: Redis, timeouts: Mapping[str, Any]) -> redis.Redis:
    """Of the same server, by what the client's pool was given."""
    pool: Any = client.connection_pool
    given: dict[str, Any] = pool.connection_kwargs
    options = {name: given[name] for name in (*IDENTITY, *TLS_OPTIONS) if name in given}
    options |= {**timeouts, **OPTIONS}
    if isinstance(pool, SentinelConnectionPool):
        asked: list[Any] = [sentinel.connection_pool for sentinel in cast("Any", pool).sentinel_manager.sentinels]
        hosts = [(one.connection_kwargs["host"], one.connection_kwargs["port"]) for one in asked]
        sentinels: Any = Sentinel(hosts, **options)  # type: ignore[no-untyped-call]  # redis-py 5 leaves it untyped
        primary: redis.Redis = sentinels.master_for(pool.service_name)
        return primary
    host, port, path = (given.get(name) for name in ("host", "port", "path"))
    options["ssl"] = issubclass(pool.connection_class, TlsConnection)
    return redis.Redis(host=host or "localhost", port=port or 6379, unix_socket_path=path, **options)


def arq_settings(url: str) -> RedisSettings:
    """The same server, as the stock `arq` command takes it. Raises as `check_url` does."""
    if url.startswith(SENTINEL):
        hosts, service, options = _sentinel(url)
        return RedisSettings(host=hosts, sentinel=True, sentinel_master=service, database=options.pop("db"), **options)
    pool: Any = redis.ConnectionPool.from_url(url, **_checks(url))
    given: dict[str, Any] = pool.connection_kwargs
    return RedisSettings(
        host=given.get("host", "localhost"),
        port=given.get("port", 6379),
        unix_socket_path=given.get("path"),
        database=given.get("db", 0),
        username=given.get("username"),
        password=given.get("password"),
        ssl=url.startswith("rediss://"),
        **{name: given[name] for name in TLS_OPTIONS if name in given},
    )


def check_url(url: str) -> None:
    """Raises ValueError for a URL that can't be read; its text holds nothing of the URL, which may carry a password."""
    by_sentinels = url.startswith(SENTINEL)
    try:
        connect_blocking(url).connection_pool.make_connection()  # which doesn't connect yet
        database = "" if by_sentinels or url.startswith("unix://") else urlsplit(url).path.strip("/")
        int(database or 0)  # redis-py would take 0 for what is no number
    except (ValueError, TypeError):
        form = (
            f"{SENTINEL}host:port,host:port/service without any ?options"
            if by_sentinels
            else "redis://user:password@host:port/0"
        )
        raise ValueError(
            f"it can't be read; write it as {form}, with special characters of the password as %XX"
        ) from None


def _checks(url: str) -> dict[str, Any]:
    """The name in a certificate is checked unless the URL says otherwise, as redis-py does from 6 on."""
    asked = parse_qs(urlsplit(url).query).get("ssl_cert_reqs", [])
    checks = url.startswith("rediss://") and "none" not in asked
    return {"ssl_check_hostname": True} if checks else {}


def is_untrusted(error: BaseException | None) -> bool:
    """Whether a connection failed because the server's certificate isn't trusted; redis-py hides that beneath."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


class _Pool(SentinelConnectionPool):
    """Closes the connections to the sentinels too, which redis-py leaves open."""

    async def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: FBT001, FBT002 - redis-py's signature
        await super().disconnect(inuse_connections)
        manager: Any = self.sentinel_manager
        for sentinel in manager.sentinels:
            await sentinel.aclose()


def _sentinel(url: str) -> tuple[list[tuple[str, int]], str, dict[str, Any]]:
    """Read redis+sentinel://user:password@host:port,host:port/service/db."""
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    service, _, database = parts.path.strip("/").partition("/")
    addresses = [host.rpartition(":") for host in hosts.split(",") if host]
    if parts.query or parts.fragment:
        # Nobody would heed them, and who asks for TLS must not be given a connection without it.
        raise ValueError("The URL has options.")
    if not service or not addresses or not all(host and port.isdigit() for host, _, port in addresses):
        raise ValueError("The URL names no sentinels.")
    username, _, password = credentials.partition(":")
    options: dict[str, Any] = {"db": int(database or 0)}
    if password:
        options |= {"username": unquote(username) or None, "password": unquote(password)}
    return [(host.strip("[]"), int(port)) for host, _, port in addresses], service, options
