"""What rows are written into: a table, or the class that is mapped to it, and columns of it."""

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

from sqlalchemy import Column, Table, inspect
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute

Target: TypeAlias = Table | type[DeclarativeBase]
"""A table, or the class that is mapped to it."""
TargetColumn: TypeAlias = Column[Any] | InstrumentedAttribute[Any]
"""A column of it, as the table or the class has it."""


def table_of(target: Target) -> Table:
    return target if isinstance(target, Table) else cast("Table", target.__table__)


def columns_of(table: Table, columns: Sequence[TargetColumn]) -> list[Column[Any]]:
    """The table's own. Raises ValueError for none, and for one of another table."""
    by_name = {column.name: column for column in table.columns}
    given = [cast("Column[Any]", column.expression) for column in columns]
    if not given:
        raise ValueError(f"Bulk work on {table.name} got no columns; name those that each row has.")
    for column in given:
        own = by_name.get(column.name)
        if own is None or not (column.shares_lineage(own) or _name_of_table(column) in {None, table.fullname}):
            raise ValueError(f"The table {table.name} has no column {str(column)!r}; give columns of that table.")
    return [by_name[column.name] for column in given]


def _name_of_table(column: Column[Any]) -> str | None:
    """None of a column that says of none. The same table may stand in another MetaData."""
    return getattr(column.table, "fullname", None)


def left_out(table: Table, given: Sequence[Column[Any]]) -> list[Column[Any]]:
    """The table's columns that aren't `given`."""
    chosen = set(given)  # `in` a list would ask the columns' own `==`
    return [column for column in table.columns if column not in chosen]


def refuse_rows_of_no_class(target: Target, given: Sequence[Column[Any]]) -> None:
    """Raises ValueError where several classes share the table and nothing that is `given` says of which a row is.

    SQLAlchemy writes that for objects alone.
    """
    if isinstance(target, Table):
        return
    mapper, table = inspect(target), table_of(target)
    tells = next((column for column in left_out(table, given) if column is mapper.polymorphic_on), None)
    if tells is not None and mapper.polymorphic_identity is not None:
        raise ValueError(
            f"Rows of {target.__name__} need a value for {tells.name}, which tells them from others in {table.name}; "
            f"give the column, with {mapper.polymorphic_identity!r} in each row."
        )
