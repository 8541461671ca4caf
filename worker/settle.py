"""What an outcome means for the job's message in Redis: taken out with its result, or offered again."""

import time
from datetime import timedelta
from typing import assert_never

from worker.claim import Claim
from worker.delivery import Report
from worker.endings import FOREVER, Finish, PutBack
from worker.outcome import Cancelled, Completed, Dead, Duplicate, Final, Released, Retrying, Snoozed, Yielded
from worker.wire import ABORTED, Result, encode_result


def ending(claim: Claim, report: Report, keep: timedelta) -> Finish | PutBack:
    """What to tell Redis of a delivery; a result is kept for `keep`."""
    match report.outcome:
        case Completed() | Duplicate() | Cancelled() | Dead():
            if report.kept is not None:
                return Finish(claim, report.kept.result, _ms(report.kept.duration), _ms(report.stays))
            keep_ms = _ms(keep)
            return Finish(claim, _result(claim, report, report.outcome) if keep_ms else b"", keep_ms)
        case Retrying(delay):
            stays, cleared = _ms(report.stays), not report.has_died
            return PutBack(claim, delay or None, report.adopted, report.attempt, stays, cleared=cleared)
        case Snoozed(delay):
            return PutBack(claim, delay, report.adopted, cleared=True)  # of zero: behind all that is due
        case Released(_, delay, clears, others_first):
            has_started = not report.has_begun
            return PutBack(
                claim,
                delay or None,
                report.adopted,
                cleared=clears,
                has_started=has_started,
                others_first=others_first,
            )
        case Yielded(delay, _, has_committed):
            return PutBack(claim, delay, report.adopted, cleared=has_committed, has_started=True)
        case _:
            assert_never(report.outcome)


def _ms(duration: timedelta | None) -> int:
    return FOREVER if duration is None else int(duration.total_seconds() * 1000)


def _result(claim: Claim, report: Report, outcome: Final) -> bytes:
    """The bytes of `arq:result`."""
    match outcome:
        case Completed(result) | Duplicate(result, None):
            success, value = True, result
        case Duplicate(_, error) | Dead(error):
            success, value = False, error
        case Cancelled(reason):
            success, value = False, f"{ABORTED}: {reason}"
        case _:
            assert_never(outcome)
    now = time.time_ns() // 1_000_000
    started, finished = report.started_ms or now, report.finished_ms or now
    return encode_result(
        Result(claim.job_id, claim.queue, report.message, report.attempt, success, value, started, finished)
    )
