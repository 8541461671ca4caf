"""A job of a plain arq function: what its message says, how logs name it, and how its result is kept."""

import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import arq.worker
from arq.cron import CronJob
from arq.jobs import deserialize_job_raw, serialize_result
from arq.utils import args_to_string, ms_to_datetime, timestamp_ms
from arq.worker import Function

from worker.delivery import Delivery, Kept

LATE_MS = 1_200
"""A job that begins so long after it was due says so. arq's own."""
EPOCH = datetime.fromtimestamp(0, UTC)

logger = logging.getLogger("arq.worker")


@dataclass(slots=True)
class ArqJob:
    """A delivery to a worker of plain functions, and what could be read of its message."""

    worker: arq.worker.Worker
    delivery: Delivery
    tries: int
    """The number of this try, from 1."""
    name: str = "<unknown>"
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    enqueued_ms: int = 0
    enqueued: datetime = EPOCH
    started_ms: int = field(default_factory=timestamp_ms)
    function: Function | CronJob | None = None
    """None: this worker has none of that name."""

    def read(self, message: bytes) -> None:
        """Fill in what `message` says. Raises SerializationError, TypeError, ValueError or OverflowError."""
        self.name, self.args, self.kwargs, tries, self.enqueued_ms = deserialize_job_raw(
            message, deserializer=self.worker.job_deserializer
        )
        self.tries = max(self.tries, tries or 0)
        self.enqueued = ms_to_datetime(self.enqueued_ms)
        self.function = self.worker.functions.get(self.name)

    @property
    def ref(self) -> str:
        """Its name in logs."""
        return self.name if isinstance(self.function, CronJob) else f"{self.delivery.job_id}:{self.name}"

    def age_s(self) -> float:
        """Since it was enqueued."""
        return (timestamp_ms() - self.enqueued_ms) / 1000

    def took_s(self) -> float:
        """Since it began."""
        return (timestamp_ms() - self.started_ms) / 1000

    def log_start(self) -> None:
        """As arq does. Raises what an argument's repr raises."""
        extra, late_ms = f" try={self.tries}" if self.tries > 1 else "", self.started_ms - self.delivery.due_ms
        if late_ms > LATE_MS:
            extra += f" delayed={late_ms / 1000:0.2f}s"
        logger.info("%6.2fs → %s(%s)%s", self.age_s(), self.ref, args_to_string(self.args, self.kwargs), extra)

    def max_tries(self) -> int:
        """How often it may be tried."""
        own = None if self.function is None else self.function.max_tries
        return self.worker.max_tries if own is None else own

    def timeout_s(self) -> float | None:
        """None: it may take as long as it will."""
        own = None if self.function is None else self.function.timeout_s
        return self.worker.job_timeout_s if own is None else own

    def is_overdue(self) -> bool:
        """Whether it has taken longer than it may."""
        timeout_s = self.timeout_s()
        return timeout_s is not None and self.took_s() > timeout_s

    def stays(self) -> timedelta:
        """A cron job's id stays in progress for a while, so that a worker whose clock is late doesn't run it again."""
        if not isinstance(self.function, CronJob):
            return timedelta(0)
        return timedelta(seconds=arq.worker.keep_cronjob_progress)  # type: ignore[attr-defined]  # arq's tests set it there

    def kept(self, value: Any, *, success: bool) -> Kept:
        """The result, by the worker's serializer. Where that can't write it, arq says so in the log."""
        keep_s, forever = self.worker.keep_result_s or 0, self.worker.keep_result_forever
        if self.function is not None:
            keep_s = keep_s if self.function.keep_result_s is None else self.function.keep_result_s
            forever = forever if self.function.keep_result_forever is None else self.function.keep_result_forever
        result = self._encode(value, success=success) if forever or keep_s > 0 else None
        if result is None:
            return Kept(b"", timedelta(0))
        return Kept(result, None if forever else timedelta(seconds=keep_s))

    def _encode(self, value: Any, *, success: bool) -> bytes | None:
        return serialize_result(
            function=self.name,
            args=self.args,
            kwargs=self.kwargs,
            job_try=self.tries,
            enqueue_time_ms=self.enqueued_ms,
            success=success,
            result=value,
            start_ms=self.started_ms,
            finished_ms=timestamp_ms(),
            ref=self.ref,
            queue_name=self.delivery.queue,
            job_id=self.delivery.job_id,
            serializer=self.worker.job_serializer,
        )
