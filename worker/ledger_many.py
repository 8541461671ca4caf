"""The ledger for many jobs at once. Each function is one statement, however many there are: ledger.py over arrays."""

import time
from collections.abc import Sequence
from datetime import timedelta

from worker.driver import Driver
from worker.errors import TransactionEnded
from worker.ledger import FINAL, IS_ITS_OWN, Begun, Ended, Identity, NotDue, Timeouts, milliseconds, timeout_columns

# The rules are those of ledger.py's begin. New runs are inserted in the order of their keys, so that two batches can't
# wait for each other. A run that is there already and that somebody holds is passed over; one that somebody is just
# inserting is waited for. What isn't returned is held, or isn't admitted. The timeouts are set when all is locked.
# Outbox rows are counted, since the planner would make a hash of the whole outbox to look for one in it.
# New direct runs are marked done at once, as ledger.py's may be. Numbers come as texts (lanes.numbers says why).
_BEGIN = f"""
with asked as (
    select * from unnest($1::text[], $2::text[]::bigint[], $3::text[], $4::text[], $5::text[]::boolean[])
        as given (id, enqueued_ms, name, queue, from_outbox)
), inserted as (
    insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox, result, finished_at)
    select id, enqueued_ms, name, queue, case when from_outbox then 'waiting' else 'completed' end, from_outbox,
        case when not from_outbox then 'null'::jsonb end, case when not from_outbox then clock_timestamp() end
    from asked
    where not from_outbox
        or (select count(*) from worker.outbox where id = asked.id and enqueued_ms = asked.enqueued_ms) > 0
    order by id, enqueued_ms
    on conflict do nothing
    returning id, enqueued_ms, status, attempt, result, error, next_at, created_at, not from_outbox as is_marked
), known as (
    select run.id, run.enqueued_ms, status, attempt, result, error, next_at, created_at, false
    from asked join worker.run on run.id = asked.id and run.enqueued_ms = asked.enqueued_ms
    where (select count(*) from inserted) < cardinality($1) and run.partitions is null and run.parent_id is null
    for update of run skip locked
), locked as (
    select * from inserted union all select * from known
), timeouts as materialized (
    select {timeout_columns("$6", "$7", "$8")}, pg_current_xact_id()::text as transaction
    from (select count(*) from locked) as all_are_locked
)
select id, enqueued_ms, status, attempt, result, error, created_at, next_at - clock_timestamp() as wait, is_marked,
    transaction
from locked cross join timeouts
"""  # noqa: S608 - put together from constants

_TAKE_ROWS = f"""
delete from worker.outbox using unnest($1::text[], $2::text[]::bigint[]) as given (id, enqueued_ms)
where outbox.id = given.id and outbox.enqueued_ms = given.enqueued_ms and {IS_ITS_OWN}
"""  # noqa: S608 - as above

_COMPLETE = f"""
with given as (
    select * from unnest($1::text[], $2::text[]::bigint[], $4::text[]) as given (id, enqueued_ms, result)
), marked as (
    update worker.run set status = 'completed', result = given.result::jsonb, next_at = null, error = null,
        finished_at = clock_timestamp()
    from given where run.id = given.id and run.enqueued_ms = given.enqueued_ms
        and pg_current_xact_id()::text = $3::text
    returning run.id, run.enqueued_ms
), taken as (
    delete from worker.outbox using marked
    where outbox.id = marked.id and outbox.enqueued_ms = marked.enqueued_ms
        and {IS_ITS_OWN}
)
select count(*) from marked
"""  # noqa: S608 - as above


async def begin(driver: Driver, runs: Sequence[Identity], timeouts: Timeouts) -> list[Begun | Ended | NotDue | None]:
    """Insert or lock the runs, and set the transaction's timeouts. None: it isn't to be had; `ledger.begin` says why.

    Raises asyncpg's error with SQLSTATE 55P03 where another transaction is inserting one of them and doesn't end.
    """
    given = (
        *_keys(runs),
        [run.name for run in runs],
        [run.queue for run in runs],
        [str(run.from_outbox) for run in runs],
        *milliseconds(timeouts).values(),
    )
    found: dict[tuple[str, int], Begun | Ended | NotDue] = {}
    rows, now = await driver.fetch(_BEGIN, *given), time.monotonic()
    for job_id, enqueued_ms, status, failures, result, error, created_at, wait, is_marked, transaction in rows:
        if status in FINAL and not is_marked:
            found[job_id, enqueued_ms] = Ended(status, result, error)
        elif wait is not None and wait > timedelta(0):
            found[job_id, enqueued_ms] = NotDue(wait)
        else:
            found[job_id, enqueued_ms] = Begun(failures, created_at, transaction, now if is_marked else None)
    return [found.get((run.job_id, run.enqueued_ms)) for run in runs]


async def take_rows(driver: Driver, runs: Sequence[Identity]) -> None:
    """Take away the outbox rows of jobs that are final."""
    await driver.execute(_TAKE_ROWS, *_keys(runs))


async def complete(driver: Driver, done: Sequence[tuple[Identity, str]], transaction: str) -> None:
    """Mark the runs done, each with its result as JSON, and take their outbox rows away. Raises TransactionEnded."""
    runs, results = [run for run, _ in done], [result for _, result in done]
    if await driver.fetchval(_COMPLETE, *_keys(runs), transaction, results) != len(runs):
        raise TransactionEnded


def _keys(runs: Sequence[Identity]) -> tuple[list[str], list[str]]:
    return [run.job_id for run in runs], [str(run.enqueued_ms) for run in runs]
