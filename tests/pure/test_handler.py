"""The table of handlers, and what a policy may say."""

from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import timedelta
from functools import partial, wraps
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession

from worker.chunk import Chunk, Step
from worker.handler import BatchHandler, ChunkedHandler, Handler, bind, gates, keeps_run
from worker.job import Job
from worker.limits import Gate, Limits, Paused, Rate
from worker.retry import RetryPolicy


class Pay(Job, name="pay", aliases=("charge",)):
    pass


class Ship(Job, name="ship"):
    pass


class Charge(Job, name="charge"):
    pass


class Nameless(Job):
    pass


async def do(job: Job, session: AsyncSession) -> None:
    pass


async def count(job: Ship, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
    return chunk.step(None)


async def ship_many(jobs: Sequence[Ship], session: AsyncSession) -> None:
    pass


def test_the_defaults_are_a_timeout_of_300_s_5_attempts_read_committed_and_once() -> None:
    handler = Handler(Pay, do)
    assert (handler.timeout, handler.retry) == (timedelta(seconds=300), RetryPolicy())
    assert (handler.isolation, handler.once) == ("READ COMMITTED", True)
    assert (handler.statement_timeout, handler.lock_timeout) == (None, None)


def test_a_handler_is_found_under_its_jobs_name_and_aliases() -> None:
    pay, ship = Handler(Pay, do), BatchHandler(Ship, ship_many)
    assert dict(bind([pay, ship])) == {"pay": pay, "charge": pay, "ship": ship}


def test_two_handlers_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="'pay' has two handlers"):
        bind([Handler(Pay, do), Handler(Pay, do)])
    with pytest.raises(ValueError, match="'charge' has two handlers, for Pay and Charge"):
        bind([Handler(Pay, do), Handler(Charge, do)])


def test_a_job_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Nameless has no job name; write class Nameless\(Job, name=…\)"):
        bind([Handler(Nameless, do)])


def test_the_table_cant_be_changed() -> None:
    table: Any = bind([Handler(Pay, do)])
    with pytest.raises(TypeError):
        table["ship"] = Handler(Ship, do)


@pytest.mark.parametrize("limit", ["timeout", "statement_timeout", "lock_timeout"])
def test_a_limit_is_above_zero(limit: str) -> None:
    wrong: dict[str, Any] = {limit: timedelta(0)}
    long: dict[str, Any] = {limit: timedelta(days=30)}
    with pytest.raises(ValueError, match=f"{limit}=0:00:00; give a time above zero"):
        Handler(Pay, do, **wrong)
    with pytest.raises(ValueError, match=limit):
        ChunkedHandler(Ship, count, cursor=int, **wrong)
    with pytest.raises(ValueError, match=limit):
        BatchHandler(Ship, ship_many, **wrong)
    with pytest.raises(ValueError, match=f"{limit}=30 days, 0:00:00; give a time above zero, up to 24 days"):
        Handler(Pay, do, **long)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"retry": 3}, "retry=3; give a RetryPolicy"),
        ({"timeout": 30}, "timeout=30; give a timedelta"),
        ({"lock_timeout": 1.5}, "lock_timeout=1.5; give a timedelta, or None"),
        ({"max_concurrent": 1.5}, "max_concurrent=1.5; give a whole number, or None"),
        ({"max_concurrent": True}, "max_concurrent=True; give a whole number, or None"),
        ({"rate": "10/s"}, "rate='10/s'; give a Rate, or None"),
        ({"isolation": "serializable"}, "isolation='serializable'; give one of READ COMMITTED, REPEATABLE READ, S"),
    ],
)
def test_a_policy_of_the_wrong_kind_is_refused_before_a_job_runs(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"A handler got {sentence}"):
        Handler(Pay, do, **wrong)
    with pytest.raises(ValueError, match=f"A handler got {sentence}"):
        BatchHandler(Ship, ship_many, **wrong)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"size": "5"}, "size='5'; give a whole number"),
        ({"target": 1.5}, "target=1.5; give a timedelta, or None"),
        ({"min_size": 1.5}, "min_size=1.5; give a whole number, or None"),
        ({"max_size": "5"}, "max_size='5'; give a whole number, or None"),
        ({"yield_after": 30}, "yield_after=30; give a timedelta"),
        ({"partitions": 1.5}, "partitions=1.5; give a whole number"),
    ],
)
def test_a_chunked_handler_with_a_limit_of_the_wrong_kind_is_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"The chunked handler of ship got {sentence}"):
        ChunkedHandler(Ship, count, cursor=int, **wrong)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [({"max_size": "5"}, "max_size='5'; give a whole number"), ({"linger": 0.1}, "linger=0.1; give a timedelta")],
)
def test_a_batch_handler_with_a_limit_of_the_wrong_kind_is_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"The batch handler of ship got {sentence}"):
        BatchHandler(Ship, ship_many, **wrong)


