"""Reporting as a worker starts it: the logs, Sentry where it has a DSN, and the observers that feed them."""

from collections.abc import Iterable

from worker.reporting import logs
from worker.reporting.log_observer import LogObserver
from worker.reporting.observer import Observer, Observers
from worker.schedule import Cron
from worker.settings import Settings


def start_reporting(settings: Settings, schedule: Iterable[Cron] = ()) -> Observer:
    """Configure logs and Sentry for this process.

    Sentry comes first: it opens the trace whose id the logs carry.
    """
    logs.configure(settings)
    log = LogObserver(payloads=settings.log_payloads)
    if not settings.sentry_dsn:
        return log
    from worker.reporting.sentry import configure_sentry  # noqa: PLC0415 - a tenth of the start, for nothing without one
    from worker.reporting.sentry_observer import SentryObserver  # noqa: PLC0415 - as above

    configure_sentry(settings)
    return Observers([SentryObserver(schedule, payloads=settings.sentry_send_payloads), log])
