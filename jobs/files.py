"""The gateway to files: all that jobs read lies below one folder, all that they write there or below a URL."""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from worker.errors import Permanent
from worker.file_urls import allowed, is_url, local_path
from worker.whole import put_whole, written_whole


@dataclass(frozen=True, slots=True)
class Files:
    """The files below `root`. Paths in jobs are relative to it, or absolute and inside it."""

    root: Path
    urls: tuple[str, ...] = ()
    """Prefixes of URLs that may be written to."""
    max_unpacked: int = 10 * 1024**3
    """Bytes that a packed file may hold."""

    def resolve(self, path: str) -> Path:
        """Where `path` is, links followed; it needn't exist.

        Raises Permanent for a path that leads out of the root, by `..`, a link or an absolute path elsewhere.
        """
        root = self.root.resolve()
        try:
            resolved = (root / path).resolve()
            resolved.exists()  # raises where the path is too long or a folder is closed to us
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of links; ValueError: NUL
            raise Permanent(f"The path {path[:200]!r} can't be followed ({error}); give the path of a file.") from None
        if not resolved.is_relative_to(root):
            raise Permanent(f"The path {path!r} leads out of WORKER_FILES_DIR; give one below it.")
        return resolved

    def existing(self, path: str) -> Path:
        """Where the file at `path` is. Raises Permanent where there is no file that can be read."""
        resolved = self.resolve(path)
        if not resolved.is_file():
            raise Permanent(f"There is no file {path!r} in WORKER_FILES_DIR; put it there and replay the job.")
        if not os.access(resolved, os.R_OK):
            raise Permanent(f"The file {path!r} may not be read; change its permissions and replay the job.")
        return resolved

    def target(self, path: str) -> Path:
        """Where a file is to be written. Raises Permanent where that is a folder."""
        resolved = self.resolve(path)
        if resolved.is_dir():
            raise Permanent(f"The path {path!r} is a folder; give one of a file.")
        return resolved

    def writing(self, destination: str) -> AbstractContextManager[BinaryIO]:
        """Open what appears whole at a path or URL. Raises Permanent where it may not be written to."""
        if not is_url(destination):
            return written_whole(self.target(destination))
        if (path := local_path(destination)) is not None:
            return written_whole(self.target(path))
        return put_whole(allowed(destination, self.urls))

    def relative(self, path: Path) -> str:
        """A resolved path as jobs and their results write it."""
        return path.relative_to(self.root.resolve()).as_posix()
