"""Many rows at the speed of PostgreSQL, in the session's own transaction."""

from worker.streaming import AnySelect, copy_csv, copy_ndjson, stream

__all__ = ["AnySelect", "copy_csv", "copy_ndjson", "stream"]
