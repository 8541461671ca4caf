"""users.export: one snapshot, written by PostgreSQL into a file that appears whole or not at all."""

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from jobs.files import Files
from jobs.users.contracts import ExportUsers
from jobs.users.formats import FORMATS
from jobs.users.models import User
from worker.shield import in_thread
from worker.whole import in_threads

# For this transaction: all three formats write times in UTC, and what Arrow reads is ISO.
TIMES = text("select set_config('TimeZone', 'UTC', true), set_config('DateStyle', 'ISO', true)")


async def export_users(job: ExportUsers, session: AsyncSession, *, files: Files) -> dict[str, int]:
    await session.execute(TIMES)
    users = select(User.id, User.email, User.name, User.is_active, User.last_seen_at, User.created_at).order_by(User.id)
    if job.active_only:
        users = users.where(User.is_active)
    async with in_threads(files.writing(job.path)) as file:
        rows = await FORMATS[job.format](session, users, file)
        size = await in_thread(file.tell)
    return {"rows": rows, "bytes": size}
