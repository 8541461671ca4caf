"""Users, and what can be wrong with one."""

from datetime import datetime

from sqlalchemy import Identity, func
from sqlalchemy.orm import Mapped, foreign, mapped_column, relationship

from jobs.base import Base
from jobs.orders.models import Order
from worker.errors import Permanent

ONE_EMAIL = "users_email_key"
"""The unique index over lower(email)."""


class User(Base):
    """Someone who may order. No two have one e-mail address, whatever its case."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    email: Mapped[str]
    name: Mapped[str]
    is_active: Mapped[bool] = mapped_column(server_default="true")
    last_seen_at: Mapped[datetime | None]
    """None: never seen."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    # Users know their orders and orders know a number: so imports go one way. The foreign key is the database's.
    orders: Mapped[list[Order]] = relationship(
        primaryjoin=lambda: User.id == foreign(Order.user_id),
        order_by=lambda: (Order.placed_at, Order.id),
        viewonly=True,
        lazy="raise",
    )


class EmailTaken(Permanent):
    """Another user has this e-mail address."""

    def __init__(self, user_id: int) -> None:
        super().__init__(f"The e-mail address belongs to user {user_id} already; use another, or change that user.")


class UnknownUser(Permanent):
    """There is no such user."""
