"""orders.import."""

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Row, Text, case, delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from jobs.arrays import any_id, any_text, rows_of
from jobs.csv_input import Position
from jobs.csv_rows import Row as FileRow
from jobs.files import Files
from jobs.imports import Input
from jobs.orders.assembly import ImportedOrder, assemble
from jobs.orders.contracts import ImportOrders, Status
from jobs.orders.models import MOVES, Order, OrderLine
from jobs.orders.rows import HEADER, Line, RowError, check_lines
from jobs.orders.stock import give_back
from jobs.users.models import User
from worker.bulk import copy_rows, upsert
from worker.chunk import Chunk, Step
from worker.errors import Snooze
from worker.run import current_run


async def import_orders(
    job: ImportOrders, session: AsyncSession, chunk: Chunk[Position], *, files: Files
) -> Step[Position]:
    file = Input(files, job.path, HEADER, together=HEADER.index("reference"))
    read = await file.read(chunk, _with_lines)
    read.read_on()
    lines = [line for _, line in read.checked if isinstance(line, Line)]
    known = await _lock(session, {line.reference for line in lines})
    run = current_run()
    # A `job_id` that its caller chose names another import once the run was pruned: its begin tells the two apart.
    importer = f"{run.job_id}:{run.enqueued_ms or run.enqueued_at.isoformat()}"
    orders, rejects = assemble(
        read.checked,
        users=await _users(session, {line.email for line in lines}),
        earlier={order.reference for order in known if order.imported_by == importer},
        parted=chunk.cursor is not None and chunk.cursor.parted,
    )
    # Imported lines take no stock, so what the lines took that they replace is given back. What was shipped is gone,
    # and what was cancelled has given it back.
    hold_stock = [order for order in known if order.imported_by is None and order.status in MOVES["cancelled"]]
    await give_back(session, [order.id for order in hold_stock if order.reference in orders])
    inserted = await _store(session, orders, importer, {order.reference for order in known})
    return await file.step(chunk, session, read, rejects, inserted=inserted)


def _with_lines(rows: Sequence[FileRow]) -> list[tuple[FileRow, Line | RowError]]:
    return list(zip(rows, check_lines(rows), strict=True))


async def _users(session: AsyncSession, emails: Collection[str]) -> dict[str, int]:
    """The ids of the users by address as given, whatever its case."""
    given = rows_of("given", email=(Text(), emails))
    same = func.lower(User.email) == func.lower(given.c.email)
    return dict((await session.execute(select(given.c.email, User.id).join(User, same))).all())


async def _lock(session: AsyncSession, references: Collection[str]) -> Sequence[Row[int, str, Status, str | None]]:
    """The orders that are there already; by id, so that two imports lock them in the same order."""
    known = select(Order.id, Order.reference, Order.status, Order.imported_by)
    known = known.where(Order.reference == any_text(references)).order_by(Order.id).with_for_update()
    return (await session.execute(known)).all()


async def _store(
    session: AsyncSession, orders: Mapping[str, ImportedOrder], importer: str, known: Collection[str]
) -> int:
    """Upsert the orders and replace their lines. Returns how many rows made new orders.

    Raises Snooze where somebody has placed one meanwhile that wasn't `known`: what its lines took must be given back.
    """
    stored = await _upsert(session, orders, importer)
    if any(not row.inserted and row.reference not in known for row in stored):
        raise Snooze(timedelta(seconds=1))
    updated = [row.id for row in stored if not row.inserted]
    await session.execute(delete(OrderLine).where(OrderLine.order_id == any_id(updated)))
    columns = [OrderLine.order_id, OrderLine.line_no, OrderLine.sku, OrderLine.quantity, OrderLine.amount_cents]
    lines = (
        (row.id, number, line.sku, line.quantity, line.amount_cents)
        for row in stored
        for number, line in enumerate(orders[row.reference].lines, start=1)
    )
    await copy_rows(session, OrderLine, columns, lines)
    return sum(len(orders[row.reference].lines) for row in stored if row.inserted)


async def _upsert(
    session: AsyncSession, orders: Mapping[str, ImportedOrder], importer: str
) -> Sequence[Row[*tuple[Any, ...]]]:
    """Returns id, reference and whether it was inserted, of each order."""
    columns = [
        Order.reference, Order.status, Order.user_id, Order.total_cents, Order.placed_at, Order.paid_at,
        Order.imported_by,
    ]  # fmt: skip
    given = (
        (reference, "paid", order.user_id, order.total_cents, order.placed_at, order.placed_at, importer)
        for reference, order in orders.items()
    )
    done = await upsert(
        session,
        Order,
        columns,
        given,
        key=[Order.reference],
        also={
            Order.status: case((Order.status == "pending", "paid"), else_=Order.status),
            Order.updated_at: func.now(),
        },
        returning=[Order.id, Order.reference],
    )
    return done.rows
