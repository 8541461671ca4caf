"""What comes over and over in one way is told of once a minute: a part that fails does so each second, or each job."""

import time
from dataclasses import dataclass

EVERY_S = 60.0


@dataclass(slots=True)
class _Kind:
    told_at: float
    untold: int = 0


class Seldom:
    """Remembers what was told of."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, ...], _Kind] = {}

    def times(self, *kind: str) -> int:
        """How often it came since it was told of last, now included; 0 where that was less than a minute ago."""
        now, known = time.monotonic(), self._kinds.get(kind)
        if known is not None and now - known.told_at < EVERY_S:
            known.untold += 1
            return 0
        self._kinds[kind] = _Kind(now)
        return 1 + (known.untold if known else 0)
