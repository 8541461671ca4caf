"""procrastinate over psycopg, woken by LISTEN, as it comes otherwise."""

import logging
from contextlib import asynccontextmanager

import uvloop
from procrastinate import App, PsycopgConnector

from bench.inside import main
from bench.order import connect, pay_in_session


class Client:
    def __init__(self, tasks):
        self._tasks = tasks

    async def one(self, job, n):
        await self._tasks[job].defer_async(n=n)

    async def many(self, job, numbers):
        await self._tasks[job].batch_defer_async(*({"n": n} for n in numbers))


def app_of(given):
    sessions = connect(given.database_url, given.slots)
    app = App(connector=PsycopgConnector(conninfo=given.database_url, max_size=given.slots + 4))

    @app.task(name="noop")
    async def noop(n):
        given.tally.mark(n)

    @app.task(name="order")
    async def order(n):
        given.tally.mark(n)
        await pay_in_session(sessions, n)

    return app, {"noop": noop, "order": order}


@asynccontextmanager
async def producer(given):
    app, tasks = app_of(given)
    async with app.open_async():
        yield Client(tasks)


async def setup(given):
    app, _ = app_of(given)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


async def work(given):
    logging.disable(logging.INFO)
    app, _ = app_of(given)
    async with app.open_async():
        await app.run_worker_async(concurrency=given.slots)


if __name__ == "__main__":
    main(uvloop.run, producer, work, setup)
