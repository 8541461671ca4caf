"""What a handler can't be made with, found out when the app is loaded, and not by each of its jobs."""

import inspect
from collections.abc import Mapping
from datetime import timedelta
from types import NoneType
from typing import TypeAlias

from pydantic import PydanticUndefinedAnnotation

from worker.job import Job
from worker.limits import Rate
from worker.retry import RetryPolicy

Kinds: TypeAlias = Mapping[str, tuple[tuple[type, ...], str]]
"""By a policy's name: of which types it may be, and what to give. No type checker has seen every app."""

OF_ALL: Kinds = {
    "retry": ((RetryPolicy,), "a RetryPolicy"),
    "timeout": ((timedelta,), "a timedelta"),
    "statement_timeout": ((timedelta, NoneType), "a timedelta, or None"),
    "lock_timeout": ((timedelta, NoneType), "a timedelta, or None"),
    "max_concurrent": ((int, NoneType), "a whole number, or None"),
    "rate": ((Rate, NoneType), "a Rate, or None"),
}
OF_CHUNKS: Kinds = {
    "size": ((int,), "a whole number"),
    "target": ((timedelta, NoneType), "a timedelta, or None"),
    "min_size": ((int, NoneType), "a whole number, or None"),
    "max_size": ((int, NoneType), "a whole number, or None"),
    "yield_after": ((timedelta,), "a timedelta"),
    "partitions": ((int,), "a whole number"),
}
OF_BATCHES: Kinds = {
    "max_size": ((int,), "a whole number"),
    "linger": ((timedelta,), "a timedelta"),
}


def check_kinds(owner: str, policy: object, kinds: Kinds) -> None:
    """Raises ValueError for a policy of another kind."""
    for name, (allowed, wanted) in kinds.items():
        given: object = getattr(policy, name)
        if not isinstance(given, allowed) or isinstance(given, bool):
            raise ValueError(f"{owner} got {name}={given!r}; give {wanted}.")  # noqa: TRY004 - as all others here


def check_call(kind: str, job: object, run: object, *given: str) -> None:
    """Raises ValueError for what is no class of Job, and a function that can't be called with what is `given`."""
    if not (isinstance(job, type) and issubclass(job, Job)):  # the two are easily swapped
        raise ValueError(f"A {kind} got {job!r} for its job; give a class of Job first, then its function.")  # noqa: TRY004 - as above
    name = job.job_name or job.__name__
    if not callable(run):
        raise ValueError(f"The {kind} of {name} got {run!r}; give an async function.")  # noqa: TRY004 - as above
    if inspect.isasyncgenfunction(run) or inspect.isgeneratorfunction(run):  # each of its jobs would be dead at once
        raise ValueError(
            f"The {kind} of {name} got {run!r}, which is a generator; give an async function without yield in it."
        )
    try:
        signature = inspect.signature(run, follow_wrapped=False)  # a decorator may give what its function needs
    except (TypeError, ValueError):  # it has none, as much of what is written in C
        return
    try:
        signature.bind(*given)
    except TypeError as error:
        raise ValueError(
            f"The {kind} of {name} can't call its function with ({', '.join(given)}): {error}; "
            "take these, and give what else it needs with functools.partial."
        ) from None


def check_fields(job: type[Job]) -> None:
    """Raises ValueError where a field's type isn't known: each payload that came would be dead at once.

    Not before all modules are loaded, since a type may stand below the job that names it.
    """
    try:
        job.model_rebuild()
    except PydanticUndefinedAnnotation as error:
        raise ValueError(
            f"{job.__name__} has a field whose type {error.name} isn't known when it runs; import that outside of "
            "`if TYPE_CHECKING`."
        ) from None
