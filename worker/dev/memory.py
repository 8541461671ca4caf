"""Where files stay in memory, for servers whose data needn't survive the machine."""

import os
from pathlib import Path

MEMORY = Path("/dev/shm")  # noqa: S108 - Linux keeps the files in it in memory; what is made there has a name of its own
ROOM_BYTES = 2 << 30
"""That must be free there, for servers, their databases and their logs."""


def memory() -> Path | None:
    """Where files stay in memory. None: nowhere, or it is too full, or no programs may run from there."""
    try:
        place = os.statvfs(MEMORY)
    except OSError:
        return None
    has_room = place.f_bavail * place.f_frsize >= ROOM_BYTES
    return MEMORY if has_room and os.access(MEMORY, os.W_OK) and not place.f_flag & os.ST_NOEXEC else None
