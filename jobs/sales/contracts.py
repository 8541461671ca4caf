"""What may be asked about sales. Pure: another service imports this and nothing else."""

from datetime import date
from typing import Annotated

from pydantic import Field

from worker.job import Job


class RefreshDaily(Job, name="sales.refresh_daily"):
    """Compute one day's row of `daily_sales` anew. Result: day, orders, revenue_cents."""

    day: Annotated[date, Field(ge=date(1970, 1, 1), lt=date(2200, 1, 1))] | None = None
    """None: the day before the job was enqueued, in UTC."""
