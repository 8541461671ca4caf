"""Brief transactions, for relay and schedule: a worker that was stopped inside of one holds up nobody for long.

And nothing that is brief waits for ever. The kernel finds out that the server's host is gone; but a proxy in between
(PgBouncer, a mesh's, a cloud's) goes on acknowledging what it can't deliver. Attempts have their timeouts. A relay that
waited would look as one that has nothing to do.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.database import RuntimePool
from worker.driver import transport_of

IDLE_LIMIT_MS = 5_000
"""After so long without a statement PostgreSQL ends the transaction, and with it its locks."""
ANSWERS_WITHIN_S = 60.0
"""What is brief takes milliseconds, beside the waits that have limits of their own: for a lock, and for Redis."""
BRIEF = 0x7261746368_62
"""The advisory lock that all brief transactions share, which tells them from others. ("ratchb" in ASCII.)

Whoever may connect may hold it: it is tried for, and never waited for.
"""
STUCK_S = 15
"""After so long a client that takes nothing of what it asked for counts as stopped."""

# The outbox fills and empties, and what the planner knows of it is often wrong: then it reads the whole table for
# each row, or all that waits, and sorts it, for one batch. Every statement here has its index, in the order that it
# needs. What Redis refused may be many: the relay's `not in` hashes them only where it expects them to fit, by default
# 262,144, and goes through them for each row where it doesn't.
_PREPARE = text("""
select set_config('idle_in_transaction_session_timeout', :limit, true),
    set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
    set_config('jit', 'off', true),
    set_config('hash_mem_multiplier', '64', true), pg_try_advisory_xact_lock_shared(:brief)
""")
# Where rows are larger than what the system holds between server and client, the server waits for its client in the
# middle of a statement. No timeout of PostgreSQL's ends that. A handler's, which may be a slow export, isn't meant, nor
# is another role's: a member of pg_monitor sees it, and to end it would be an error.
_STUCK = """
select count(pg_terminate_backend(pid)) from pg_locks join pg_stat_activity as activity using (pid)
where locktype = 'advisory' and objsubid = 1 and classid::bigint << 32 | objid::bigint = :brief
    and pg_locks.database = activity.datid and activity.datname = current_database()
    and wait_event = 'ClientWrite' and query_start < clock_timestamp() - make_interval(secs => :stuck)
    and pg_has_role(usesysid, 'usage')
"""
_END_STUCK = text(_STUCK)
# The turn is a row's lock. An advisory one is everybody's who may connect, and whoever holds it holds up all relays.
_TURN = "select from worker.relay_state for no key update"
_TRY_TURN, _WAIT_FOR_TURN = text(f"{_TURN} skip locked"), text(_TURN)


@asynccontextmanager
async def brief_connection(engine: AsyncEngine) -> AsyncGenerator[AsyncConnection]:
    """A connection for something brief, which is lost where that takes too long.

    Aborted, not cancelled: asyncpg would wait for the answer to its cancellation.
    """
    late: asyncio.TimerHandle | None = None
    try:
        async with engine.connect() as connected:
            # As database.read_committed: who holds a turn must see what was committed meanwhile, and may change it.
            connection = await connected.execution_options(isolation_level="READ COMMITTED")
            if isinstance(engine.pool, RuntimePool):  # an engine of somebody else's has another driver
                driver = (await connection.get_raw_connection()).driver_connection
                late = asyncio.get_running_loop().call_later(ANSWERS_WITHIN_S, transport_of(driver).abort)
            yield connection
    finally:
        if late is not None:
            late.cancel()


@asynccontextmanager
async def brief_transaction(engine: AsyncEngine) -> AsyncGenerator[AsyncConnection]:
    """A transaction that may not idle and uses indexes. Commits at its end, unless something raises."""
    async with brief_connection(engine) as connection, connection.begin():
        await connection.execute(_PREPARE, {"limit": str(IDLE_LIMIT_MS), "brief": BRIEF})
        yield connection


async def end_stuck(connection: AsyncConnection) -> None:
    """End the brief transactions of workers that were stopped while PostgreSQL answered, and with them their locks."""
    _say_ended((await connection.execute(_END_STUCK, {"brief": BRIEF, "stuck": STUCK_S})).scalar_one())


def _say_ended(ended: int) -> None:
    if ended:
        structlog.get_logger("worker.brief").warning("zombie_ended", backends=ended)


@asynccontextmanager
async def turn(engine: AsyncEngine) -> AsyncGenerator[AsyncConnection]:
    """A brief transaction that no two relays of a database are in at once. Ends one that is stuck in its turn.

    Raises DBAPIError with SQLSTATE 55P03 where another one's takes longer than the lock timeout.
    """
    async with brief_transaction(engine) as connection:
        if (await connection.execute(_TRY_TURN)).rowcount == 0:
            await end_stuck(connection)
            await connection.execute(_WAIT_FOR_TURN)
        yield connection
