"""Bulk work for authors of jobs: many rows in few statements, in the job's own session and transaction.

    await copy_rows(session, User, [User.email, User.name], rows)
    done = await upsert(session, User, [User.email, User.name], rows, key=[func.lower(User.email)])
    await update_many(session, User, [User.id, User.name], rows)
    async for rows in stream(session, select(User.id, User.email)): ...

Each flushes the session first, opens its transaction where nothing has, and never commits: what they wrote is rolled
back with everything else. Objects that the session has loaded aren't refreshed. They need SQLAlchemy over asyncpg, and
work in a handler, in `worker.testing.perform` and in any other AsyncSession. What each was measured against is in
`docs/adr/0017-bulk-writes.md`.
"""

from worker.bulk.copying import copy_rows
from worker.bulk.streaming import AnySelect, copy_csv, copy_ndjson, stream
from worker.bulk.updating import update_many
from worker.bulk.upserting import Upserted, upsert

__all__ = ["AnySelect", "Upserted", "copy_csv", "copy_ndjson", "copy_rows", "stream", "update_many", "upsert"]
