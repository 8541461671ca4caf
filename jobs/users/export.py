"""users.export: streamed from a server-side cursor into a file that appears whole or not at all."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from jobs.files import Files
from jobs.users.contracts import ExportUsers
from jobs.users.formats import FORMATS
from jobs.users.models import User
from worker.shield import in_thread
from worker.whole import written_whole

BATCH = 2_000
"""Rows in memory at once."""


async def export_users(job: ExportUsers, session: AsyncSession, *, files: Files) -> dict[str, int]:
    target = files.target(job.path)
    users = select(User.id, User.email, User.name, User.is_active, User.last_seen_at, User.created_at).order_by(User.id)
    if job.active_only:
        users = users.where(User.is_active)
    rows = 0
    with written_whole(target) as file, FORMATS[job.format](file) as write:
        stream = await session.stream(users, execution_options={"yield_per": BATCH})
        async for batch in stream.partitions():
            await in_thread(write, batch)
            rows += len(batch)
    return {"rows": rows, "bytes": target.stat().st_size}
