"""Whatever happens in whatever order, the ledger says what a model of ten lines says, and nothing is applied twice.

hypothesis chooses what happens; the parts, and both servers, are real. A failure prints the steps, and a blob that
repeats them. `make test ARGS="tests/model -n0 --hypothesis-seed=N"` runs a seed, which pytest names at its start.
"""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Literal

from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import sampled_from
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.outbox.conftest import EMPTY
from tests.outbox.hands import Hands, Play, Stage
from worker.broker import connect_broker
from worker.cancel import cancel
from worker.chunk import Chunk
from worker.claim import Claim
from worker.database import create_engine
from worker.operations import UnknownIdError, WrongStatusError, replay
from worker.prune import Prune, delivered_in, prune
from worker.queue import Queue

ATTEMPTS = 3
QUEUE = "arq:queue"
Does = Literal["well", "fail", "fail once"]


@dataclass
class Job:
    """The model: what is known of one job."""

    does: Does
    from_outbox: bool
    state: Literal["open", "completed", "dead", "cancelled", "lost"] = "open"
    failures: int = 0

    def is_carried_out(self) -> None:
        if self.state in {"open", "lost"}:  # who has claimed it has the message, whatever becomes of Redis
            fails = self.does == "fail" or (self.does == "fail once" and self.failures == 0)
            self.failures += fails
            self.from_outbox |= fails
            self.state = "open" if fails and self.failures < ATTEMPTS else "dead" if fails else "completed"


