"""What may be asked about orders. Pure: another service imports this and nothing else."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from jobs.fields import Age, Email, FilePath, Id, Number
from worker.job import Job

MAX_REFERENCE = 100
MAX_SKU = 100
MAX_LINES = 1_000
"""Of one order."""

Status = Literal["pending", "paid", "shipped", "cancelled"]

Reference = Annotated[str, StringConstraints(min_length=1, max_length=MAX_REFERENCE, pattern=r"^[^\x00]*$")]
Sku = Annotated[str, StringConstraints(min_length=1, max_length=MAX_SKU, pattern=r"^[^\x00]*$")]
Quantity = Annotated[int, Field(ge=1, le=10_000), Number]


class PlaceOrder(Job, name="orders.place"):
    """Place one order at the products' prices and take its stock. The same reference again changes nothing.

    Result: order_id, total_cents. Dead with UnknownUser, UnknownSku or OutOfStock.
    """

    reference: Reference
    email: Email
    lines: Annotated[list[tuple[Sku, Quantity]], Field(min_length=1, max_length=MAX_LINES)]


class PayOrder(Job, name="orders.pay"):
    """Take payment for a pending order, and have it shipped. Result: order_id, total_cents. Dead with WrongState."""

    order_id: Id


class PayOrderBatched(Job, name="orders.pay_batch"):
    """As `orders.pay`, many in one transaction. Result: order_id, total_cents. Dead with WrongState."""

    order_id: Id


class ShipOrder(Job, name="orders.ship"):
    """Ship a paid order, many in one transaction. Result: order_id, shipped_at. Dead with WrongState."""

    order_id: Id


class CancelOrder(Job, name="orders.cancel"):
    """Cancel a pending or paid order and give its stock back. Result: order_id. Dead with WrongState."""

    order_id: Id
    reason: Annotated[str, StringConstraints(max_length=500, pattern=r"^[^\x00]*$")] = ""


class SetStatus(Job, name="orders.set_status"):
    """Move many orders. An illegal move, an unknown order and all but the last change of one order are skipped.

    Cancelled orders give their stock back. Result: updated, skipped.
    """

    changes: Annotated[list[tuple[Id, Status]], Field(max_length=20_000)]


class ImportOrders(Job, name="orders.import"):
    """Upsert orders by reference from a CSV file with the header `reference,email,placed_at,sku,quantity,amount`.

    Adjacent rows of one reference are the lines of one order, paid when placed. An order that was there before gets
    its lines, total, user and times from the file; a pending one becomes paid. A row whose reference stood earlier in
    the file, with another's between, is a reject. An imported line takes no stock, and gives back what the lines took
    that it replaces, unless the order was shipped.

    Result: read, inserted, updated, rejected (rows; the first is the sum of the others), and rejects_path, null
    without rejects. Of an order with good and bad rows the good ones go in.
    """

    path: FilePath


class CancelStale(Job, name="orders.cancel_stale"):
    """Cancel orders that have been pending for longer than this and give their stock back. Result: cancelled."""

    older_than: Age
