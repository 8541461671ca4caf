"""What the promise stands on, and how each of it is switched off."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    name: str
    file: str
    changes: tuple[tuple[str, str], ...]
    """(from, to): the former must stand in the file exactly once."""
    tests: tuple[str, ...]
    """Where at least one has to turn red."""


UNLOCKED = """created_at, $9 and true as is_marked
), locked as (
    select * from inserted
    union all select status, attempt, cursor, result, error, next_at, created_at, false from worker.run
    where id = $1 and enqueued_ms = $2 and exists (select from admitted)
)
"""

MUTATIONS = (
    Mutation(
        "the run row's lock",
        "worker/run.py",
        (
            ("), locked as (\n    insert into", "), inserted as (\n    insert into"),
            ("(id, enqueued_ms) do update set name = run.name\n", "(id, enqueued_ms) do nothing\n"),
            ("created_at, $9 and xmax = 0 as is_marked\n)\n", UNLOCKED),
        ),
        (
            "tests/runtime/test_begin.py::test_a_lock_that_somebody_else_holds_is_waited_for_until_the_lock_timeout",
            "tests/runtime/test_begin.py::test_two_workers_with_the_same_delivery_at_once_have_one_effect",
        ),
    ),
    Mutation(
        "the commit shield",
        "worker/faults.py",
        (("await to_its_end(committing)", "await committing"),),
        ("tests/runtime/test_commit.py::test_a_commit_under_way_is_finished_though_the_attempt_is_cancelled",),
    ),
    Mutation(
        "the reading of COMMIT's answer",
        "worker/driver.py",
        (('if query == "COMMIT;" and tag == "ROLLBACK":', 'if query == "" and tag == "ROLLBACK":'),),
        ("tests/runtime/test_unkept.py::test_a_swallowed_database_error_is_read_from_the_answer_to_commit",),
    ),
    Mutation(
        "the coalescing of keys",
        "worker/lanes.py",
        (("window same as (partition by rows.id)", "window same as (partition by rows.seq)"),),
        ("tests/outbox/test_keys.py::test_of_several_unsent_rows_the_newest_stays_with_the_earliest_due_time",),
    ),
    Mutation(
        "the token check",
        "worker/settle_script.py",
        (("settled[n] = tokens[n] == token and 1 or 0", "settled[n] = 1"),),
        ("tests/consumer/test_settling.py::test_who_has_lost_the_lease_tells_redis_nothing",),
    ),
    Mutation(
        "the ending of a zombie's backend",
        "worker/zombies.py",
        (("select pg_terminate_backend(activity.pid)", "select activity.pid"),),
        (
            "tests/runtime/test_zombies.py::test_a_stopped_workers_backend_is_ended_by_the_one_that_takes_over_and_its_work_is_undone",
        ),
    ),
    Mutation(
        "the outbox sweep",
        "worker/sweep.py",
        (
            (
                "if self._after is None and not await self._begin():",
                "if self._after is None or self._after is not None:",
            ),
        ),
        ("tests/outbox/test_sweep.py::test_whole_is_the_message_and_its_place_in_the_queue",),
    ),
    Mutation(
        "next_at as the truth",
        "worker/run.py",
        (("if wait is not None and wait > timedelta(0):", "if wait is not None and wait > timedelta.max:"),),
        ("tests/runtime/test_begin.py::test_a_run_whose_next_time_lies_ahead_is_put_back_for_as_long",),
    ),
    Mutation(
        "the identity by enqueue time",
        "worker/executor.py",
        (("ledger.Identity(job_id, message.enqueued_ms,", "ledger.Identity(job_id, 1,"),),
        ("tests/runtime/test_begin.py::test_the_same_id_enqueued_at_another_time_is_another_job",),
    ),
)