class Life(RuleBasedStateMachine):
    """Of some jobs, with as many workers as there are claims."""

    jobs: Bundle[str] = Bundle("jobs")
    claims: Bundle[Claim] = Bundle("claims")

    def __init__(self, hands: Hands, runner: asyncio.Runner, redis_url: str) -> None:
        super().__init__()
        self.hands = hands
        self.runner = runner
        self.redis_url = redis_url
        self.model: dict[str, Job] = {}
        self.pruned: set[str] = set()

    def do(self, awaitable: Any) -> Any:
        async def done() -> Any:
            return await awaitable

        return self.runner.run(done())

    @initialize()
    def nothing_is_there(self) -> None:
        self.do(self.empty())

    async def empty(self) -> None:
        async with self.hands.engine.begin() as connection:
            for statement in EMPTY:
                await connection.execute(text(statement))

    @rule(target=jobs, does=sampled_from(["well", "fail", "fail once"]))
    def enqueue(self, does: Does) -> str:
        [job_id] = self.do(self.hands.enqueue(Play(does=does)))
        self.model[job_id] = Job(does, from_outbox=True)
        return str(job_id)

    @rule(target=jobs, does=sampled_from(["well", "fail", "fail once"]))
    def enqueue_directly(self, does: Does) -> str:
        job_id = self.do(Queue(self.hands.redis).enqueue(Play(does=does)))
        self.model[job_id] = Job(does, from_outbox=False)
        return str(job_id)

    @rule(target=claims)
    def claim(self) -> Any:
        self.do(self.hands.relay.drain())
        return multiple(*self.do(self.hands.take(2)))

    @rule(claim=consumes(claims))
    def finish(self, claim: Claim) -> None:
        """Carry it out and acknowledge it; a worker whose lease was lost does so in vain."""
        self.do(self.hands.finish(claim))
        self.model[claim.job_id].is_carried_out()

    @rule(claim=claims)
    def redeliver(self, claim: Claim) -> None:
        """Its worker dies after the commit, or another one has the same message."""
        self.do(self.hands.carry_out(claim))
        self.model[claim.job_id].is_carried_out()

    @rule(claim=consumes(claims))
    def crash(self, claim: Claim) -> None:
        """Before the commit. The lease runs out."""
        self.do(self.expire(claim.job_id))

    @rule(claim=claims)
    def stop(self, claim: Claim) -> None:
        """The lease runs out while its worker is stopped, which goes on some time later."""
        self.do(self.expire(claim.job_id))

    async def expire(self, *job_ids: str) -> None:
        for job_id in job_ids:
            await self.hands.redis.delete(f"arq:in-progress:{job_id}")
            await self.hands.redis.zadd(f"ratchet:leases:{QUEUE}", {job_id: 1}, xx=True)
            await self.hands.redis.zadd(QUEUE, {job_id: 1}, xx=True)

    @rule(job_id=jobs)
    def replay(self, job_id: str) -> None:
        job = self.model[job_id]
        try:
            self.do(replay(self.hands.engine, job_id))
        except (UnknownIdError, WrongStatusError):
            assert job.state != "dead"
        else:
            assert job.state == "dead"
            job.state, job.failures, job.from_outbox = "open", 0, True

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        job = self.model[job_id]
        if job_id in self.pruned:  # nothing is known of it, so a message that still lies in Redis counts as a new job
            return
        try:
            self.do(cancel(self.hands.engine, self.hands.redis, job_id, [QUEUE]))
        except (UnknownIdError, WrongStatusError):
            assert job.state != "open"
        else:
            assert job.state == "open"
            job.state = "cancelled"

    @rule()
    def prune(self) -> None:
        self.do(self.prune_all())

    async def prune_all(self) -> None:
        async with AsyncSession(self.hands.engine) as session, session.begin():
            delivered = partial(delivered_in, lambda: self.redis_url)
            await prune(Prune(keep_for=timedelta(0)), session, Chunk(None, 1_000), still_delivered=delivered)
        known = {run.id for run in await self.hands.runs("id, created_at, enqueued_ms")}
        self.pruned |= {job_id for job_id, job in self.model.items() if job.state in {"completed", "cancelled"}} - known

    @rule()
    def wipe(self) -> None:
        """Lost is what only Redis knew."""
        self.do(self.hands.redis.flushall())
        for job in self.model.values():
            if job.state == "open" and not job.from_outbox:
                job.state = "lost"

    @invariant()
    def each_is_as_the_model_says(self) -> None:
        seen = self.do(self.hands.sql(LOOK))[0]
        runs: dict[str, str] = dict(seen.runs)
        assert seen.applied == sorted(job_id for job_id, job in self.model.items() if job.state == "completed")
        assert seen.rows == sorted(
            job_id for job_id, job in self.model.items() if job.state == "open" and job.from_outbox
        )
        for job_id, job in self.model.items():
            if job_id in self.pruned or job.state == "lost":
                assert job_id not in runs
            elif job.state == "open":
                assert runs.get(job_id, "waiting") in {"waiting", "retrying"}
            else:
                assert runs[job_id] == job.state

    def teardown(self) -> None:
        """A healthy worker has its turn: nothing stays open, and Redis has nothing left."""
        try:
            self.do(self.expire(*self.model))
            self.do(self.hands.work())
            for job in self.model.values():
                while job.state == "open":
                    job.is_carried_out()
            self.each_is_as_the_model_says()
            assert self.do(self.hands.redis.zcard(QUEUE)) == 0
            assert self.do(self.hands.redis.keys("arq:job:*")) == []
        finally:
            self.do(self.hands.redis.flushall())


LOOK = """
select array(select id from applied order by id) as applied, array(select id from worker.outbox order by id) as rows,
    array(select array[id, status] from worker.run) as runs
"""


def test_the_ledger_is_as_the_model_says(hands_url: str, redis_url: str) -> None:
    with asyncio.Runner() as runner:

        async def made() -> Hands:
            return Hands(create_engine(hands_url, pool_size=3), connect_broker(redis_url), Stage())

        hands = runner.run(made())
        try:
            run_state_machine_as_test(
                partial(Life, hands, runner, redis_url),  # type: ignore[arg-type]  # whatever makes one will do
                settings=settings(
                    max_examples=12,
                    derandomize=True,  # the same lives each time: whoever wants others takes this line out
                    stateful_step_count=25,
                    deadline=None,
                    database=None,
                    print_blob=True,
                    suppress_health_check=[HealthCheck.too_slow],
                ),
            )
        finally:
            runner.run(hands.redis.aclose())
            runner.run(hands.engine.dispose())
