"""Users one by one and in bulk, and the table of handlers of users that need no files."""

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from jobs.users.contracts import CreateUser, DeactivateDormant, SetActive, UserStatement
from jobs.users.models import ONE_EMAIL, EmailTaken, User
from jobs.users.statement import user_statement
from worker.bulk import update_many
from worker.chunk import Chunk, Step
from worker.handler import ChunkedHandler, Handler
from worker.keys import evenly, within


async def create_user(job: CreateUser, session: AsyncSession) -> dict[str, int]:
    user = User(email=job.email, name=job.name)
    try:
        async with session.begin_nested():
            session.add(user)
            await session.flush()  # gives the id, or the constraint's error inside the savepoint
    except IntegrityError as error:
        if getattr(getattr(error.orig, "__cause__", None), "constraint_name", None) != ONE_EMAIL:
            raise
        owner = select(User.id).where(func.lower(User.email) == func.lower(job.email))
        raise EmailTaken((await session.execute(owner)).scalar_one()) from None
    return {"user_id": user.id}


async def set_active(job: SetActive, session: AsyncSession) -> dict[str, int]:
    rows = ((user_id, job.active) for user_id in job.user_ids)
    return {"updated": await update_many(session, User, [User.id, User.is_active], rows)}


async def deactivate_dormant(job: DeactivateDormant, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
    """Deactivate the next users after the cursor."""
    dormant = User.is_active, User.last_seen_at < func.now() - job.dormant_for, *within(User.id, chunk)
    total = await session.scalar(select(func.count()).where(*dormant)) if chunk.cursor is None else None
    due = (
        select(User.id)
        .where(*dormant)
        .order_by(User.id)
        .limit(chunk.size)
        .with_for_update()  # one that is being seen is waited for, and then is dormant no more
        .cte("due")
    )
    deactivate = update(User).where(User.id == due.c.id).values(is_active=False).returning(User.id)
    ids = (await session.scalars(deactivate)).all()
    return chunk.step(max(ids, default=None), done=len(ids), total=total, counts={"deactivated": len(ids)})


HANDLERS = (
    Handler(CreateUser, create_user),
    Handler(SetActive, set_active),
    Handler(UserStatement, user_statement),
    ChunkedHandler(DeactivateDormant, deactivate_dormant, cursor=int, partitions=4, split=evenly(User.id)),
)
