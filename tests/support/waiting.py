import asyncio
from collections.abc import Awaitable, Callable


async def wait_until(predicate: Callable[[], Awaitable[bool]], timeout: float = 10.0) -> None:
    """Return once the condition holds; fail after `timeout` seconds. For state that raises no event of its own."""
    try:
        async with asyncio.timeout(timeout):
            while not await predicate():  # noqa: ASYNC110  another process's state has no event here
                await asyncio.sleep(0.02)
    except TimeoutError:
        name = getattr(predicate, "__qualname__", repr(predicate))
        raise AssertionError(f"{name} was still false after {timeout:g} s") from None
