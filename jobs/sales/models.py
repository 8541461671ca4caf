"""Sales by day."""

from datetime import date, datetime

from sqlalchemy import func
from sqlalchemy.orm import Mapped, mapped_column

from jobs.base import Base


class DailySales(Base):
    """What was sold on one day (UTC): orders paid or shipped, by the time of payment."""

    __tablename__ = "daily_sales"

    day: Mapped[date] = mapped_column(primary_key=True)
    orders: Mapped[int]
    revenue_cents: Mapped[int]
    refreshed_at: Mapped[datetime] = mapped_column(server_default=func.now())
