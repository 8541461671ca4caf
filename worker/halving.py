"""A batch, carried out. Where it fails it is halved, until the bad jobs stand alone and the others have committed."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import assert_never

from worker.attempt import IMMEDIATE_RETRIES, Crew, Settled
from worker.batch_transaction import Share
from worker.faults import FateUnknown, LedgerBusy, is_conflict, is_lost_connection, is_pool_empty, plainly
from worker.ledger import Ended, NotDue
from worker.member import Member
from worker.outcome import BUSY, OFFER_AGAIN, Completed, Outcome, Released
from worker.setback import duplicate_of
from worker.shield import to_its_end


class Halving:
    """Of one batch. Every member is told what came of it, unless the batch is cancelled."""

    def __init__(self, members: Sequence[Member], crew: Crew, is_stopping: Callable[[], bool]) -> None:
        """`is_stopping`: whether the calling task was cancelled, whatever a handler made of that."""
        self._members = members
        self._crew = crew
        self._is_stopping = is_stopping
        self._timeout = members[0].work.handler.timeout
        self._has_begun = False
        """Whether the last try had a connection and the runs."""
        self._was_called = False
        """Whether any had."""

    async def carry_out(self) -> None:
        """Those that were aborted meanwhile first, each alone; the others together."""
        aborted = [member for member in self._members if member.work.delivery.hold.is_aborted()]
        await self._each_alone(aborted)
        await self._carry_out(self._members)

    async def _carry_out(self, members: Sequence[Member], *, fate_unknown: bool = False) -> None:
        """Together where there are several. `fate_unknown`: the commit of an earlier try may have gone through."""
        members = [member for member in members if member.is_pending]
        if len(members) < 2:  # noqa: PLR2004 - one is alone
            await self._each_alone(members)
            return
        for _ in range(1 + IMMEDIATE_RETRIES):
            made = await self._try(members)
            if not isinstance(made, BaseException):
                await self._each_alone(self._tell(members, made, fate_unknown=fate_unknown))
                return
            if is_lost_connection(made) and not await to_its_end(self._crew.availability.check()):
                self.release("PostgreSQL is away", BUSY)
                return
            if is_pool_empty(made) and not self._has_begun:
                self.release("no connection is free", BUSY)
                return
            fate_unknown |= isinstance(made, FateUnknown)
            if not _is_nobodys_fault(made):
                break
        middle = len(members) // 2
        for half in members[:middle], members[middle:]:
            await self._carry_out(half, fate_unknown=fate_unknown)

    async def _try(self, members: Sequence[Member]) -> list[Share] | BaseException:
        """One transaction, or what it raised, whatever a handler raises."""
        self._extend_leases(1)
        self._has_begun = False
        try:
            return await self._crew.many.carry_out([member.work for member in members], self._begun)
        except GeneratorExit:
            raise
        except BaseException as error:
            if self._is_stopping():
                raise asyncio.CancelledError from error
            return plainly(error)

    def _begun(self) -> None:
        self._has_begun = self._was_called = True

    def _tell(self, members: Sequence[Member], shares: Sequence[Share], *, fate_unknown: bool) -> list[Member]:
        """Tell what came of a transaction that committed. Returns those whose runs weren't to be had."""
        left: list[Member] = []
        for member, (done, failures) in zip(members, shares, strict=True):
            outcome: Outcome
            match done:
                case None:
                    left.append(member)
                    continue
                case Completed():
                    outcome = done
                case NotDue():
                    outcome = Released("it isn't due", done.delay)
                case Ended():
                    is_ours = fate_unknown and done.status == "completed"
                    outcome = Completed(done.result) if is_ours else duplicate_of(done)
                case _:
                    assert_never(done)
            member.tell(Settled(outcome, None, failures + 1, has_begun=isinstance(done, Completed)))
        return left

    async def _each_alone(self, members: Sequence[Member]) -> None:
        """One after another, since they have one slot: retries, dead letters and zombies are `Attempt`'s."""
        for member in members:
            self._extend_leases(1 + IMMEDIATE_RETRIES)
            await member.stand_alone()

    def release(self, reason: str, delay: timedelta = timedelta(0)) -> None:
        """Put back all that wait."""
        for member in self._members:
            if member.is_pending:
                member.tell(Settled(Released(reason, delay), has_begun=self._was_called))

    def fail(self, fault: Exception) -> None:
        """The runtime failed. One delivery tells of it; the others are put back."""
        for member in self._members:
            if member.is_pending:
                member.tell(fault)
                break
        self.release("the runtime failed", OFFER_AGAIN)

    def _extend_leases(self, transactions: int) -> None:
        """Of all that wait, and of the first, whose delivery lasts as long as the batch."""
        for member in self._members:
            if member.is_pending or member is self._members[0]:
                member.work.delivery.hold.begins(self._timeout * transactions)


def _is_nobodys_fault(error: BaseException) -> bool:
    """Whether the same transaction may well succeed at once."""
    return is_lost_connection(error) or is_conflict(error) or (isinstance(error, LedgerBusy) and error.is_conflict)
