"""Which faults happen to everybody: waited out and told as warnings, never paged."""

import socket

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError

from worker import faults

NETWORK = (ConnectionError, TimeoutError, socket.gaierror)
REDIS = (RedisConnectionError, RedisTimeoutError, ReadOnlyError)
"""A server that is away, restarts, loads its data, or has just become a replica."""


def is_expected(error: BaseException) -> bool:
    """Whether a fault of the runtime is one of those: a server away, a lock timeout, a conflict of transactions."""
    return faults.is_expected(error) or isinstance(error, NETWORK + REDIS)
