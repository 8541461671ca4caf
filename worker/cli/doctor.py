"""worker doctor: whether workers can run here."""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Annotated, Any

import typer
from arq.connections import ArqRedis
from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.app import App
from worker.broker import connect_broker
from worker.cli.endings import FAILED, ending
from worker.cli.loading import load_app
from worker.cli.output import print_json, print_table
from worker.cli.reach import command_engine, reach_database, reach_redis
from worker.database import DatabaseAway
from worker.doctor import MIGRATIONS, Finding, examine_both, examine_database, examine_redis
from worker.settings import Settings, load_settings

SERVERS = ("PostgreSQL", "Redis")


def doctor(*, as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON a check.")] = False) -> None:
    """Check settings, both servers, migrations, connections and what else workers need, and say what to change.

    Changes nothing. The exit code is 1 where a check fails; a warning is none.
    """
    settings = load_settings()
    findings = asyncio.run(_findings(settings, load_app(settings.app)))
    if as_json:
        for finding in findings:
            print_json(finding)
    else:
        print_table(("check", "verdict", "found"), ((each.check, each.verdict, each.text) for each in findings))
    if any(finding.verdict == "fails" for finding in findings):
        raise typer.Exit(FAILED)


async def _findings(settings: Settings, app: App) -> list[Finding]:
    redis = connect_broker(settings.redis_url.get_secret_value())
    engine = command_engine(settings, pool_size=2)
    try:
        findings = [_settings(settings, app), _queues(settings, app)]
        findings += await _checked(SERVERS[0], _database(engine, settings, app))
        findings += await _checked(SERVERS[1], _redis(redis))
        if {finding.check for finding in findings if finding.verdict == "fails"}.isdisjoint({*SERVERS, MIGRATIONS}):
            findings += await _checked("relay", examine_both(engine, redis))
    finally:
        await engine.dispose()
        await redis.aclose()
    return findings


def _settings(settings: Settings, app: App) -> Finding:
    queues = ", ".join(settings.queues)
    told = f"{len(app.jobs)} jobs of {settings.app}, concurrency {settings.concurrency}, queues {queues}."
    return Finding("settings", "ok", told)


def _queues(settings: Settings, app: App) -> Finding:
    """Whether a worker with these settings reads the queues that its jobs name for themselves."""
    jobs = Counter(job.job_queue for job in app.jobs)
    unread = ", ".join(f"{queue} ({count})" for queue, count in sorted(jobs.items()) if queue not in settings.queues)
    if unread:
        hint = "add them, or see that another worker reads them"
        return Finding("queues", "warning", f"WORKER_QUEUES lacks the queues of some jobs: {unread}; {hint}.")
    return Finding("queues", "ok", "WORKER_QUEUES has the queue of every job.")


async def _checked(check: str, findings: Coroutine[Any, Any, list[Finding]]) -> list[Finding]:
    """A server that is away, or lets us look at too little, fails its check: the others are still made."""
    try:
        return await findings
    except (DatabaseAway, DBAPIError, RedisError) as error:
        code, sentence = ending(error)
        if code == FAILED:  # nobody expected that, and --debug tells where
            raise
        return [Finding(check, "fails", sentence)]


async def _database(engine: AsyncEngine, settings: Settings, app: App) -> list[Finding]:
    await reach_database(engine)
    return await examine_database(engine, settings, app.migrations)


async def _redis(redis: ArqRedis) -> list[Finding]:
    await reach_redis(redis)
    return await examine_redis(redis)
