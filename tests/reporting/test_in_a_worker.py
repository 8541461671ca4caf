"""What logs and Sentry tell of a real worker: from enqueue through outbox, relay, Redis and executor."""

import asyncio
import json
import logging
import pickle
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any, Literal, Protocol

import pytest
import sentry_sdk
import structlog
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from tests.reporting.conftest import StartReporting, settings_with
from tests.reporting.envelopes import SentryServer
from worker.app import App
from worker.errors import Snooze
from worker.handler import BatchHandler, Handler
from worker.job import Job
from worker.outbox import enqueue
from worker.reporting.start import start_reporting
from worker.reporting.trace import CRON_HEADER
from worker.retry import RetryPolicy
from worker.run import current_run
from worker.runtime import run_worker
from worker.schedule import Cron

SECRET = "swordfish"
ADDRESS = "ann@mail.example.org"


class Work(Job, name="test.work"):
    does: Literal["well", "fail", "fail once", "hang", "enqueue", "break the database", "log", "snooze once"]
    email: str = ADDRESS
    card: str = SECRET


async def work(job: Work, session: AsyncSession) -> None:
    first = current_run().attempt == 1
    match job.does:
        case "fail":
            raise ValueError(f"{job.card} of {job.email}")
        case "fail once" if first:
            raise ValueError(f"{job.card} of {job.email}")
        case "snooze once" if not await _seen_before(session):
            raise Snooze(timedelta(0), job.card)
        case "hang":
            await asyncio.Event().wait()
        case "enqueue":
            enqueue(session, Work(does="well"))
        case "break the database":
            await session.execute(text(f"select '{job.card}', :email"), {"email": job.email})
            await session.execute(text("select cast(:email as integer)"), {"email": job.email})
        case "log":
            structlog.get_logger("shop").info("asked", provider="bank")
            logging.getLogger("shop").info("asked")
        case _:
            return


async def _seen_before(session: AsyncSession) -> bool:
    """Whether this run has left a trace in the ledger."""
    mine = text("select status = 'snoozed' from worker.run where id = :id")
    return bool((await session.execute(mine, {"id": current_run().job_id})).scalar_one())


APP = App(
    handlers=[Handler(Work, work, retry=RetryPolicy(attempts=2, base=timedelta(0)), timeout=timedelta(seconds=2))],
    schedule=[Cron(Work(does="well"), "30 3 1 1 *", name="yearly")],
)


class Run(Protocol):
    async def __call__(self, **settings: object) -> None:
        """Run a worker until no job of the outbox is left to do."""
        ...


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(database_url.replace("postgresql://", "postgresql+asyncpg://"))
    yield engine
    await engine.dispose()


@pytest.fixture
def run(start: StartReporting, engine: AsyncEngine, database_url: str, redis_url: str) -> Run:
    async def run(**settings: object) -> None:
        given = {"database_url": database_url, "redis_url": redis_url, **settings}
        observers, left = start(schedule=APP.schedule, **given), True
        while left:
            # A retry may be due a moment after the burst has found nothing that is due.
            await run_worker(APP, settings_with(**given), observers, burst=True)
            async with engine.connect() as connection:
                left = (await connection.execute(text("select exists (select from worker.outbox)"))).scalar_one()

    return run


async def send(engine: AsyncEngine, *jobs: Work, headers: dict[str, str] | None = None) -> list[str]:
    async with AsyncSession(engine) as session, session.begin():
        return [enqueue(session, job, headers=headers) for job in jobs]


def outcomes(sentry: SentryServer) -> list[str]:
    return [transaction["tags"]["outcome"] for transaction in sentry.transactions()]


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


async def test_a_job_that_completes_is_one_transaction_and_no_event(
    engine: AsyncEngine, run: Run, sentry: SentryServer
) -> None:
    [job_id] = await send(engine, Work(does="well"))
    await run()
    [transaction] = sentry.transactions()
    assert (transaction["transaction"], transaction["tags"]["job_id"]) == ("test.work", job_id)
    assert sentry.events() == []
    assert sentry_sdk.get_client().get_integration("arq") is None


async def test_a_failure_that_is_tried_again_is_two_transactions_and_no_event(
    engine: AsyncEngine, run: Run, sentry: SentryServer
) -> None:
    await send(engine, Work(does="fail once"))
    await run()
    assert outcomes(sentry) == ["retrying", "completed"]
    assert [transaction["tags"]["attempt"] for transaction in sentry.transactions()] == ["1", "2"]
    assert sentry.events() == []


@pytest.mark.parametrize(("does", "error"), [("fail", "ValueError"), ("hang", "JobTimeout")])
async def test_exhausted_attempts_are_one_event(
    does: Literal["fail", "hang"], error: str, engine: AsyncEngine, run: Run, sentry: SentryServer
) -> None:
    [job_id] = await send(engine, Work(does=does))
    await run()
    [event] = sentry.events()
    assert event["exception"]["values"][-1]["type"] == error
    assert (event["tags"]["job_id"], event["tags"]["attempt"]) == (job_id, "2")
    assert event["fingerprint"] == [error, "test.work"]
    assert outcomes(sentry) == ["retrying", "dead"]


async def test_an_invalid_payload_is_one_event(engine: AsyncEngine, run: Run, sentry: SentryServer) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("select worker.enqueue('test.work', '{\"does\": 5}')"))
    await run()
    [event] = sentry.events()
    assert event["exception"]["values"][-1]["type"] == "InvalidPayload"
    assert outcomes(sentry) == ["dead"]


