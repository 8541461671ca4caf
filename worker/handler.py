"""Handler: what is done. A plain async function with its policy, bound in a table."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Generic, Literal, TypeAlias, TypeVar, get_args

from pydantic import TypeAdapter
from sqlalchemy.ext.asyncio import AsyncSession

from worker.chunk import Chunk, Step
from worker.handler_checks import OF_ALL, OF_BATCHES, OF_CHUNKS, check_call, check_fields, check_kinds
from worker.job import Job
from worker.limits import Gate, Rate
from worker.pace import Sizes
from worker.retry import RetryPolicy

J = TypeVar("J", bound=Job)
C = TypeVar("C")

Isolation: TypeAlias = Literal["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]


LONGEST_LIMIT = timedelta(days=24)
"""PostgreSQL counts its timeouts in milliseconds, up to 2³¹."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a handler is run; the same for every kind of handler."""

    retry: RetryPolicy = RetryPolicy()  # noqa: RUF009 - frozen
    timeout: timedelta = timedelta(seconds=300)
    """Of one attempt (of one chunk, where the job is chunked). A timeout is a failure like any other."""
    isolation: Isolation = "READ COMMITTED"
    statement_timeout: timedelta | None = None
    """Of each statement. None: what the role, the database or the server has been set to."""
    lock_timeout: timedelta | None = None
    """Of each wait for a lock. None: as long as `timeout`."""
    max_concurrent: int | None = None
    """Jobs of this name that run at once, over all workers."""
    rate: Rate | None = None
    """How often jobs of this name start, over all workers. A retry is a start too."""

    def __post_init__(self) -> None:
        """Raises ValueError for what would fail only when a job runs: no type checker has seen every app."""
        check_kinds("A handler", self, OF_ALL)
        if self.isolation not in get_args(Isolation):
            raise ValueError(
                f"A handler got isolation={self.isolation!r}; give one of {', '.join(get_args(Isolation))}."
            )
        for limit in ("timeout", "statement_timeout", "lock_timeout"):
            value: timedelta | None = getattr(self, limit)
            if value is not None and not timedelta(0) < value <= LONGEST_LIMIT:
                raise ValueError(f"A handler got {limit}={value}; give a time above zero, up to {LONGEST_LIMIT}.")
        if self.max_concurrent is not None and self.max_concurrent < 1:
            raise ValueError(f"A handler got max_concurrent={self.max_concurrent}; give at least 1.")


@dataclass(frozen=True, slots=True)
class Handler(Policy, Generic[J]):
    """One job, one call, one transaction."""

    job: type[J]
    run: Callable[[J, AsyncSession], Awaitable[object]]
    once: bool = True
    """False: keep no run of a success and ask nothing of PostgreSQL until the handler does; at least once."""

    def __post_init__(self) -> None:
        """Raises ValueError for a policy that makes no sense, and a function that can't be called."""
        check_call("Handler", self.job, self.run, "job", "session")
        Policy.__post_init__(self)


MAX_PARTITIONS = 1_000


