"""Rows as they are given, and as the driver takes them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, TypeAlias, cast

from sqlalchemy import Column, Dialect, bindparam
from sqlalchemy.dialects.postgresql import DOMAIN
from sqlalchemy.types import TypeDecorator, TypeEngine

Values: TypeAlias = Sequence[Any]
"""A row: a value for each column, in their order."""
NO_ROWS = (Mapping, AbstractSet, str, bytes)
"""What has a length too, but gives other things one by one: a mapping its keys, a text its letters."""


def adapted(rows: Iterable[Values], columns: Sequence[Column[Any]], dialect: Dialect) -> Iterable[Values]:
    """`rows` as the driver takes them: where a column's type converts its values (enums, JSON, your own), so do we.

    Raises ValueError, as they are iterated over, where a row has another number of values (the driver would leave out
    what is too much), and TypeError for one of NO_ROWS. Raises ValueError at once for a type that has SQL around its
    values, which are no part of a statement here.
    """
    for column in columns:
        if column.type.dialect_impl(dialect).bind_expression(bindparam(None)) is not None:
            raise ValueError(
                f"The type of {column} has a bind_expression, which only a statement of SQLAlchemy's applies; have "
                "Python convert its values (process_bind_param), or write them by session.execute."
            )
    processors = [column.type.dialect_impl(dialect).bind_processor(dialect) for column in columns]
    counted = _counted(rows, len(columns))
    if not any(processors):
        return counted
    return (
        [process(value) if process else value for process, value in zip(processors, row, strict=True)]
        for row in counted
    )


def _counted(rows: Iterable[Values], values: int) -> Iterator[Values]:
    for row in rows:
        if len(row) != values:
            raise wrong_length(values)
        if type(row) is not tuple and isinstance(row, NO_ROWS):
            raise no_row(type(row).__name__)
        yield row


def wrong_length(values: int) -> ValueError:
    return ValueError(f"A row has another number of values than there are columns ({values}).")


def no_row(kind: str) -> TypeError:
    return TypeError(f"A row is a {kind}; give its values in the order of the columns, as a tuple.")


def plain_type(kind: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    """What stands behind a TypeDecorator or a domain."""
    plain: Any = kind.dialect_impl(dialect)
    while isinstance(plain, TypeDecorator | DOMAIN):
        plain = plain.data_type if isinstance(plain, DOMAIN) else plain.impl_instance
    return cast("TypeEngine[Any]", plain)
