"""The cases, in the order in which they run."""

from bench.case import Case
from bench.cases import (
    backlog,
    batch,
    bulk_memory,
    bulk_neighbours,
    bulk_reads,
    bulk_writes,
    commands,
    enqueue,
    latency,
    ledger,
    logline,
    noop,
    order,
    outbox,
    processes,
)

CASES = (
    Case("noop", "no-op, all queued, one process", noop.run),
    Case("ledger", "no-op with the ledger on, against a loop that writes the run", ledger.run),
    Case("order", "order job, exactly once with the ledger on", order.run),
    Case("batch", "the order job through BatchHandler, against pgbench", batch.run),
    Case("latency", "idle worker, one job every 100 ms: enqueue to start", latency.run),
    Case("backlog", "a million queued jobs: claim rate and memory", backlog.run),
    Case("enqueue", "direct enqueue: one at a time, and 100 at a time", enqueue.run),
    Case("outbox", "transactional enqueue, and the relay", outbox.run),
    Case("processes", "two processes on two cores", processes.run),
    Case("commands", "Redis commands: a job while busy, a second while idle", commands.run),
    Case("bulk-reads", "a million users: export against psql, stream against asyncpg's cursor", bulk_reads.run),
    Case("bulk-memory", "a worker's peak memory, few rows and many, import and export", bulk_memory.run),
    Case("logline", "a log line a job, against none", logline.run),
    Case("bulk-writes", "copy_rows, users.import and update_many, against psql and the ORM", bulk_writes.run),
    Case("bulk-neighbours", "orders.pay while every order is updated", bulk_neighbours.run),
)
