"""Products and their stock."""

from sqlalchemy.orm import Mapped, mapped_column

from jobs.base import Base


class Product(Base):
    """What can be ordered."""

    __tablename__ = "products"

    sku: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    price_cents: Mapped[int]
    stock: Mapped[int | None]
    """Pieces left, never negative. None: not tracked."""
