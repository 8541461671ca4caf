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
    stays: str
    """A test of the same code that has to stay green: what is broken altogether would turn anything red."""


UNLOCKED = """is not null as is_parted
), locked as (
    select * from inserted
    union all select status, attempt, result, error, next_at, created_at, false,
        partitions is not null or parent_id is not null
    from worker.run where id = $1 and enqueued_ms = $2 and exists (select from admitted)
)
"""

MUTATIONS = (
    Mutation(
        "the run row's lock",
        "worker/ledger.py",
        (
            ("), locked as (\n    insert into", "), inserted as (\n    insert into"),
            ("(id, enqueued_ms) do update set name = run.name\n", "(id, enqueued_ms) do nothing\n"),
            ("created_at, $9 and xmax = 0 as is_marked", "created_at, $9 and true as is_marked"),
            ("is not null as is_parted\n)\n", UNLOCKED),
        ),
        ("tests/runtime/test_begin.py::test_two_workers_with_a_run_that_is_there_have_one_effect",),
        "tests/runtime/test_begin.py::test_a_job_from_the_outbox_is_applied_and_its_run_remembers_it",
    ),
    Mutation(
        "the commit shield",
        "worker/faults.py",
        (("await to_its_end(committing)", "await committing"),),
        ("tests/runtime/test_commit.py::test_a_commit_under_way_is_finished_though_the_attempt_is_cancelled",),
        "tests/runtime/test_commit.py::test_a_part_that_may_fail_stands_in_begin_nested",
    ),
    Mutation(
        "the reading of COMMIT's answer",
        "worker/driver.py",
        (('if query == "COMMIT;" and tag == "ROLLBACK":', 'if query == "" and tag == "ROLLBACK":'),),
        ("tests/runtime/test_unkept.py::test_a_swallowed_database_error_is_read_from_the_answer_to_commit",),
        "tests/runtime/test_unkept.py::test_a_success_keeps_no_run_and_takes_its_outbox_row",
    ),
    Mutation(
        "the coalescing of keys",
        "worker/lanes.py",
        (("window same as (partition by rows.id)", "window same as (partition by rows.seq)"),),
        ("tests/outbox/test_keys.py::test_of_several_unsent_rows_the_newest_stays_with_the_earliest_due_time",),
        "tests/outbox/test_keys.py::test_a_change_made_while_the_first_runs_is_not_missed",
    ),
    Mutation(
        "the token check",
        "worker/settle_script.py",
        (("settled[n] = tokens[n] == token and 1 or 0", "settled[n] = 1"),),
        ("tests/consumer/test_settling.py::test_who_has_lost_the_lease_tells_redis_nothing",),
        "tests/consumer/test_settling.py::test_cancelled_is_acknowledged_with_its_reason",
    ),
    Mutation(
        "the ending of a zombie's backend",
        "worker/zombies.py",
        (("select pg_terminate_backend(activity.pid)", "select activity.pid"),),
        (
            "tests/runtime/test_zombies.py::test_a_stopped_workers_backend_is_ended_by_the_one_that_takes_over_and_its_work_is_undone",
        ),
        "tests/runtime/test_zombies.py::test_a_persons_psql_is_never_ended",
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
        "tests/outbox/test_promise.py::test_a_job_without_a_key_or_an_id_of_its_own_is_a_job_each_time",
    ),
    Mutation(
        "next_at as the truth",
        "worker/ledger.py",
        (("if wait is not None and wait > timedelta(0):", "if wait is not None and wait > timedelta.max:"),),
        ("tests/runtime/test_begin.py::test_a_run_whose_next_time_lies_ahead_is_put_back_for_as_long",),
        "tests/runtime/test_begin.py::test_a_job_from_the_outbox_is_applied_and_its_run_remembers_it",
    ),
    Mutation(
        "the identity by enqueue time",
        "worker/call.py",
        (("Identity(job_id, message.enqueued_ms,", "Identity(job_id, 1,"),),
        ("tests/runtime/test_begin.py::test_the_same_id_enqueued_at_another_time_is_another_job",),
        "tests/runtime/test_begin.py::test_a_direct_job_that_is_delivered_often_is_applied_once",
    ),
)
