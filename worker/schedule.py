"""Cron: a job and its times."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from worker.job import NAME, NAME_ADVICE, Job

LONGEST_GRACE = timedelta(days=3_650)
PUNCTUAL = timedelta(seconds=30)
"""A tick that is noticed within this isn't missed, whatever its grace: nobody looks in its very moment."""


@dataclass(frozen=True, slots=True, init=False)
class Cron:
    """Enqueue `job` at the times of a crontab line: minute, hour, day of month, month, day of week.

    Of six numbers the first is seconds.

    Times that a change of the clock skips or repeats are treated as Debian's cron does (cronsim's rules).
    """

    job: Job
    crontab: str
    name: str
    """Tells two entries of one job apart; the job's name unless given."""
    tz: str
    grace: timedelta
    """A tick missed for longer than this is not made up for. Zero: none is."""

    def __init__(
        self,
        job: Job,
        crontab: str,
        name: str | None = None,
        tz: str = "UTC",
        grace: timedelta = timedelta(hours=1),
    ) -> None:
        """Raises ValueError for what is no job, no crontab, no time zone, no name, or no grace (at most ten years)."""
        if not isinstance(job, Job):  # pyright: ignore[reportUnnecessaryIsInstance]  # its class is easily given
            raise ValueError(f"A cron entry got {job!r}; give a job, as in Cron(Report(), …).")  # noqa: TRY004 - as the others
        job.to_payload()
        values = {"job": job, "crontab": crontab, "name": name or job.job_name, "tz": tz, "grace": grace}
        for field, value in values.items():
            object.__setattr__(self, field, value)
        if not NAME.fullmatch(self.name):
            raise ValueError(f"A cron entry is called {self.name[:50]!r}; {NAME_ADVICE}.")
        if not isinstance(grace, timedelta):  # pyright: ignore[reportUnnecessaryIsInstance]  # seconds are easily given
            raise ValueError(f"The cron entry {self.name} has grace={grace!r}; give a timedelta.")  # noqa: TRY004 - as the others
        if not timedelta(0) <= grace <= LONGEST_GRACE:
            limit = f"zero to {LONGEST_GRACE.days:,} days"
            raise ValueError(f"The cron entry {self.name} has a grace of {grace}; give a time of {limit}.")
        try:
            zone = ZoneInfo(tz)
        except (LookupError, ValueError, OSError) as error:
            raise ValueError(f"The cron entry {self.name} has the time zone {tz!r}; use an IANA name.") from error
        try:
            CronSim(crontab, datetime.now(zone))
        except CronSimError as error:
            raise ValueError(f"The cron entry {self.name} has the crontab {crontab!r}: {error}.") from error

    @property
    def names(self) -> list[str]:
        """Its own, and those that it went by: an entry that is called as its job is renamed with it. Sorted."""
        renamed = self.job.job_aliases if self.name == self.job.job_name else ()
        return sorted({self.name, *renamed})

    def ticks_after(self, moment: datetime) -> Iterator[datetime]:
        """The times after `moment` (aware), ascending, in UTC."""
        for tick in CronSim(self.crontab, moment.astimezone(ZoneInfo(self.tz))):
            # In the hour that the clock repeats, cronsim gives what the first pass of it has dealt with.
            if tick > moment:
                yield tick.astimezone(UTC)

    def newest_tick(self, after: datetime, until: datetime) -> datetime | None:
        """The last time in (after, until] that is punctual or younger than the grace; None if there is none."""
        earliest = max(after, until - max(self.grace, PUNCTUAL))
        span = timedelta(hours=1)
        # The last hour first, then more: a year of minutes has half a million ticks, and the last of them is enough.
        while True:
            start = max(earliest, until - span)
            newest = max(takewhile(lambda tick: tick <= until, self.ticks_after(start)), default=None)
            if newest is not None or start == earliest:
                return newest
            span *= 4