async def test_an_unreadable_message_is_one_event(redis: Redis, run: Run, sentry: SentryServer) -> None:
    await redis.set("arq:job:1", pickle.dumps({"f": "test.work", "k": {"email": ADDRESS}}))
    await redis.zadd("arq:queue", {"1": 1})
    await run()
    [event] = sentry.events()
    assert event["exception"]["values"][-1]["type"] == "InvalidPayload"
    assert event["tags"]["job_id"] == "1"
    assert ADDRESS not in sentry.everything()


async def test_an_unknown_job_is_one_event_with_its_name(
    redis: Redis, run: Run, sentry: SentryServer, capsys: pytest.CaptureFixture[str]
) -> None:
    await redis.set("arq:job:1", b'{"t":null,"f":"test.later","a":[],"k":{},"et":1}')
    await redis.zadd("arq:queue", {"1": 1})
    await run()
    [event] = sentry.events()
    assert event["tags"]["job"] == "test.later"
    assert [line["job"] for line in lines(capsys) if line["event"] == "unknown_job"] == ["test.later"]


async def test_a_job_goes_on_in_its_enqueuer_s_trace_and_so_does_what_it_enqueues(
    engine: AsyncEngine, run: Run, start: StartReporting, sentry: SentryServer, capsys: pytest.CaptureFixture[str]
) -> None:
    start()
    with sentry_sdk.start_transaction(name="POST /orders", op="http.server") as request:
        await send(engine, Work(does="enqueue"))
    await run()
    enqueuer, first, second = (transaction["contexts"]["trace"] for transaction in sentry.transactions())
    assert first["trace_id"] == second["trace_id"] == enqueuer["trace_id"] == request.trace_id
    assert (first["parent_span_id"], second["parent_span_id"]) == (enqueuer["span_id"], first["span_id"])
    completed = [line for line in lines(capsys) if line["event"] == "completed"]
    assert [line["trace_id"] for line in completed] == [request.trace_id] * 2


@pytest.mark.parametrize(("sampled", "rate"), [("1", "1e400"), ("1", "Infinity"), ("0", "-1e400")])
async def test_a_stranger_s_trace_that_the_sdk_can_t_read_costs_no_job(
    sampled: str, rate: str, engine: AsyncEngine, run: Run, sentry: SentryServer
) -> None:
    trace = f"{'1' * 32}-{'1' * 16}-{sampled}"
    [job_id] = await send(
        engine, Work(does="well"), headers={"sentry-trace": trace, "baggage": f"sentry-sample_rate={rate}"}
    )
    await run()
    [transaction] = sentry.transactions()
    assert (transaction["tags"]["job_id"], transaction["tags"]["outcome"]) == (job_id, "completed")


async def test_every_line_inside_a_handler_says_which_job_it_is_of(
    engine: AsyncEngine, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    [job_id] = await send(engine, Work(does="log"))
    await run()
    told = [line for line in lines(capsys) if line["event"] in {"asked", "completed"}]
    assert [line["event"] for line in told] == ["asked", "asked", "completed"]
    for line in told:
        assert (line["job"], line["job_id"], line["queue"], line["attempt"]) == ("test.work", job_id, "arq:queue", 1)
    assert len({line["trace_id"] for line in told}) == 1


async def test_every_line_of_a_batch_says_of_which_jobs_it_is_by_their_name(
    engine: AsyncEngine, database_url: str, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def work_on_all(_jobs: Sequence[Work], _session: AsyncSession) -> None:
        structlog.get_logger("shop").info("asked", provider="bank")
        logging.getLogger("shop").info("asked")

    settings = settings_with(database_url=database_url, redis_url=redis_url)
    await send(engine, Work(does="well"), Work(does="well"))
    batches = App(handlers=[BatchHandler(Work, work_on_all)])
    await run_worker(batches, settings, start_reporting(settings), burst=True)
    asked = [line for line in lines(capsys) if line["event"] == "asked"]
    assert {line["job"] for line in asked} == {"test.work"}
    assert not any("job_id" in line for line in asked)


async def test_a_cron_job_s_check_in_is_closed_when_its_last_attempt_ends(
    engine: AsyncEngine, run: Run, sentry: SentryServer
) -> None:
    await send(engine, Work(does="fail once"), headers={CRON_HEADER: "yearly"})
    await send(engine, Work(does="fail"), headers={CRON_HEADER: "yearly"})
    await run()
    runs: dict[str, list[str]] = {}
    for check_in in sentry.check_ins():
        assert check_in["monitor_config"]["schedule"]["value"] == "30 3 1 1 *"
        runs.setdefault(check_in["check_in_id"], []).append(check_in["status"])
    assert sorted(runs.values()) == [["in_progress", "in_progress", "error"], ["in_progress", "in_progress", "ok"]]


async def test_the_queries_of_a_job_are_spans_of_its_transaction(
    engine: AsyncEngine, run: Run, sentry: SentryServer
) -> None:
    await send(engine, Work(does="snooze once"))
    await run()
    assert outcomes(sentry) == ["snoozed", "completed"]
    mine = [span["description"] for span in sentry.transactions()[0]["spans"] if span["op"] == "db"]
    assert any(query.startswith("select status = '…' from worker.run where id = $1") for query in mine)


async def test_nothing_that_a_job_carries_is_logged_or_leaves(
    engine: AsyncEngine, run: Run, sentry: SentryServer, capsys: pytest.CaptureFixture[str]
) -> None:
    await send(
        engine,
        *(
            Work(does=does)
            for does in ("well", "fail", "fail once", "hang", "enqueue", "log", "snooze once", "break the database")
        ),
    )
    await run(log_level="debug")
    assert len(sentry.events()) == 3
    written = capsys.readouterr().err
    assert "DBAPIError" in written
    for hidden in (SECRET, ADDRESS):
        assert hidden not in written
        assert hidden not in sentry.everything()
