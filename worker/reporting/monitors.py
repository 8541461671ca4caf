"""Sentry's cron monitors. A run of a cron entry is one check-in, however many attempts and workers it takes."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from uuid import NAMESPACE_URL, uuid5

from sentry_sdk.crons import capture_checkin
from sentry_sdk.types import MonitorConfig

from worker.outcome import Cancelled, Completed, Dead, Duplicate, Outcome
from worker.reporting.observer import Subject
from worker.reporting.trace import CRON_HEADER
from worker.schedule import Cron

MAX_SLUG = 50
"""Sentry's limit."""


class Monitors:
    """The schedule's monitors, made in Sentry by their first check-in.

    Only crontab and time zone are told, so that margins and limits set in Sentry stay as they are.
    """

    def __init__(self, schedule: Iterable[Cron]) -> None:
        entries = tuple(schedule)
        self._configs: Mapping[str, MonitorConfig] = {
            cron.name: {"schedule": {"type": "crontab", "value": cron.crontab}, "timezone": cron.tz} for cron in entries
        }
        counted = Counter(slug(entry) for entry in self._configs)
        self._shared = frozenset(entry for entry in self._configs if counted[slug(entry)] > 1)
        """Entries whose slug is another's too."""

    def begun(self, subject: Subject) -> None:
        """The run goes on. Told at each attempt: an open check-in stays one, and its time to finish begins anew."""
        self._check_in(subject, "in_progress")

    def ended(self, subject: Subject, outcome: Outcome) -> None:
        """Close the check-in, if the outcome is final; a run that will be tried again stays in progress.

        A Duplicate tells again what came of the run: a killed worker may have left the check-in open.
        """
        match outcome:
            case Completed() | Cancelled() | Duplicate(failed=None):
                self._check_in(subject, "ok")
            case Dead() | Duplicate():
                self._check_in(subject, "error")
            case _:
                return

    def _check_in(self, subject: Subject, status: str) -> None:
        entry = subject.headers.get(CRON_HEADER)
        if entry is not None:
            capture_checkin(
                monitor_slug=slug(entry, alone=entry not in self._shared),
                check_in_id=uuid5(NAMESPACE_URL, f"{subject.job_id}:{subject.enqueued_ms}").hex,
                status=status,
                monitor_config=self._configs.get(entry),
            )


def slug(entry: str, *, alone: bool = True) -> str:
    """The monitor's slug in Sentry: small letters, digits, dashes and underscores.

    Where it isn't `alone`, a part of a hash tells it from that of another entry, `a.b` from `a-b`.
    """
    mark = "" if alone else f"-{hashlib.sha256(entry.encode()).hexdigest()[:8]}"
    return (re.sub(r"[^a-z0-9_]+", "-", entry.lower())[: MAX_SLUG - len(mark)].strip("-") or "cron") + mark
