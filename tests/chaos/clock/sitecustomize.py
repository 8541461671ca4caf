"""Python imports this before anything else where its folder is in PYTHONPATH: the process's clock is then shifted.

By CHAOS_CLOCK_SHIFT_S seconds, forward or back. The monotonic clock stays, as it does when a real clock is set.
"""

import datetime as dt
import os
import time
from collections.abc import Callable

SHIFT_S = float(os.environ.get("CHAOS_CLOCK_SHIFT_S", "0"))

_time: Callable[[], float] = time.time
_time_ns: Callable[[], int] = time.time_ns
_real = dt.datetime


class _AnyDatetime(type):
    """What was made before, or by code in C, is a datetime too."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _real)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, _real)


class _Shifted(_real, metaclass=_AnyDatetime):
    __slots__ = ()  # code in C looks at its size

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> _real:  # type: ignore[override]  # the plain one, as C code makes it
        return _real.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls) -> _real:  # type: ignore[override]  # as above
        return _real.fromtimestamp(time.time(), dt.UTC).replace(tzinfo=None)


if SHIFT_S:
    time.time = lambda: _time() + SHIFT_S
    time.time_ns = lambda: _time_ns() + int(SHIFT_S * 1_000_000_000)
    dt.datetime = _Shifted  # type: ignore[misc]
