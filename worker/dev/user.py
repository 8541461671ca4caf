"""PostgreSQL refuses to run as root. Under root its processes belong to a user that every system has."""

import hashlib
import os
import pwd
from pathlib import Path

UNPRIVILEGED_USER = "nobody"

# Where their data stays when that user may not enter the place that was asked for.
CLOSED_DATA = Path("/var/lib/ratchet")


def user_of_servers() -> str | None:
    """None: this process's own."""
    return UNPRIVILEGED_USER if os.geteuid() == 0 else None


def group_of(user: str | None) -> int | None:
    return None if user is None else pwd.getpwnam(user).pw_gid


def can_reach(path: Path, user: str | None) -> bool:
    """Whether another user may enter every directory down to `path`."""
    return user is None or all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents))


def reachable(data_dir: Path, user: str | None) -> Path:
    """Keep the data in `data_dir`, or below CLOSED_DATA where its parents are closed to PostgreSQL's user."""
    data_dir = data_dir.resolve()
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    if can_reach(data_dir.parent, user):
        return data_dir
    return CLOSED_DATA / hashlib.sha256(str(data_dir).encode()).hexdigest()[:12]
