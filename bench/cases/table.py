"""The cases, in the order in which they run."""

from bench.case import Case
from bench.cases import latency, noop, order

CASES = (
    Case("noop", "no-op, all queued, one process", noop.run),
    Case("order", "order job, exactly once with the ledger on", order.run),
    Case("latency", "idle worker, one job every 100 ms: enqueue to start", latency.run),
)
