"""What a worker is given beside arq's own arguments."""

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from worker.claims import Claims
from worker.delivery import Delivery, Report
from worker.lease import Leases


@dataclass(frozen=True, slots=True)
class Engine:
    """Runs the jobs that a worker claims, and is told of them."""

    execute: Callable[[Delivery], Coroutine[Any, Any, Report]]
    may_claim: Callable[[], bool]
    """False while PostgreSQL is away."""
    acknowledged: Callable[[str], None]
    """Told the id of each job that is final: the relay may have another of the same id waiting."""
    refill: Callable[[], Awaitable[bool]]
    """Before a burst ends: puts into Redis what waits for that. True: there may be more."""
    fault: Callable[[BaseException], None]
    """Told what nobody expected."""
    abandon: Callable[[], None]
    """Ends the process where jobs don't let themselves be cancelled."""
    leases: Leases
    claims: Claims
    draw: Callable[[], Sequence[str]]
    """The queues, in the order of the next look."""
