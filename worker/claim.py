"""Claim: a job that this worker holds, as Redis has told of it."""

import hashlib
from dataclasses import dataclass
from math import isfinite

MAX_ID_BYTES = 1_000
"""Of an id in the ledger, whose index takes no more than 2,704 bytes."""


@dataclass(slots=True)
class Claim:
    """A job that this worker holds."""

    job_id: str
    """The id as the ledger and the logs know it."""
    raw_id: bytes
    """The id as it stands in Redis: any bytes at all."""
    queue: str
    token: str
    """What stands in its in-progress key: who holds it, and when it was due."""
    message: bytes | None
    due_ms: int
    claimed_ms: int
    """Redis's time."""
    failures: int
    aborted: bool
    limited: str = ""
    """The name whose permit it holds, where that is limited."""
    is_suspect: bool = False
    """It is taken from a lease that ran out, so the process that had it may have died of it."""
    rated: str = ""
    """The name whose rate counts it, where that has one."""
    is_restored: bool = False
    """Its in-progress key was gone for a while: there may be another job of its id by now."""

    def digest(self) -> bytes:
        """By which its message is known, in hexadecimal: SHA-1, as Redis's scripts have it."""
        return hashlib.sha1(self.message or b"", usedforsecurity=False).hexdigest().encode()


def readable_id(raw_id: bytes) -> str:
    """`raw_id` as PostgreSQL's text takes it: itself, unless it isn't UTF-8, holds NUL, or is overlong."""
    text = raw_id.decode("utf-8", "backslashreplace").replace("\0", "\\0")
    if len(text) <= MAX_ID_BYTES and (text.isascii() or len(text.encode()) <= MAX_ID_BYTES):
        return text
    return f"{text[:100]}…{hashlib.sha256(raw_id).hexdigest()}"


def due_ms(score: bytes) -> int:
    """A score of the queue in milliseconds since 1970. One that can be no time, such as minus infinity, is 0."""
    if score.isdigit():
        return int(score)
    value = float(score)
    return int(max(0.0, value)) if isfinite(value) else 0


def failures_of(counted: bytes | None) -> int:
    """What Redis counts under `arq:retry:{id}`; 0 where that is no number."""
    return int(counted) if counted and counted.isdigit() and len(counted) < 10 else 0  # noqa: PLR2004 - digits
