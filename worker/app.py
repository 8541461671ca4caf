"""App: what `worker run` is given. Handlers, schedule, and where the domain keeps its migrations."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from worker.handler import AnyHandler, HandlerTable, Policy, bind
from worker.job import Job
from worker.lifespan import Lifespan, check_lifespan
from worker.schedule import Cron


@dataclass(frozen=True, slots=True, init=False)
class App:
    """The whole of an application, checked when it is made."""

    handlers: HandlerTable
    schedule: tuple[Cron, ...]
    migrations: tuple[Path, ...]
    """Folders of Alembic versions that `worker migrate` applies after the runtime's own."""
    demo: str
    """`module:function` that `worker demo` calls, or empty."""
    lifespan: Lifespan
    """Called once in each process that runs jobs: what it gives is open from before the first until after the last."""

    def __init__(
        self,
        handlers: Sequence[AnyHandler],
        schedule: Sequence[Cron] = (),
        *,
        migrations: Sequence[Path] = (),
        demo: str = "",
        lifespan: Lifespan = nullcontext,
    ) -> None:
        """Raises ValueError for what is no handler, two handlers of a job, two cron entries of a name, a cron job
        without a handler, one thing where several are asked for, migrations that aren't there, or a lifespan that can't
        be called or gives no context manager.
        """
        for field, given, kind in (("handlers", handlers, Policy), ("schedule", schedule, Cron)):
            if isinstance(given, kind):  # whose comma is easily left out
                raise ValueError(f"The app has {field}={given!r}; give a tuple of them, as in (…,).")  # noqa: TRY004 - as the others
        table = bind(handlers)
        _check_schedule(schedule, table)
        _check_migrations(migrations)
        check_lifespan(lifespan)
        object.__setattr__(self, "handlers", table)
        object.__setattr__(self, "schedule", tuple(schedule))
        object.__setattr__(self, "migrations", tuple(map(Path, migrations)))
        object.__setattr__(self, "demo", demo)
        object.__setattr__(self, "lifespan", lifespan)

    @property
    def jobs(self) -> set[type[Job]]:
        """Each once; the table of handlers has a job under its aliases too."""
        return {handler.job for handler in self.handlers.values()}

    @property
    def queues(self) -> set[str]:
        """Where its jobs go by themselves."""
        return {job.job_queue for job in self.jobs}


def _check_schedule(schedule: Sequence[Cron], table: HandlerTable) -> None:
    for cron in schedule:
        if not isinstance(cron, Cron):  # pyright: ignore[reportUnnecessaryIsInstance]  # no type checker has seen every app
            raise ValueError(f"The app has {cron!r} in its schedule; give each entry as Cron(job, crontab).")  # noqa: TRY004 - as the others
    names = [name for cron in schedule for name in cron.names]
    for cron in schedule:
        for name in cron.names:
            if names.count(name) > 1:  # an alias counts: the tick of one would pass for the other's
                raise ValueError(f"Two cron entries are named {name!r}; give one of them a name of its own.")
        if cron.job.job_name not in table:
            raise ValueError(
                f"The cron entry {cron.name!r} enqueues {cron.job.job_name!r}, which has no handler; add one."
            )


def _check_migrations(migrations: Sequence[Path]) -> None:
    if isinstance(migrations, str | Path):  # whose comma is easily left out  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"The app has migrations={migrations!r}; give a tuple of folders, as in (Path(…),).")  # noqa: TRY004 - as the others
    for folder in migrations:
        if not Path(folder).is_dir():
            raise ValueError(f"The app has its migrations in {str(folder)!r}, which is no folder; give its whole path.")
