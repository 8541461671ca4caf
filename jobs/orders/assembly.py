"""From rows of orders.import to orders: adjacent rows of one reference are the lines of one."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from jobs.csv_rows import Row
from jobs.orders.contracts import MAX_LINES
from jobs.orders.rows import Line, RowError


@dataclass(slots=True)
class ImportedOrder:
    """An order as its good rows tell it."""

    user_id: int
    placed_at: datetime
    """As its first row has it."""
    group: int
    lines: list[Line] = field(default_factory=list[Line])

    @property
    def total_cents(self) -> int:
        return sum(line.amount_cents for line in self.lines)


def assemble(
    rows: Iterable[tuple[Row, Line | RowError]],
    *,
    users: Mapping[str, int],
    earlier: Collection[str],
    parted: bool = False,
) -> tuple[dict[str, ImportedOrder], list[tuple[Row, str]]]:
    """The orders by reference, and the rejected rows with their reasons.

    users: ids by e-mail address as it stands in the rows. earlier: references that stood further up in the file.
    parted: whether the first rows may be of an order that was too much for the chunk before.
    """
    orders: dict[str, ImportedOrder] = {}
    rejects: list[tuple[Row, str]] = []
    group, reference = 0, ""
    for row, line in rows:
        # A bad row counts as a neighbour by its reference; one that can't be read at all parts nothing.
        if row.fields and row.fields[0] != reference:
            group, reference = group + 1, row.fields[0]
        try:
            if isinstance(line, RowError):
                raise line
            if parted and group == 1:
                _refuse_rest(line, earlier)
            _add(line, orders, group, users, earlier)
        except RowError as fault:
            rejects.append((row, str(fault)))
    return orders, rejects


def _refuse_rest(line: Line, earlier: Collection[str]) -> None:
    """Raises RowError where the chunk before has the beginning of the order."""
    if line.reference in earlier:
        raise RowError("is too far behind the first row of its order")


def _add(
    line: Line, orders: dict[str, ImportedOrder], group: int, users: Mapping[str, int], earlier: Collection[str]
) -> None:
    """Raises RowError."""
    user_id = users.get(line.email)
    if user_id is None:
        raise RowError("has the e-mail address of no user")
    order = orders.get(line.reference)
    if line.reference in earlier or (order and order.group != group):
        raise RowError("has a reference that stood earlier in the file, with another between")
    if order is None:
        order = orders[line.reference] = ImportedOrder(user_id, line.placed_at, group)
    if order.user_id != user_id:
        raise RowError("is of another user than the first row of its order")
    if len(order.lines) == MAX_LINES:
        raise RowError(f"is beyond the {MAX_LINES:,} lines that an order may have")
    order.lines.append(line)
