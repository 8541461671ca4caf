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


def loaded(module: str) -> set[str]:
    """The packages that are there when it was imported."""
    read = f"import {module}, json, sys; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


@pytest.mark.parametrize("module", [*PURE, *CONTRACTS])
def test_a_pure_module_imports_no_infrastructure(module: str) -> None:
    assert loaded(module).isdisjoint(INFRASTRUCTURE)


@pytest.mark.parametrize("module", ["worker.cli.run", "worker.suspects.main"])
def test_a_worker_starts_without_what_it_may_never_need(module: str) -> None:
    assert loaded(module).isdisjoint({"alembic", "sentry_sdk"})


def test_every_noun_of_the_domain_has_its_contracts_among_them() -> None:
    assert {"jobs.users.contracts", "jobs.orders.contracts", "jobs.sales.contracts"} <= set(CONTRACTS)
