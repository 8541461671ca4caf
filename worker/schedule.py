"""Cron: a job and its times."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from worker.job import Job


@dataclass(frozen=True, slots=True)
class Cron:
    """Enqueue `job` at the times of a crontab line: minute, hour, day of month, month, day of week.

    Times that a change of the clock skips or repeats are treated as Debian's cron does (cronsim's rules).
    """

    job: Job
    crontab: str
    name: str = ""
    """Tells two entries of one job apart; the job's name unless given."""
    tz: str = "UTC"
    grace: timedelta = timedelta(hours=1)
    """A tick missed for longer than this is not made up for."""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.job.job_name)
        try:
            CronSim(self.crontab, datetime.now(ZoneInfo(self.tz)))
        except CronSimError as error:
            raise ValueError(f"The cron entry {self.name} has the crontab {self.crontab!r}: {error}.") from error
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError(f"The cron entry {self.name} has the time zone {self.tz!r}; use an IANA name.") from error

    def ticks_after(self, moment: datetime) -> Iterator[datetime]:
        """The times after `moment` (aware), ascending, in UTC."""
        for tick in CronSim(self.crontab, moment.astimezone(ZoneInfo(self.tz))):
            yield tick.astimezone(UTC)

    def newest_tick(self, after: datetime, until: datetime) -> datetime | None:
        """The last time in (after, until], or None. Looks no further back than the grace, so it stays cheap."""
        newest = None
        for tick in self.ticks_after(max(after, until - self.grace - timedelta(seconds=1))):
            if tick > until:
                break
            newest = tick
        return newest
