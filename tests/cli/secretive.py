"""An application whose jobs are full of secrets: `WORKER_APP=tests.cli.secretive:app`."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from worker.app import App
from worker.errors import Permanent
from worker.handler import Handler
from worker.job import Job
from worker.retry import RetryPolicy

PAYLOAD = "payload-hunter2"
TOLD = "told-hunter2"
"""What a handler puts into its error."""


class Keep(Job, name="secret.keep"):
    """Keeps it."""

    secret: str


class Tell(Job, name="secret.tell"):
    """Raises it."""

    secret: str


class Ask(Job, name="secret.ask"):
    """Has PostgreSQL quote it in an error."""

    secret: str


async def keep(_job: Keep, _session: AsyncSession) -> None:
    """Done."""


async def tell(_job: Tell, _session: AsyncSession) -> None:
    raise Permanent(TOLD)


async def ask(job: Ask, session: AsyncSession) -> None:
    await session.execute(text("select cast(cast(:secret as text) as int)"), {"secret": job.secret})


ONCE = RetryPolicy(attempts=1)
app = App(handlers=[Handler(Keep, keep), Handler(Tell, tell), Handler(Ask, ask, retry=ONCE)])
