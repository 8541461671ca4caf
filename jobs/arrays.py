"""Many values in one parameter: PostgreSQL's arrays. A statement stays the same however many there are."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import BigInteger, TableValuedAlias, Text, any_, column, func, literal
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql.elements import CollectionAggregate
from sqlalchemy.types import TypeEngine


def any_id(ids: Collection[int]) -> CollectionAggregate[Any]:
    """What a column is compared with to be one of `ids`. Unlike `in_` it has no limit of 32,767 parameters."""
    return any_(literal(list(ids), ARRAY(BigInteger)))


def any_text(texts: Collection[str]) -> CollectionAggregate[Any]:
    """What a column is compared with to be one of `texts`."""
    return any_(literal(list(texts), ARRAY(Text)))


def rows_of(name: str, /, **columns: tuple[TypeEngine[Any], Collection[object]]) -> TableValuedAlias:
    """Rows to select from, each column given by its type and values; `position` counts them from 1."""
    arrays = (literal(list(values), ARRAY(kind)) for kind, values in columns.values())
    fields = (column(field, kind) for field, (kind, _) in columns.items())
    return func.unnest(*arrays).table_valued(*fields, with_ordinality="position").render_derived(name=name)
