"""What a handler leaves in its session is written, as SQLAlchemy's own commit would do."""

from sqlalchemy.ext.asyncio import AsyncSession

from worker.errors import Permanent

MAX_FLUSHES = 100
"""As many as in SQLAlchemy's commit."""


async def flush_all(session: AsyncSession) -> None:
    """Flush until nothing is left: who listens to a flush may add more, such as the row of an audit, or a job.

    Raises Permanent where that has no end.
    """
    for _ in range(MAX_FLUSHES):
        if not (session.new or session.dirty or session.deleted):
            return
        await session.flush()
    raise Permanent(
        f"The handler's session wasn't clean after {MAX_FLUSHES} flushes; let its listeners to flushes come to an end."
    )
