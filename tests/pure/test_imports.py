"""A contract, and what it stands on, can be imported by a service that has no database driver and no broker."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import jobs

INFRASTRUCTURE = ("sqlalchemy", "asyncpg", "alembic", "arq", "redis", "sentry_sdk")
PURE = ("worker.job", "worker.errors", "worker.retry", "worker.outcome", "worker.chunk", "worker.stored", "worker.wire")
CONTRACTS = sorted(f"jobs.{path.parent.name}.contracts" for path in Path(jobs.__file__).parent.glob("*/contracts.py"))


@pytest.mark.parametrize("module", [*PURE, *CONTRACTS])
def test_a_pure_module_imports_no_infrastructure(module: str) -> None:
    read = f"import {module}, json, sys; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert loaded.isdisjoint(INFRASTRUCTURE)


def test_every_noun_of_the_domain_has_its_contracts_among_them() -> None:
    assert {"jobs.users.contracts", "jobs.orders.contracts", "jobs.sales.contracts"} <= set(CONTRACTS)
