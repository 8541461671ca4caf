"""worker.prune: what it deletes, and what it keeps."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.support.reading import noted, rows_read
from worker import prune
from worker.app import App
from worker.broker import connect_broker
from worker.database import create_engine
from worker.outbox import enqueue
from worker.queue import Queue
from worker.testing import drain
from worker.wire import Message, decode, encode

OLD_RUN = """
insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox, finished_at)
values (:id, :ms, 'any', 'arq:queue', :status, :from_outbox, now() - make_interval(days => :age))
"""
OLD_ATTEMPT = """
insert into worker.attempt (id, enqueued_ms, attempt, error, traceback, worker) values ('old', 1, 1, '', '', '')
"""
OLD_REJECT = "insert into worker.reject (id, enqueued_ms, line, reason, row) values ('old', 1, 2, '', '')"
OLD_TICK = "insert into worker.cron_tick (name, scheduled_at) values (:name, now() - make_interval(days => :age))"


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url, pool_size=3, application="ratchet test")
    yield engine
    await engine.dispose()


async def run_ids(engine: AsyncEngine) -> set[str]:
    async with engine.connect() as connection:
        found = await connection.execute(text("select id from worker.run where name = 'any'"))
        return set(found.scalars())


async def pruned(engine: AsyncEngine, redis_url: str) -> object:
    """Run it once and return its result."""
    app = App(handlers=prune.handlers(lambda: redis_url))
    async with AsyncSession(engine) as session, session.begin():
        job_id = enqueue(session, prune.Prune(keep_for=timedelta(days=30)))
    await drain(app, engine)
    async with engine.connect() as connection:
        found = await connection.execute(text("select result from worker.run where id = :id"), {"id": job_id})
        return found.scalar_one()


async def keep_run(
    engine: AsyncEngine,
    job_id: str,
    *,
    status: str = "completed",
    age: int = 31,
    ms: int = 1,
    outbox: bool = True,
) -> None:
    values = {"id": job_id, "ms": ms, "status": status, "age": age, "from_outbox": outbox}
    async with engine.begin() as connection:
        await connection.execute(text(OLD_RUN), values)


async def test_runs_that_ended_long_ago_are_pruned_and_dead_ones_are_kept(engine: AsyncEngine, redis_url: str) -> None:
    for status in ("completed", "cancelled", "discarded", "dead"):
        await keep_run(engine, f"old {status}", status=status)
    await keep_run(engine, "young", age=29)
    assert await pruned(engine, redis_url) == {"pruned": 3}
    assert await run_ids(engine) == {"old dead", "young"}


async def test_attempts_and_rejects_go_with_their_run(engine: AsyncEngine, redis_url: str) -> None:
    await keep_run(engine, "old")
    async with engine.begin() as connection:
        for statement in (OLD_ATTEMPT, OLD_REJECT):
            await connection.execute(text(statement))
    await pruned(engine, redis_url)
    async with engine.connect() as connection:
        left = await connection.execute(text("select id from worker.attempt union all select id from worker.reject"))
        assert left.all() == []


async def test_a_direct_run_is_kept_while_its_very_message_lies_in_redis(
    engine: AsyncEngine, redis: Redis, redis_url: str
) -> None:
    client = connect_broker(redis_url)
    try:
        sent = await Queue(client).enqueue(prune.Prune(), job_id="still-there")
        message: bytes = await client.get("arq:job:still-there")
    finally:
        await client.aclose()
    assert sent
    enqueued_ms = decode(message).enqueued_ms
    await keep_run(engine, "still-there", ms=enqueued_ms, outbox=False)
    await keep_run(engine, "still-there", ms=enqueued_ms - 1, outbox=False)
    await keep_run(engine, "gone", outbox=False)
    assert await pruned(engine, redis_url) == {"pruned": 2}
    assert await run_ids(engine) == {"still-there"}
    await redis.flushall()


async def test_an_app_that_names_no_redis_has_that_of_the_environment(
    engine: AsyncEngine, redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    assert prune.of_environment() == "redis://localhost:6379"
    monkeypatch.setenv("REDIS_URL", redis_url)
    message = encode(Message("any", b"{}", 1))
    await redis.set("arq:job:still-there", message)
    await keep_run(engine, "still-there", outbox=False)
    async with AsyncSession(engine) as session, session.begin():
        enqueue(session, prune.Prune())
    await drain(App(handlers=prune.handlers()), engine)
    assert await run_ids(engine) == {"still-there"}
    await redis.flushall()


async def test_the_last_tick_of_each_cron_entry_is_kept(engine: AsyncEngine, redis_url: str) -> None:
    async with engine.begin() as connection:
        for name, age in (("a", 40), ("a", 35), ("b", 50), ("c", 60), ("c", 1)):
            await connection.execute(text(OLD_TICK), {"name": name, "age": age})
    await pruned(engine, redis_url)
    async with engine.connect() as connection:
        kept = await connection.execute(
            text("select name, (now() - scheduled_at) < interval '36 days' from worker.cron_tick")
        )
        assert sorted(kept.all()) == [("a", True), ("b", False), ("c", True)]


async def test_it_goes_on_behind_what_it_keeps_chunk_by_chunk(engine: AsyncEngine, redis_url: str) -> None:
    async with engine.begin() as connection:
        await connection.execute(
            text("""
            insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox, finished_at)
            select n::text, n, 'any', 'arq:queue', 'completed', true, now() - interval '1 year'
            from generate_series(1, 2500) as n
            """)
        )
    assert await pruned(engine, redis_url) == {"pruned": 2_500}
    assert await run_ids(engine) == set()


async def test_a_page_is_compared_with_its_own_rows_of_the_outbox_and_not_with_all_before_them(
    engine: AsyncEngine, redis_url: str
) -> None:
    fill = """
    insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox, finished_at)
    select 'run ' || n, n, 'any', 'arq:queue', 'completed', true, now() - interval '1 year'
    from generate_series(1, 5000) as n
    """
    waiting = """
    insert into worker.outbox (id, enqueued_ms, name, queue, message, due_at)
    select 'before ' || n, n, 'any', 'arq:queue', 'x', now() + interval '1 day' from generate_series(1, 20000) as n
    """
    async with engine.begin() as connection:
        await connection.execute(text(waiting))
    with noted(engine) as sent:
        async with AsyncSession(engine) as session, session.begin():
            enqueue(session, prune.Prune())
        await drain(App(handlers=prune.handlers(lambda: redis_url)), engine)
    async with engine.begin() as connection:
        await connection.execute(text(fill))
        await connection.execute(text("analyze worker.run, worker.outbox"))
    [page] = (each for each in sent if "order by id, enqueued_ms limit" in each.statement)
    assert await rows_read(engine, page) <= 10_000


async def test_a_run_whose_job_id_was_enqueued_again_stays_until_that_is_a_duplicate(
    engine: AsyncEngine, redis_url: str
) -> None:
    await keep_run(engine, "chosen", ms=0)
    async with AsyncSession(engine) as session, session.begin():
        enqueue(session, prune.Prune(), job_id="chosen", delay=timedelta(hours=1))
    assert await pruned(engine, redis_url) == {"pruned": 0}
    assert await run_ids(engine) == {"chosen"}
    async with engine.begin() as connection:
        await connection.execute(text("delete from worker.outbox where id = 'chosen'"))
    assert await pruned(engine, redis_url) == {"pruned": 1}


async def test_messages_that_nobody_can_read_are_told_apart_by_their_bytes(
    engine: AsyncEngine, redis: Redis, redis_url: str
) -> None:
    for number, raw in enumerate((b"no JSON", b"another"), 1):
        await keep_run(engine, f"odd {number}", ms=decode(raw).enqueued_ms, outbox=False)
    await redis.set("arq:job:odd 1", b"no JSON")
    await redis.set("arq:job:odd 2", b"changed since")
    await redis.hset("arq:job:list", "no", "message at all")  # type: ignore[misc]  # redis-py's stubs: maybe awaitable
    await keep_run(engine, "list", outbox=False)
    assert await pruned(engine, redis_url) == {"pruned": 2}
    assert await run_ids(engine) == {"odd 1"}
    await redis.flushall()


async def test_partitions_go_with_their_job_and_stay_with_it(engine: AsyncEngine, redis_url: str) -> None:
    """Of two old jobs one is completed, and one is dead: it can be replayed, with what its partitions have done."""
    for job_id, status in (("done", "completed"), ("dead", "dead")):
        await keep_run(engine, job_id, status=status)
        for number, part in ((1, "completed"), (2, status)):
            await keep_run(engine, f"{job_id}:{number}", status=part)
    async with engine.begin() as connection:
        await connection.execute(text("update worker.run set parent_id = split_part(id, ':', 1) where id like '%:%'"))
    assert await pruned(engine, redis_url) == {"pruned": 1}
    assert await run_ids(engine) == {"dead", "dead:1", "dead:2"}
