"""Enqueue: a job is data, and leaves with your transaction or not at all."""

import json
from collections.abc import Sequence
from datetime import timedelta

import pytest
from arq.connections import ArqRedis, RedisSettings, create_pool
from pydantic import ValidationError
from redis.asyncio import Redis
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError, UnboundExecutionError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from jobs.users.models import User
from worker.broker import connect_broker
from worker.database import create_engine
from worker.dev import EmbeddedPostgres, EmbeddedServerError
from worker.job import Job
from worker.models import Outbox
from worker.outbox import enqueue, enqueue_many
from worker.queue import Queue
from worker.testing import enqueued


class Welcome(Job, name="users.welcome"):
    """Write to a new user."""

    user_id: int
    language: str = "en"


def test_a_job_is_a_frozen_model_whose_payload_is_json() -> None:
    """It is checked where it is made, long before a worker sees it."""
    assert Welcome(user_id=7).to_payload() == b'{"user_id":7,"language":"en"}'
    with pytest.raises(ValidationError):
        Welcome.model_validate({"user_id": "seven"})


# --- in your transaction ----------------------------------------------------------------------------------------------


async def sign_up(sessions: async_sessionmaker[AsyncSession], email: str, name: str) -> int:
    """What a route of a web application does."""
    async with sessions.begin() as session:
        user = User(email=email, name=name)
        session.add(user)
        await session.flush()  # gives the id
        enqueue(session, Welcome(user_id=user.id))
    return user.id


async def test_the_job_is_committed_with_the_row(engine: AsyncEngine) -> None:
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    user_id = await sign_up(sessions, "ada@example.com", "Ada")
    async with sessions() as session:
        assert await enqueued(session, Welcome) == [Welcome(user_id=user_id)]


async def test_what_rolls_back_enqueues_nothing(engine: AsyncEngine) -> None:
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    await sign_up(sessions, "ada@example.com", "Ada")
    with pytest.raises(IntegrityError):
        await sign_up(sessions, "ADA@example.com", "Another")
    async with sessions() as session:
        assert await session.scalar(select(func.count()).select_from(User)) == 1
        assert len(await enqueued(session, Welcome)) == 1


async def test_many_jobs_leave_in_few_statements(session: AsyncSession) -> None:
    """The ids come back in the order of the jobs."""
    ids = enqueue_many(session, [Welcome(user_id=number) for number in range(1, 1_001)])
    assert len(set(ids)) == 1_000
    assert len(await enqueued(session, Welcome)) == 1_000


async def test_a_plain_session_enqueues_too(session: AsyncSession) -> None:
    """`enqueue` isn't a coroutine: it adds a row to the session and asks nothing of the server."""

    def in_synchronous_code(plain: Session) -> str:
        return enqueue(plain, Welcome(user_id=7), delay=timedelta(minutes=5))

    await session.run_sync(in_synchronous_code)
    assert await enqueued(session, Welcome) == [Welcome(user_id=7)]


