"""What came of claims, in the words of the script that tells Redis."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from worker.claim import Claim
from worker.scripts import Call, Script
from worker.settle_script import SETTLE

FOREVER = -1
"""Of a result: kept until somebody deletes it."""
AT_ONCE = 1_000
"""Endings a script call: Lua unpacks no more than some 8,000 values."""


@dataclass(slots=True)
class Finish:
    """Take the job out of Redis and keep its result for so long; 0: keep none; FOREVER."""

    claim: Claim
    result: bytes = b""
    keep_ms: int = 0
    stays_ms: int = 0
    """How long the id stays in progress nevertheless."""


@dataclass(slots=True)
class PutBack:
    """Offer the job again after `delay`; zero: behind all that is due. None: at its old place."""

    claim: Claim
    delay: timedelta | None = None
    adopted: bytes | None = None
    """Replaces the message."""
    failures: int | None = None
    """What Redis counts from now on; None: as before."""
    stays_ms: int = 0
    """As Finish's."""
    cleared: bool = False
    """Whether a suspect is none any more. Else whoever takes it next is told that it is one."""
    has_started: bool = False
    """Whether its rate counts no other start when it is taken next: it goes on, or had not begun."""
    others_first: bool = False
    """Whether Ratchet's workers leave it for a second (worker/claim_script.py) to stock arq, which looks less often."""


@dataclass(frozen=True, slots=True)
class Along:
    """What goes to Redis with a claim, instead of by itself."""

    endings: Sequence[Finish | PutBack]
    """At most AT_ONCE."""
    told: Callable[[list[bool] | BaseException], None]
    """Called once, with what `settle` would return or raise; an error of the connection means that nothing is known."""


_SETTLE = Script(SETTLE)


def settling(endings: Sequence[Finish | PutBack]) -> Call:
    """The call of the script for at most AT_ONCE. It answers 1 for each that was told, and 0 where a lease was lost."""
    return Call(_SETTLE, (), [value for ending in endings for value in _arguments(ending)])


def _arguments(ending: Finish | PutBack) -> tuple[Any, ...]:
    """What SETTLE takes of one ending."""
    claim, how = ending.claim, _how(ending)
    return claim.queue, claim.raw_id, claim.token, b"only %b %b" % (claim.digest(), how) if claim.is_restored else how


def _how(ending: Finish | PutBack) -> bytes:
    claim, limited = ending.claim, ending.claim.limited.encode()
    if isinstance(ending, Finish):
        had_message = claim.message is not None
        return b"finish %d %d %d %b %b" % (ending.stays_ms, ending.keep_ms, had_message, limited, ending.result)
    verb, ms = _when(ending)
    failures = claim.failures if ending.failures is None else ending.failures
    at = b"%d.5" % ms if ending.others_first else b"%d" % ms
    how = b"%b %d %b %d %b %b" % (verb, ending.stays_ms, at, failures, limited, ending.adopted or b"")
    return b"started %b %b" % (claim.rated.encode(), how) if ending.has_started and claim.rated else how


def _when(ending: PutBack) -> tuple[bytes, int]:
    """How a job is offered again: the verb, and milliseconds; of `now` when it was due, else how long it waits."""
    delay_ms = None if ending.delay is None else math.ceil(ending.delay.total_seconds() * 1000)
    if ending.claim.is_suspect and not ending.cleared:
        return b"suspect", delay_ms or 0
    return (b"now", ending.claim.due_ms) if delay_ms is None else (b"later", delay_ms)