@pytest.mark.parametrize("wrong", [do, Ship(), "ship", None])
def test_a_handler_of_what_is_no_class_of_a_job_is_refused(wrong: Any) -> None:
    sentence = "got .* for its job; give a class of Job first, then its function"
    with pytest.raises(ValueError, match=f"^A Handler {sentence}"):
        Handler(wrong, do)
    with pytest.raises(ValueError, match=f"^A ChunkedHandler {sentence}"):
        ChunkedHandler(wrong, count, cursor=int)
    with pytest.raises(ValueError, match=f"^A BatchHandler {sentence}"):
        BatchHandler(wrong, ship_many)


@pytest.mark.parametrize("wrong", [(Handler(Pay, do),), Ship, "ship", None])
def test_what_is_no_handler_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"among its handlers; give each as a Handler, .* with a star before it"):
        bind([Handler(Ship, do), wrong])


@pytest.mark.parametrize(("count", "per"), [(1.5, timedelta(seconds=1)), (1, 2)])
def test_a_rate_is_a_whole_number_in_a_time(count: Any, per: Any) -> None:
    with pytest.raises(ValueError, match="is none; give a whole number and a timedelta"):
        Rate(count, per)


def test_a_chunk_has_at_least_one_row() -> None:
    with pytest.raises(ValueError, match="ship got size=0"):
        ChunkedHandler(Ship, count, cursor=int, size=0)


def test_a_limit_that_lets_nothing_start_is_refused() -> None:
    with pytest.raises(ValueError, match="A handler got max_concurrent=0; give at least 1"):
        Handler(Pay, do, max_concurrent=0)
    for count, per in ((0, timedelta(seconds=1)), (1, timedelta(0))):
        with pytest.raises(ValueError, match=f"A rate of {count} in {per} lets nothing start"):
            Rate(count, per)


def test_a_rate_that_is_too_much_to_remember_is_refused() -> None:
    with pytest.raises(ValueError, match="A rate of 10,001 in 1:00:00 is more than 10,000; give fewer in less time"):
        Rate(10_001, timedelta(hours=1))


def test_limits_are_told_of_names_that_have_some_and_aliases_share_them() -> None:
    rate = Rate(3, timedelta(seconds=2))
    table = bind([Handler(Pay, do, max_concurrent=4, rate=rate), ChunkedHandler(Ship, count, cursor=int)])
    limits = Limits(gates(table))
    assert gates(table)["charge"] == Gate("pay", 4, rate)
    assert list(limits.arguments()) == ["pay", "pay", 4, 3, 2000.0, "charge", "pay", 4, 3, 2000.0]
    limits.pause(Paused(names=frozenset({"charge", "stranger"})))
    assert sorted(zip(*[iter(limits.arguments())] * 5, strict=True)) == [
        ("charge", "pay", 0, 3, 2000.0),
        ("pay", "pay", 0, 3, 2000.0),
        ("stranger", "stranger", 0, "", ""),
    ]
    limits.pause(Paused())
    assert len(limits.arguments()) == 10


def test_a_batch_is_of_500_at_most_and_waits_20_ms_unless_told_otherwise() -> None:
    handler = BatchHandler(Ship, ship_many)
    assert (handler.max_size, handler.linger) == (500, timedelta(milliseconds=20))


