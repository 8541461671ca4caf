"""Whose awaits are struck, and whose aren't, each with the reason. A module in neither table fails the test."""

STRUCK = {
    "acknowledgements": "what came of jobs, told to Redis",
    "app_worker": "the consumer's end in good order",
    "attempt": "transactions of one delivery",
    "availability": "what an attempt does where PostgreSQL is away",
    "batch": "deliveries that share a transaction",
    "batch_transaction": "that transaction",
    "brief": "the relay's transactions",
    "call": "the handler, called",
    "claim": "jobs are taken from Redis, and given back",
    "connection": "the attempt's connection, and its begin",
    "consumer": "claims, starts and settles",
    "epoch": "the relay tells a wiped Redis",
    "executor": "a delivery",
    "faults": "the commit, and what an error says of it",
    "gather": "a batch gathers",
    "halving": "a batch that fails",
    "lanes": "rows that may be sent, marked",
    "lease": "an acknowledgement waits for a renewal",
    "member": "a delivery waits for its batch",
    "push": "rows go to Redis",
    "relay": "the outbox is drained",
    "run": "the ledger",
    "run_many": "the ledger of a batch",
    "setback": "failures are written down",
    "shield": "the commit goes to its end",
    "sweep": "what Redis lost is sent again",
    "ticker": "cron ticks are enqueued",
    "transaction": "begin, call, mark, commit",
    "unkept": "the same for once=False",
    "zombies": "a stopped worker's transaction is ended",
}

LEFT_OUT = {
    "arq_functions": "plain arq functions: no ledger stands behind them",
    "broker": "makes a client; a failure of that is one of the first command",
    "cancel": "a person's command, one transaction; tests/test_operations.py",
    "database": "makes a connection; a failure of that is one of whoever asked for it",
    "doctor": "a person's command; it changes nothing",
    "heartbeat": "tells that a worker lives; no job hangs on it",
    "migrate": "a person's command",
    "operations": "a person's commands, each one transaction; tests/test_operations.py",
    "overview": "reads",
    "pauses": "reads what is paused; no job is lost by it",
    "prune": "a job like any other",
    "queue": "the producer's side: its caller is told",
    "recycling": "looks at memory",
    "rejects": "statements in a handler's own transaction",
    "runtime": "puts the parts together; each is struck in it",
    "standalone": "the worker of plain arq functions",
    "status": "reads",
    "stock": "the stock arq command: no leases; tests/consumer/test_stock_command.py",
    "supervisor": "starts processes and knows no job",
    "testing": "a kit for tests",
    "wake": "a word that may be lost; the poll is the net",
}

BY_CHANCE = {
    "lease:Leases.renewed:0": "a renewal lasts a millisecond, in which a job must end; tests/consumer/test_leases.py",
}
"""Awaits that a scenario comes to now and then, each with the reason. They are struck when it does, if at all."""
PLAIN = "a Worker that was given no engine runs plain arq functions; tests/consumer/test_arq_functions.py"
ABORT = "arq's abort of a job that runs; tests/consumer/test_abort.py"
UNREACHED = {
    "attempt:Attempt._after_chunk:0": ABORT,
    "attempt:Attempt._judge:0": ABORT,
    "consumer:Worker._cancel_aborted_jobs:1": ABORT,
    "batch:Batches._alone:0": "aborted in the few ms in which its batch gathers; tests/runtime/test_batch_failures.py",
    "connection:connected:2": "an engine of somebody else's; tests/test_own_engine.py",
    "consumer:Worker._consume:6": "arq's max_burst_jobs, which an app's worker never has",
    "shield:in_thread:0": "for handlers that write files",
    "shield:in_thread:1": "for handlers that write files",
    **dict.fromkeys((f"consumer:Worker._all_told:{at}" for at in range(2)), PLAIN),
    **dict.fromkeys((f"consumer:Worker._poll_iteration:{at}" for at in range(2)), PLAIN),
    **dict.fromkeys((f"consumer:Worker.close:{at}" for at in range(5)), PLAIN),
    **dict.fromkeys((f"consumer:Worker.main:{at}" for at in ("0", "1.enter", "1.exit", "2", "3", "4")), PLAIN),
    "consumer:Worker.start_jobs:0": PLAIN,
}
"""Awaits that no scenario comes to, each with the reason. One that is reached after all fails the test."""
