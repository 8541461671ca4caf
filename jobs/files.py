"""The gateway to files: everything that jobs read or write lies below one folder."""

import os
from dataclasses import dataclass
from pathlib import Path

from worker.errors import Permanent


@dataclass(frozen=True, slots=True)
class Files:
    """The files below `root`. Paths in jobs are relative to it, or absolute and inside it."""

    root: Path
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

    def relative(self, path: Path) -> str:
        """A resolved path as jobs and their results write it."""
        return path.relative_to(self.root.resolve()).as_posix()
