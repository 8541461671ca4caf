"""What our connections pack in C is what redis-py packs in Python."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio.connection import Connection

from worker.redis_connection import OURS

ARGUMENTS = st.one_of(
    st.binary(),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.integers(-(2**63), 2**63),
    st.floats(allow_nan=False),
)


@given(st.sampled_from(["GET", "CONFIG GET", b"EVALSHA", b"CLIENT LIST"]), st.lists(ARGUMENTS, max_size=20))
def test_the_same_bytes(command: str | bytes, arguments: list[Any]) -> None:
    ours, theirs = OURS[Connection](), Connection()
    assert b"".join(ours.pack_command(command, *arguments)) == b"".join(theirs.pack_command(command, *arguments))
