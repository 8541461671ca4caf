"""A CSV file as an import reads it, though from a new Reader for each chunk: as after a worker was killed."""

from contextlib import closing
from pathlib import Path

from jobs.csv_input import Position, Reader, Rows


def read_rows(
    path: Path,
    header: tuple[str, ...],
    start: Position | None,
    size: int,
    *,
    together: int | None = None,
    max_unpacked: int,
) -> Rows:
    """One chunk. Raises as Reader does."""
    with closing(Reader(path, header, start, together=together, max_unpacked=max_unpacked)) as reader:
        return reader.read(size)
