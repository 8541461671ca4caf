"""Jobs of batch handlers: each in its own delivery's task, carried out together by the task of a batch."""

import asyncio
from contextvars import copy_context
from functools import partial
from typing import Any

from worker.attempt import ABORTED, Attempt, Crew, Settled
from worker.call import Work
from worker.gather import Batch
from worker.halving import Halving
from worker.handler import BatchHandler
from worker.member import Member
from worker.outcome import Completed, Released
from worker.reporting.bound import bound
from worker.reporting.observer import Observation
from worker.shield import is_cancelled, to_its_end


class Batches:
    """Those of one process. At most one of each handler gathers; the others are being carried out."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._gathering: dict[str, Batch] = {}
        # What a batch logs belongs to no single job, so its task begins in a context without one, and names their kind.
        self._context = copy_context()

    async def settle(self, work: Work, handler: BatchHandler[Any], observation: Observation) -> Settled:
        """Carry out one job together with others, until there is an outcome for it."""
        member = Member(work)
        batch = self._joined(member, handler)
        heed = partial(batch.heed, work)
        settled = await member.hear(heed)
        if settled is None:
            settled = await self._alone(member, observation)
        elif isinstance(settled.outcome, Completed):
            # It began in the batch's task, but what observers bind to a context belongs to this one.
            observation.begun(settled.attempt)
        if member is batch.members[0]:
            await batch.end(heed)
        return settled

    def _joined(self, member: Member, handler: BatchHandler[Any]) -> Batch:
        """The batch that it has joined, or begun."""
        gathering = self._gathering.get(handler.job.job_name)
        if gathering is not None and gathering.takes(member.work):
            gathering.join(member)
            return gathering
        if gathering is not None:
            gathering.close()
        name, context = handler.job.job_name, self._context.copy()
        context.run(bound.set, lambda: {"job": name})
        batch = self._gathering[name] = Batch(handler, member)
        batch.start(self._carry_out(batch), context)
        return batch

    async def _carry_out(self, batch: Batch) -> None:
        """Whatever happens, every member is told something."""
        halving = Halving(batch.members, self._crew, lambda: batch.is_stopping)
        try:
            try:
                await batch.gather()
            finally:
                batch.close()
                if self._gathering.get(batch.handler.job.job_name) is batch:
                    del self._gathering[batch.handler.job.job_name]
            await halving.carry_out()
        except asyncio.CancelledError:
            halving.release("the worker stops")
        except Exception as fault:  # noqa: BLE001 - of the runtime: the executor tells of it, once
            halving.fail(fault)

    async def _alone(self, member: Member, observation: Observation) -> Settled:
        """As any other job, in its own delivery's task."""
        work = member.work
        try:
            if work.delivery.hold.is_aborted():
                return Settled(await to_its_end(self._crew.setbacks.record(work.run, work.raw, None, ABORTED)))
            if is_cancelled():
                return Settled(Released("the worker stops"))
            return await Attempt(work, self._crew, observation).settle()
        finally:
            member.end()