async def test_what_is_pending_is_dropped_by_expunge_all(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session, session.begin():
        enqueue(session, Welcome(user_id=7))
        await session.flush()
        enqueue(session, Welcome(user_id=8))
        session.expunge_all()
    async with AsyncSession(engine) as session:
        assert await enqueued(session, Welcome) == [Welcome(user_id=7)]


async def test_a_session_with_binds_needs_one_for_the_outbox(engine: AsyncEngine) -> None:
    async with AsyncSession(binds={User: engine}) as session:
        enqueue(session, Welcome(user_id=7))
        with pytest.raises(UnboundExecutionError):
            await session.flush()
    async with AsyncSession(binds={User: engine, Outbox: engine}) as session, session.begin():
        enqueue(session, Welcome(user_id=7))
    async with AsyncSession(engine) as session:
        assert await enqueued(session, Welcome) == [Welcome(user_id=7)]


# --- from SQL ---------------------------------------------------------------------------------------------------------

FROM_SQL = """
with ada as (insert into users (email, name) values ('ada@example.com', 'Ada') returning id)
select worker.enqueue('users.welcome', jsonb_build_object('user_id', id)) from ada;
"""

PRODUCER = """
grant worker_producer to shop;
"""

PYTHON_PRODUCER = """
grant usage on schema worker to web;
grant insert, select (seq) on worker.outbox to web;
"""


async def test_any_language_enqueues_in_its_own_transaction(server: EmbeddedPostgres, session: AsyncSession) -> None:
    server.psql(f"begin; {FROM_SQL} rollback;", database="app")
    assert await enqueued(session, Welcome) == []
    server.psql(FROM_SQL, database="app")
    [job] = await enqueued(session, Welcome)
    assert (await session.get_one(User, job.user_id)).name == "Ada"


async def test_a_producer_may_enqueue_and_nothing_else(server: EmbeddedPostgres, session: AsyncSession) -> None:
    server.psql("create role shop", PRODUCER, database="app")
    call = "select worker.enqueue('users.welcome', '{\"user_id\": 7}')"
    server.psql(f"set role shop; {call};", database="app")
    assert await enqueued(session, Welcome) == [Welcome(user_id=7)]
    with pytest.raises(EmbeddedServerError, match="permission denied"):
        server.psql("set role shop; select from worker.outbox;", database="app")


async def test_a_python_producer_needs_two_grants(server: EmbeddedPostgres, session: AsyncSession) -> None:
    """Each of them, and what they don't allow: tests/test_python_producer.py."""
    server.psql("create role web login", PYTHON_PRODUCER, database="app")
    web = create_engine(server.database_url("app").replace("postgres@", "web@"), pool_size=1)
    async with AsyncSession(web) as theirs, theirs.begin():
        enqueue(theirs, Welcome(user_id=7))
    await web.dispose()
    assert await enqueued(session, Welcome) == [Welcome(user_id=7)]


# --- without a transaction --------------------------------------------------------------------------------------------


async def remind(redis: Redis, user_id: int) -> str | None:
    """Straight to Redis. None: this id is queued already, or has a result."""
    return await Queue(redis).enqueue(Welcome(user_id=user_id), job_id=f"welcome-{user_id}")


async def test_a_queue_takes_an_id_once(redis: Redis) -> None:
    assert await remind(redis, 7) == "welcome-7"
    assert await remind(redis, 7) is None


async def remind_all(redis_url: str, user_ids: Sequence[int]) -> list[str]:
    """In few round trips."""
    async with connect_broker(redis_url) as redis:
        return await Queue(redis).enqueue_many(Welcome(user_id=user_id) for user_id in user_ids)


async def test_many_go_together(redis: Redis, redis_url: str) -> None:
    job_ids = await remind_all(redis_url, [7, 8])
    assert await redis.zcard("arq:queue") == len(set(job_ids)) == 2


async def plain_arq(redis_url: str) -> ArqRedis:
    """JSON both ways: a pickle is never loaded, and no result is one."""
    return await create_pool(
        RedisSettings.from_dsn(redis_url),
        job_serializer=lambda message: json.dumps(message).encode(),
        job_deserializer=json.loads,
    )


async def send_with_plain_arq(redis: ArqRedis) -> str:
    """The payload goes by keyword."""
    job = await redis.enqueue_job("users.welcome", user_id=7)
    assert job is not None
    return job.job_id


async def test_plain_arq_enqueues_too(redis: Redis, redis_url: str) -> None:
    """It reads results as well: tests/consumer/test_arq_clients.py."""
    client = await plain_arq(redis_url)
    job_id = await send_with_plain_arq(client)
    await client.aclose()
    message = json.loads(await redis.get(f"arq:job:{job_id}"))
    assert (message["f"], message["k"]) == ("users.welcome", {"user_id": 7})
