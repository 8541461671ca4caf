"""One order's way, and the table of handlers of orders."""

from sqlalchemy.exc import NoResultFound
from sqlalchemy.ext.asyncio import AsyncSession

from jobs.orders.batches import pay_orders, ship_orders
from jobs.orders.bulk import cancel_stale, set_status
from jobs.orders.contracts import CancelOrder, CancelStale, PayOrder, PayOrderBatched, PlaceOrder, SetStatus, ShipOrder
from jobs.orders.models import Order
from jobs.orders.placing import place_order
from jobs.orders.stock import give_back
from worker.handler import BatchHandler, ChunkedHandler, Handler
from worker.outbox import enqueue
from worker.retry import RetryPolicy


async def pay_order(job: PayOrder, session: AsyncSession) -> dict[str, int]:
    order = await session.get_one(Order, job.order_id, with_for_update=True)
    order.pay()
    enqueue(session, ShipOrder(order_id=order.id))
    return {"order_id": order.id, "total_cents": order.total_cents}


async def cancel_order(job: CancelOrder, session: AsyncSession) -> dict[str, int]:
    order = await session.get_one(Order, job.order_id, with_for_update=True)
    order.cancel(job.reason)
    await give_back(session, [order.id])
    return {"order_id": order.id}


UNKNOWN_ORDER = RetryPolicy(attempts=8, give_up_on=(NoResultFound,))

HANDLERS = (
    Handler(PlaceOrder, place_order),
    Handler(PayOrder, pay_order, retry=UNKNOWN_ORDER),
    BatchHandler(PayOrderBatched, pay_orders, retry=UNKNOWN_ORDER),
    BatchHandler(ShipOrder, ship_orders, retry=UNKNOWN_ORDER),
    Handler(CancelOrder, cancel_order, retry=UNKNOWN_ORDER),
    Handler(SetStatus, set_status),
    ChunkedHandler(CancelStale, cancel_stale, cursor=int),
)
