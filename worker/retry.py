"""How often a failed job is tried again, and after how long."""

import random
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

from worker.errors import LONGEST_DELAY, Permanent


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter.

    Full jitter (a uniform draw between zero and the exponential bound) spreads a herd of failures best:
    Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    attempts: int = 5
    """Failures after which the job is Dead."""
    base: timedelta = timedelta(seconds=1)
    factor: float = 4.0
    cap: timedelta = timedelta(hours=1)
    give_up_on: tuple[type[BaseException], ...] = ()
    """Errors that no retry can mend, beside `Permanent`."""

    def __post_init__(self) -> None:
        if not self.attempts >= 1:
            raise ValueError(f"RetryPolicy got attempts={self.attempts}; a job needs at least 1.")
        errors: Any = self.give_up_on  # whose comma is easily left out
        if not isinstance(errors, tuple) or not all(map(_is_error, cast("tuple[object, ...]", errors))):
            raise ValueError(f"RetryPolicy got give_up_on={errors!r}; give a tuple of exception classes.")
        if self.base < timedelta(0) or not timedelta(0) <= self.cap <= LONGEST_DELAY or not self.factor >= 1:
            raise ValueError(
                "RetryPolicy needs a base of at least zero, a cap of zero to ten years, and a factor of at least 1."
            )

    def is_hopeless(self, error: BaseException, failures: int) -> bool:
        """Whether `error`, the `failures`-th one (from 1), leaves nothing to try."""
        return failures >= self.attempts or isinstance(error, (Permanent, *self.give_up_on))

    def bound(self, failures: int) -> timedelta:
        """The longest wait after the `failures`-th failure (from 1)."""
        if not self.base:
            return self.base
        try:
            return min(self.cap, self.base * self.factor ** (failures - 1))
        except OverflowError:  # of the power or of the time: either is far beyond the cap
            return self.cap

    def delay(self, failures: int) -> timedelta:
        """The wait after the `failures`-th failure (from 1), drawn anew at each call."""
        return self.bound(failures) * random.random()  # noqa: S311 - jitter, not a secret


def _is_error(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)
