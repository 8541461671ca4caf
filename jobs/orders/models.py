"""Orders, their lines, and the moves that an order may make."""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import ForeignKey, Identity, Integer, Text, func
from sqlalchemy.orm import Mapped, mapped_column, relationship

from jobs.base import Base
from jobs.orders.contracts import Status
from worker.errors import Permanent

MOVES: Mapping[Status, tuple[Status, ...]] = {
    "paid": ("pending",),
    "shipped": ("paid",),
    "cancelled": ("pending", "paid"),
}
"""From which states an order may come to a state."""

SOLD: tuple[Status, ...] = ("paid", "shipped")
"""The states in which an order counts as sold."""


class WrongState(Permanent):
    """The order isn't in a state from which it may make this move."""


class Order(Base):
    """What one user ordered at one time."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    reference: Mapped[str] = mapped_column(unique=True)
    user_id: Mapped[int]
    status: Mapped[Status] = mapped_column(Text, server_default="pending")
    total_cents: Mapped[int]
    currency: Mapped[str] = mapped_column(server_default="USD")
    placed_at: Mapped[datetime] = mapped_column(server_default=func.now())
    paid_at: Mapped[datetime | None]
    shipped_at: Mapped[datetime | None]
    cancelled_at: Mapped[datetime | None]
    cancel_reason: Mapped[str | None]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())
    imported_by: Mapped[str | None]
    """The run of orders.import that wrote the lines last; they took no stock. None: placed here."""

    # raiseload as the rule: async code can't load on access, so a query names what it needs, or reading it is an error.
    lines: Mapped[list["OrderLine"]] = relationship(order_by="OrderLine.line_no", lazy="raise")

    def pay(self) -> None:
        """Raises WrongState unless the order is pending."""
        self._move("paid")
        self.paid_at = func.now()

    def ship(self) -> None:
        """Raises WrongState unless the order is paid."""
        self._move("shipped")
        self.shipped_at = func.now()

    def cancel(self, reason: str) -> None:
        """Raises WrongState unless the order is pending or paid. The stock is for `jobs.orders.stock`."""
        self._move("cancelled")
        self.cancelled_at = func.now()
        self.cancel_reason = reason

    def _move(self, to: Status) -> None:
        if self.status not in MOVES[to]:
            legal = " or ".join(MOVES[to])
            raise WrongState(f"Order {self.id} is {self.status}; only one that is {legal} can become {to}.")
        self.status = to


class OrderLine(Base):
    """One product of an order."""

    __tablename__ = "order_lines"

    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id), primary_key=True)
    line_no: Mapped[int] = mapped_column(Integer, primary_key=True)
    sku: Mapped[str]
    """Of a product, or as an import had it."""
    quantity: Mapped[int] = mapped_column(Integer)
    amount_cents: Mapped[int]
    """Of the whole line."""
