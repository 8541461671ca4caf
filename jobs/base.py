"""What the domain's tables have in common."""

from datetime import datetime

from sqlalchemy import BigInteger, DateTime, Text
from sqlalchemy.orm import DeclarativeBase


class Base(DeclarativeBase):
    """Of the domain's tables; the runtime's have their own. The migrations are the source of every constraint."""

    type_annotation_map = {str: Text, datetime: DateTime(timezone=True), int: BigInteger}  # noqa: RUF012 - SQLAlchemy's own form