@dataclass(frozen=True, slots=True)
class ChunkedHandler(Policy, Generic[J, C]):
    """One job in many transactions, each of which moves the cursor. It resumes after the last that committed."""

    job: type[J]
    run: Callable[[J, AsyncSession, Chunk[C]], Awaitable[Step[C]]]
    cursor: type[C]
    """The cursor's type; pydantic writes it to JSON and reads it back."""
    size: int = 1_000
    """Rows of the first chunk. Those after it take as many as `target` lets them."""
    target: timedelta | None = timedelta(seconds=1)
    """Time of one chunk; `chunk.size` adapts to it. None: the size stays as it is."""
    min_size: int | None = None
    """A tenth of `size` unless given."""
    max_size: int | None = None
    """Ten times `size` unless given."""
    yield_after: timedelta = timedelta(seconds=30)
    """When the slot is given up, so long after the first chunk, other due jobs of the queue have their turn."""
    partitions: int = 1
    """Parts of the key range that are gone through at the same time, each by a job of its own."""
    split: Callable[[J, AsyncSession, int], Awaitable[Sequence[C]]] | None = None
    """Given the number of partitions, the bounds between them: strictly ascending, and fewer where that is enough.

    A bound belongs to the partition below it; the first partition has no lower and the last no upper bound. The handler
    has to heed `chunk.lower` and `chunk.upper`. `worker.keys` has both halves for a table with a key.
    """
    codec: TypeAdapter[C] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises ValueError as a Handler does, and pydantic's errors for a cursor type that it can't write."""
        check_call("ChunkedHandler", self.job, self.run, "job", "session", "chunk")
        Policy.__post_init__(self)
        object.__setattr__(self, "codec", TypeAdapter(self.cursor))
        owner = f"The chunked handler of {self.job.job_name}"
        given = f"{owner} got"
        check_kinds(owner, self, OF_CHUNKS)
        if self.size < 1:
            raise ValueError(f"{given} size={self.size}; give at least 1.")
        if self.target is not None and self.target <= timedelta(0):
            raise ValueError(f"{given} target={self.target}; give a time above zero, or None for a size that stays.")
        if self.yield_after < timedelta(0):
            raise ValueError(f"{given} yield_after={self.yield_after}; give a time of zero or more.")
        if not 1 <= self.partitions <= MAX_PARTITIONS:
            raise ValueError(f"{given} partitions={self.partitions}; give 1 to {MAX_PARTITIONS:,}.")
        if (self.partitions > 1) != (self.split is not None):
            raise ValueError(f"{given} only one of partitions and split; give both or neither.")
        if self.partitions > 1 and self.rate is not None:
            raise ValueError(f"{given} a rate and partitions, whose starts would use it up; give one of them.")
        sizes = self.sizes
        if not 1 <= sizes.smallest <= self.size <= sizes.largest:
            bounds = f"min_size={sizes.smallest}, size={self.size} and max_size={sizes.largest}"
            raise ValueError(f"{given} {bounds}; give them in ascending order, from 1.")

    @property
    def sizes(self) -> Sizes:
        """What a chunk's size is held to."""
        smallest = max(1, self.size // 10) if self.min_size is None else self.min_size
        return Sizes(self.target, smallest, self.size * 10 if self.max_size is None else self.max_size)


MAX_BATCH = 5_000
LONGEST_LINGER = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class BatchHandler(Policy, Generic[J]):
    """Many jobs of one name, one call, one transaction. Those that would spoil it for the others end up alone."""

    job: type[J]
    run: Callable[[Sequence[J], AsyncSession], Awaitable[Sequence[object] | None]]
    """Returns nothing, or a result for each job, in their order."""
    max_size: int = 500
    """Jobs in one call, at most. There may always be fewer, and just one."""
    linger: timedelta = timedelta(milliseconds=20)
    """How long the first job waits for others."""

    def __post_init__(self) -> None:
        """Raises ValueError as a Handler does."""
        check_call("BatchHandler", self.job, self.run, "jobs", "session")
        Policy.__post_init__(self)
        owner = f"The batch handler of {self.job.job_name}"
        given = f"{owner} got"
        check_kinds(owner, self, OF_BATCHES)
        if not 1 <= self.max_size <= MAX_BATCH:
            raise ValueError(f"{given} max_size={self.max_size}; give 1 to {MAX_BATCH:,}.")
        if not timedelta(0) <= self.linger <= LONGEST_LINGER:
            raise ValueError(f"{given} linger={self.linger}; give a time of zero to {LONGEST_LINGER}.")


AnyHandler: TypeAlias = Handler[Any] | ChunkedHandler[Any, Any] | BatchHandler[Any]
HandlerTable: TypeAlias = Mapping[str, AnyHandler]


def keeps_run(handler: AnyHandler) -> bool:
    """Whether a success is remembered in `worker.run`, so that a second delivery is a Duplicate."""
    return not isinstance(handler, Handler) or handler.once


def bind(handlers: Iterable[AnyHandler]) -> HandlerTable:
    """The table of handlers by the names and aliases of their jobs.

    Raises ValueError for what is no handler, where a job has no name or a field of an unknown type, or two handlers
    claim one name.
    """
    table: dict[str, AnyHandler] = {}
    for handler in handlers:
        if not isinstance(handler, Policy):  # pyright: ignore[reportUnnecessaryIsInstance]  # a star is easily left out
            raise ValueError(  # noqa: TRY004 - as the others
                f"The app has {handler!r} among its handlers; give each as a Handler, ChunkedHandler or BatchHandler, "
                "and those of a tuple with a star before it."
            )
        if not handler.job.job_name:
            raise ValueError(
                f"{handler.job.__name__} has no job name; write class {handler.job.__name__}(Job, name=…)."
            )
        check_fields(handler.job)
        for name in (handler.job.job_name, *handler.job.job_aliases):
            if name in table:
                raise ValueError(
                    f"The job name {name!r} has two handlers, "
                    f"for {table[name].job.__name__} and {handler.job.__name__}; keep one."
                )
            table[name] = handler
    return MappingProxyType(table)


def gates(handlers: HandlerTable) -> Mapping[str, Gate]:
    """What a message has to pass, by the name that it carries; aliases share the limits of their job's name."""
    return {
        name: Gate(handler.job.job_name, handler.max_concurrent, handler.rate) for name, handler in handlers.items()
    }
