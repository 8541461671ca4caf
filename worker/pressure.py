"""How hard PostgreSQL is pressed, and when chunked jobs leave it alone. Pure."""

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Pressure:
    """What PostgreSQL says of itself. None: it doesn't say, or not to this role."""

    replication_lag: timedelta | None = None
    """Of the standby that is farthest behind; roles without pg_monitor aren't told."""
    transaction_age: timedelta | None = None
    """Of the oldest open transaction of this database; roles without pg_monitor are told of their own role's alone."""
    waiting_locks: int = 0
    """Backends of this database that wait for a lock."""


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Above it, chunked jobs wait. Zero: that isn't looked at."""

    replication_lag: timedelta = timedelta(seconds=10)
    transaction_age: timedelta = timedelta(hours=1)
    waiting_locks: int = 50

    def reason(self, pressure: Pressure) -> str | None:
        """Why chunked jobs have to wait, as a sentence without its subject. None: they needn't."""
        lag, age, locks = pressure.replication_lag, pressure.transaction_age, pressure.waiting_locks
        if self.replication_lag and lag is not None and lag > self.replication_lag:
            return f"a standby is {_s(lag)} behind, more than {_s(self.replication_lag)} (WORKER_MAX_REPLICATION_LAG)"
        if self.transaction_age and age is not None and age > self.transaction_age:
            limit = f"more than {_s(self.transaction_age)} (WORKER_MAX_TRANSACTION_AGE)"
            return f"a transaction has been open for {_s(age)}, {limit}"
        if self.waiting_locks and locks > self.waiting_locks:
            return f"{locks} backends wait for a lock, more than {self.waiting_locks} (WORKER_MAX_WAITING_LOCKS)"
        return None


def _s(time: timedelta) -> str:
    return f"{time.total_seconds():,.0f} s"
