"""A file that appears whole or not at all."""

import asyncio
import importlib
import os
import uuid
from collections.abc import AsyncGenerator, Generator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from worker.errors import Permanent
from worker.shield import in_thread, stop_if_cancelled, to_its_end

T = TypeVar("T")


@contextmanager
def written_whole(target: Path) -> Generator[BinaryIO]:
    """Write to a temporary name; fsync, rename, and fsync the folder at the end. Nothing stays if the body raises."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{uuid.uuid4().hex}.part")  # its own even where two write to one target
    try:
        with draft.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
        _sync_folder(target.parent)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def put_whole(url: str) -> Generator[BinaryIO]:
    """The same for a URL that fsspec knows: written beside it, and moved there at the end. Its folder must be there.

    A store without a rename (S3) copies and deletes, and shows no half of it. Who the worker is to the store is for
    fsspec's own configuration to say. Raises Permanent where fsspec or the package of the scheme isn't installed, and
    for a folder.
    """
    try:
        core: Any = importlib.import_module("fsspec.core")  # an extra, without types
    except ImportError:
        raise Permanent("A URL needs fsspec; install fsspec, or give a path.") from None
    try:
        store, target = core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        scheme = url.partition(":")[0]
        raise Permanent(f"fsspec can't write to {scheme}:// here ({error}); install what it asks for.") from None
    if store.isdir(target):
        raise Permanent(f"The {url.partition(':')[0]}:// URL is a folder; give one of a file.")
    folder, slash, _ = target.rpartition("/")
    draft = f"{folder}{slash}.{uuid.uuid4().hex}.part"
    try:
        with store.open(draft, "wb") as file:
            yield file
        store.mv(draft, target)
    except BaseException:
        with suppress(OSError):
            store.rm_file(draft)
        raise


@asynccontextmanager
async def in_threads(opening: AbstractContextManager[T]) -> AsyncGenerator[T]:
    """Such a file, opened and ended in a thread: fsync takes as long as the disk does, and a store even longer.

    Whoever is cancelled meanwhile, no thread goes on, and no draft is left.
    """
    opened = await to_its_end(asyncio.to_thread(opening.__enter__))
    try:
        stop_if_cancelled()
        yield opened
    except BaseException as error:
        if not await to_its_end(asyncio.to_thread(opening.__exit__, type(error), error, error.__traceback__)):
            raise
    else:
        await in_thread(opening.__exit__, None, None, None)


def _sync_folder(folder: Path) -> None:
    """The rename itself must outlive a power cut, or the job is done and its file isn't there."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
