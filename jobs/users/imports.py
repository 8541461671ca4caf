"""users.import."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import StringConstraints, TypeAdapter
from pydantic_core import ErrorDetails
from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession

from jobs.checking import check
from jobs.csv_input import Position
from jobs.csv_rows import Row
from jobs.fields import MAX_NAME, Email
from jobs.files import Files
from jobs.imports import Input
from jobs.users.contracts import ImportUsers
from jobs.users.models import User
from worker.bulk import upsert
from worker.chunk import Chunk, Step

HEADER = ("email", "name")
USERS = TypeAdapter(list[tuple[Email, Annotated[str, StringConstraints(max_length=MAX_NAME)]]])


async def import_users(
    job: ImportUsers, session: AsyncSession, chunk: Chunk[Position], *, files: Files
) -> Step[Position]:
    file = Input(files, job.path, HEADER)
    read = await file.read(chunk, check_users)
    users, rejects = read.checked
    given = read.then_read_on(users)
    done = await upsert(session, User, [User.email, User.name], given, key=[func.lower(User.email)])
    return await file.step(chunk, session, read, rejects, inserted=done.inserted)


def check_users(rows: Sequence[Row]) -> tuple[list[tuple[str, str]], list[tuple[Row, str]]]:
    """The users, and the rows that hold none with what is wrong with them."""
    checked = check(rows, USERS, reason)
    users = [user for user in checked if not isinstance(user, str)]
    if len(users) == len(rows):
        return users, []
    return users, [(row, fault) for row, fault in zip(rows, checked, strict=True) if isinstance(fault, str)]


def reason(error: ErrorDetails) -> str:
    """What is wrong with a row, in words."""
    if error["loc"][1]:
        return f"is too long in its name: {len(error['input'])} characters where {MAX_NAME} are allowed"
    return "has an e-mail address that is none" if error["input"] else "has no e-mail address"