@pytest.mark.parametrize("size", [0, 5_001])
def test_a_batch_has_1_to_5000_jobs(size: int) -> None:
    with pytest.raises(ValueError, match=f"^The batch handler of ship got max_size={size}; give 1 to 5,000"):
        BatchHandler(Ship, ship_many, max_size=size)
    assert BatchHandler(Ship, ship_many, max_size=5_000).max_size == 5_000


@pytest.mark.parametrize("linger", [timedelta(seconds=-1), timedelta(seconds=10.1)])
def test_a_batch_waits_for_10_seconds_at_most(linger: timedelta) -> None:
    with pytest.raises(ValueError, match=r"^The batch handler of ship got linger=.*; give a time of zero to 0:00:10"):
        BatchHandler(Ship, ship_many, linger=linger)
    assert not BatchHandler(Ship, ship_many, linger=timedelta(0)).linger


def test_handlers_keep_runs_unless_they_say_otherwise() -> None:
    kept = (Handler(Pay, do), ChunkedHandler(Ship, count, cursor=int), BatchHandler(Ship, ship_many))
    assert all(keeps_run(handler) for handler in kept)
    assert not keeps_run(Handler(Pay, do, once=False))


# --- fields of a type that isn't known --------------------------------------------------------------------------------


class Settle(Job, name="settle"):
    """Its field's type stands below it."""

    by: "Card"


class Card(BaseModel):
    number: str


def test_a_type_that_stands_below_its_job_is_known_when_the_app_is_made() -> None:
    bind([Handler(Settle, do)])
    assert Settle.from_payload(b'{"by": {"number": "4"}}') == Settle(by=Card(number="4"))


def test_a_field_whose_type_isnt_known_is_refused_before_a_job_runs() -> None:
    """As where a linter has moved its import below `if TYPE_CHECKING`."""
    namespace = {"__module__": __name__, "__annotations__": {"day": "Moved"}}
    close: Any = type("Close", (Job,), namespace, name="close")
    with pytest.raises(ValueError, match="Close has a field whose type Moved isn't known when it runs; import that"):
        bind([Handler(close, do)])


# --- what can't be called, before a job finds out ---------------------------------------------------------------------


async def takes_the_job_alone(job: Job) -> None:
    pass


async def yields(job: Job, session: AsyncSession) -> AsyncIterator[int]:
    yield 1


def yields_in_turn(job: Job, session: AsyncSession) -> Iterator[int]:
    yield 1


async def wants_a_mailer(job: Job, session: AsyncSession, *, mailer: object) -> None:
    pass


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        (takes_the_job_alone, r"The Handler of pay can't call its function with \(job, session\): too many positional"),
        (wants_a_mailer, r"missing a required .*'mailer'; take these, and give what else it needs with functools\.p"),
        (count, r"missing a required .*'chunk'; take these"),
        (None, r"The Handler of pay got None; give an async function"),
        (yields, r"The Handler of pay got <function yields .*, which is a generator; give an async function without"),
        (yields_in_turn, r"which is a generator"),
        (partial(yields), r"which is a generator"),
    ],
)
def test_a_function_that_cant_be_called_is_refused_before_a_job_runs(run: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Handler(Pay, run)


def test_so_it_is_for_chunks_and_batches() -> None:
    wrong: Any = takes_the_job_alone
    with pytest.raises(ValueError, match=r"The ChunkedHandler of ship .* with \(job, session, chunk\)"):
        ChunkedHandler(Ship, wrong, cursor=int)
    with pytest.raises(ValueError, match=r"The BatchHandler of ship .* with \(jobs, session\)"):
        BatchHandler(Ship, wrong)


def test_what_is_bound_beforehand_is_given() -> None:
    class Callable:
        async def __call__(self, *given: object) -> None: ...

    async def takes_more(job: Pay, session: AsyncSession, more: int = 1) -> None: ...

    for run in (partial(wants_a_mailer, mailer=None), Callable(), takes_more):
        assert Handler(Pay, run).run is run


def test_a_decorator_may_give_what_its_function_needs() -> None:
    """What is called is the wrapper, whatever functools.wraps has it say of itself."""

    @wraps(wants_a_mailer)
    async def mailing(job: Pay, session: AsyncSession) -> None:
        await wants_a_mailer(job, session, mailer=None)

    assert Handler(Pay, mailing).run is mailing
