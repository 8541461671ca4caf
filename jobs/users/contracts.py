"""What may be asked about users. Pure: another service imports this and nothing else."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from jobs.fields import MAX_NAME, Age, Destination, Email, FilePath, Id
from worker.job import Job


class CreateUser(Job, name="users.create"):
    """Create one user. Result: user_id. Dead with EmailTaken where the address is taken."""

    email: Email
    name: Annotated[str, StringConstraints(strip_whitespace=True, max_length=MAX_NAME, pattern=r"^[^\x00]*$")]


class ImportUsers(Job, name="users.import"):
    """Upsert users by e-mail from a CSV file with the header `email,name`; the last row of an address wins.

    Result: read, inserted, updated, rejected (rows; the first is the sum of the others), and rejects_path, null
    without rejects. A row that repeats an address of the same file counts as updated.
    """

    path: FilePath


class SetActive(Job, name="users.set_active"):
    """Make users active or inactive. Result: updated, the users among `user_ids` that exist."""

    user_ids: Annotated[list[Id], Field(max_length=50_000)]
    active: bool


class DeactivateDormant(Job, name="users.deactivate_dormant"):
    """Deactivate users last seen longer ago than this. Those never seen are left alone. Result: deactivated."""

    dormant_for: Age


class ExportUsers(Job, name="users.export"):
    """Write the users to a file, by id, as they were at one moment. Result: rows, bytes."""

    path: Destination
    format: Literal["csv", "ndjson", "parquet"] = "csv"
    active_only: bool = False


class UserStatement(Job, name="users.statement"):
    """What a user bought: the orders that are paid or shipped.

    Result: orders, spent_cents, and first_order and last_order: when they were placed, null without orders.
    """

    user_id: Id
