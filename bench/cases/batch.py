"""Orders paid through BatchHandler, against pgbench paying them one a transaction, and the plain loop."""

import re
import subprocess

from bench.case import ORDER_SLOTS, Bench
from bench.contenders import LOOP, OURS
from bench.results import CaseResult, Comparison, Run, Target, figures, ratio
from bench.servers import ORDERS, pgbench

JOBS = 2.0
SLOTS = 1_000
"""Two full batches: one is gathered while the other commits."""
LOOP_SHARE = 0.1
PGBENCH_S, PGBENCH_CLIENTS = 3, 20

# What bench/order.py's `pay` asks of PostgreSQL, statement by statement.
TRANSACTION = """\\set id random(0, {last})
begin;
select o.id, o.user_id, o.status, o.total_cents, o.paid_by, o.paid, u.id, u.email, u.name
    from bench_order o join bench_user u on u.id = o.user_id where o.id = :id for update of o;
update bench_order set status = 'paid', paid_by = 'user@example.org', paid = paid + 1 where id = :id;
commit;
"""


def run(bench: Bench, result: CaseResult) -> None:
    jobs = min(int(bench.jobs * JOBS), ORDERS)
    measures = {
        OURS.name: bench.draining(OURS, "batch", jobs, SLOTS),
        LOOP.name: bench.draining(LOOP.but(share=LOOP_SHARE), "order", jobs, ORDER_SLOTS),
    }
    if pgbench() is None:
        result.notes.append("No pgbench: the embedded PostgreSQL's package has none.")
    else:
        measures["pgbench"] = lambda: one_at_a_time(bench)
    blocks = bench.contest(OURS.name, measures)
    result.figures = figures(blocks, "order, batched", "jobs/s")
    result.comparisons = [
        Comparison(f"{OURS.name} ÷ {other}", ratio(blocks, OURS.name, other), Target(at_least=least))
        for other, least in (("pgbench", 1.5), (LOOP.name, 15))
        if other in measures
    ]
    result.notes.append(f"pgbench: -M prepared, {PGBENCH_CLIENTS} clients, for {PGBENCH_S} s, on the same tables.")


def one_at_a_time(bench: Bench) -> Run:
    """Let pgbench pay orders; transactions a second."""
    bench.servers.fresh()
    script = bench.servers.folder / "order.sql"
    script.write_text(TRANSACTION.format(last=ORDERS - 1))
    done = subprocess.run(
        [
            *(str(pgbench()), "-n", "-M", "prepared", "-c", str(PGBENCH_CLIENTS), "-j", "1"),
            *("-T", str(PGBENCH_S), "-f", str(script), bench.servers.database_url),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=PGBENCH_S + 30,
    )
    found = re.search(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)
    if done.returncode != 0 or not found:
        return Run(None, f"pgbench failed: {done.stderr.strip()[-200:]}")
    return Run(float(found[1]))
