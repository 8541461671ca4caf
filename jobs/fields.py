"""Fields that several contracts share, with their bounds. Pure."""

from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, Field, StringConstraints

EMAIL = r"^[^@\s\x00]+@[^@\s\x00]+$"
MAX_EMAIL = 320
MAX_NAME = 200


def _number(value: object) -> object:
    """JSON's true would pass for 1, and a payment for one of order 1. Raises ValueError."""
    if isinstance(value, bool):
        raise ValueError("Input should be a number, and is true or false")  # noqa: TRY004 - a fault of data
    return value


Number = BeforeValidator(_number)
"""For whole numbers."""
Id = Annotated[int, Field(ge=1, lt=2**63), Number]
Email = Annotated[str, StringConstraints(strip_whitespace=True, max_length=MAX_EMAIL, pattern=EMAIL)]
FilePath = Annotated[str, StringConstraints(min_length=1, max_length=1_000)]
"""Below WORKER_FILES_DIR."""
Destination = FilePath
"""The same, or a URL below a prefix of WORKER_FILES_URLS."""
Age = Annotated[timedelta, Field(ge=timedelta(0), le=timedelta(days=36_500))]
