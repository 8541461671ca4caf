"""Lua scripts, of which several go to Redis together: one round trip, and one turn of the loop that reads the answers.

redis-py's own (`register_script`) send one at a time, or as a pipeline: more code around each call, which beside jobs
that use the processor is cold each time. Where a call is rare, its own do.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError


@dataclass(frozen=True)
class Script:
    """Its text, known to the server by its SHA-1."""

    text: str

    @cached_property
    def sha(self) -> str:
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class Call:
    """Of one script."""

    script: Script
    keys: Sequence[Any]
    args: Sequence[Any]

    def by_sha(self) -> tuple[Any, ...]:
        return "EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.args

    def by_text(self) -> tuple[Any, ...]:
        """After which the server knows it."""
        return "EVAL", self.script.text, len(self.keys), *self.keys, *self.args


async def run(redis: Redis, call: Call) -> Any:
    """What a script answers. Raises redis's errors, its own among them."""
    [answer] = await run_all(redis, call)
    if isinstance(answer, ResponseError):
        raise answer
    return answer


async def run_all(redis: Redis, *calls: Call) -> list[Any]:
    """What each of `calls` answers, in order; a script's own error stands in its place, and keeps none from the others.

    Raises redis's errors of the connection: then nothing is known of any.
    """
    pool: Any = redis.connection_pool
    connection = await pool.get_connection()
    answers: list[Any] = [NoScriptError()] * len(calls)
    try:
        for command in (Call.by_sha, Call.by_text):  # by text what a server doesn't know that is new, or was restarted
            unknown = [n for n, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
            if not unknown:
                break
            answered = await _try(redis, connection, [command(calls[n]) for n in unknown])
            for n, answer in zip(unknown, answered, strict=True):
                answers[n] = answer
    finally:
        await pool.release(connection)
    return answers


async def _try(redis: Any, connection: Any, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """As `_ask`, again where the client was told to try again. It knows what for, and arq's own tests watch it."""
    answers: list[Any] = await connection.retry.call_with_retry(
        partial(_ask, connection, commands),
        partial(redis._disconnect_raise, connection),  # noqa: SLF001 - as its own commands do
    )
    return answers


async def _ask(connection: Any, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Each command's answer, or the error that the server gave for it. None is left unread: it would be another's."""
    packed = [part for command in commands for part in connection.pack_command(*command)]
    await connection.send_packed_command(packed)
    answers: list[Any] = []
    for _ in commands:
        try:
            answers.append(await connection.read_response())
        except ResponseError as error:
            answers.append(error)
    return answers
