"""What a worker says of a Redis that is away or refuses something, and when it may claim again after that."""

import time
from collections.abc import Generator
from contextlib import contextmanager

import structlog
from redis.exceptions import MasterDownError, ReadOnlyError, RedisError, ResponseError

REFUSED_AGAIN_S = 60.0
"""Between two words of what Redis refuses."""


class RedisTrouble:
    """Of one worker."""

    def __init__(self, renew_every_s: float) -> None:
        """`renew_every_s`: within this time every living worker has renewed its leases."""
        self._renew_every_s = renew_every_s
        self._away_since: float | None = None
        self._claims_from = self._refused_again = 0.0
        self._log = structlog.get_logger("worker.consumer")

    def is_away(self) -> bool:
        return self._away_since is not None

    def may_claim(self) -> bool:
        return time.monotonic() >= self._claims_from

    def met(self, error: RedisError | OSError) -> None:
        """Say so, once an absence."""
        if _is_refusal(error):
            self._say_refused(error)
        elif self._away_since is None:
            reason = f"{type(error).__name__}: {error}"
            self._log.warning("redis_away", reason=reason, hint="trying until it is back")
            self._away_since = time.monotonic()

    def is_over(self) -> None:
        """Leases may have run out while Redis was away: living workers renew theirs before anybody claims."""
        self._log.warning("redis_back")
        now = time.monotonic()
        if self._away_since is not None and now - self._away_since > self._renew_every_s:
            self._claims_from = now + self._renew_every_s
        self._away_since = None

    @contextmanager
    def bearing_refusals(self) -> Generator[None]:
        """For what a worker can do without."""
        try:
            yield
        except ResponseError as error:
            if not _is_refusal(error):
                raise
            self._say_refused(error)

    def _say_refused(self, error: Exception) -> None:
        """Redis is there, and won't: its memory is full, say, or a key belongs to something else."""
        if time.monotonic() >= self._refused_again:
            reason = f"{type(error).__name__}: {error}"
            self._log.error("redis_refuses", reason=reason, hint="what needs it waits; see worker doctor")
            self._refused_again = time.monotonic() + REFUSED_AGAIN_S


def _is_refusal(error: Exception) -> bool:
    """Whether Redis itself says no. A replica does so because its primary is elsewhere: that one is away."""
    return isinstance(error, ResponseError) and not isinstance(error, ReadOnlyError | MasterDownError)
