"""users.import."""

import re
from collections.abc import Sequence

from sqlalchemy import Boolean, Text, func, literal_column, select
from sqlalchemy.dialects.postgresql import distinct_on, insert
from sqlalchemy.ext.asyncio import AsyncSession

from jobs.arrays import rows_of
from jobs.csv_input import Position
from jobs.csv_rows import Row
from jobs.fields import EMAIL, MAX_EMAIL, MAX_NAME
from jobs.files import Files
from jobs.imports import Input
from jobs.users.contracts import ImportUsers
from jobs.users.models import User
from worker.chunk import Chunk, Step

HEADER = ("email", "name")
EMAIL_PATTERN = re.compile(EMAIL)


async def import_users(
    job: ImportUsers, session: AsyncSession, chunk: Chunk[Position], *, files: Files
) -> Step[Position]:
    file = Input(files, job.path, HEADER)
    rows = await file.read(chunk)
    checked = [(row, fault_of(row)) for row in rows.rows]
    inserted = await _upsert(session, [row.fields for row, fault in checked if not fault])
    return await file.step(chunk, session, rows, [(row, fault) for row, fault in checked if fault], inserted=inserted)


def fault_of(row: Row) -> str:
    """What is wrong with a row; empty where nothing is."""
    if row.fault:
        return row.fault
    email, name = row.fields
    if not email:
        return "has no e-mail address"
    if len(email) > MAX_EMAIL or not EMAIL_PATTERN.fullmatch(email):
        return "has an e-mail address that is none"
    if len(name) > MAX_NAME:
        return f"is too long in its name: {len(name)} characters where {MAX_NAME} are allowed"
    return ""


async def _upsert(session: AsyncSession, users: Sequence[Sequence[str]]) -> int:
    """Insert or update (email, name) rows, the last of an address winning, and return how many were inserted."""
    given = rows_of("given", email=(Text(), [email for email, _ in users]), name=(Text(), [name for _, name in users]))
    address = func.lower(given.c.email)
    # Sorted, so that two imports of the same users lock them in the same order.
    last = select(given.c.email, given.c.name).ext(distinct_on(address)).order_by(address, given.c.position.desc())
    upsert = insert(User).from_select(["email", "name"], last)
    upsert = upsert.on_conflict_do_update(
        index_elements=[func.lower(User.email)], set_={"email": upsert.excluded.email, "name": upsert.excluded.name}
    )
    # A row version that this statement made anew has no xmax; one that it updated was locked first, and has.
    upserted = upsert.returning(literal_column("xmax = 0", Boolean).label("inserted")).cte("upserted")
    return (await session.scalars(select(func.count()).where(upserted.c.inserted))).one()
