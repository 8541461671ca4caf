"""The domain as a whole: what is bound, what is pure, and what stands nowhere in it."""

import ast
import importlib
import json
import runpy
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from pydantic import ValidationError
from sqlalchemy import Connection, inspect
from sqlalchemy.ext.asyncio import AsyncEngine

import jobs
from jobs.app import MIGRATIONS, app, handlers
from jobs.base import Base
from jobs.files import Files
from jobs.orders.contracts import CancelOrder, CancelStale, PayOrder, PlaceOrder, SetStatus
from jobs.sales.contracts import RefreshDaily
from jobs.users.contracts import CreateUser, DeactivateDormant, ExportUsers, SetActive
from worker.job import Job

SHOP = Path(jobs.__file__).parent
NOUNS = ("users", "orders", "sales")

TABLE = {
    "users.create",
    "users.import",
    "users.set_active",
    "users.deactivate_dormant",
    "users.export",
    "users.statement",
    "orders.place",
    "orders.pay",
    "orders.pay_batch",
    "orders.ship",
    "orders.cancel",
    "orders.set_status",
    "orders.import",
    "orders.cancel_stale",
    "sales.refresh_daily",
}


def contracts() -> list[type[Job]]:
    nouns = [importlib.import_module(f"jobs.{noun}.contracts") for noun in NOUNS]
    values = [value for noun in nouns for value in vars(noun).values()]
    return [value for value in values if isinstance(value, type) and issubclass(value, Job) and value is not Job]


def test_each_job_of_the_domain_has_one_handler(tmp_path: Path) -> None:
    bound = [handler.job for handler in handlers(Files(tmp_path))]
    assert sorted(bound, key=str) == sorted(contracts(), key=str)
    assert {job.job_name for job in bound} == TABLE
    assert set(app.handlers) >= TABLE


def test_the_schedule_s_next_times() -> None:
    noon = datetime(2021, 3, 1, 12, tzinfo=UTC)
    ticks = {cron.name: next(cron.ticks_after(noon)) for cron in app.schedule}
    assert ticks["users.deactivate_dormant"] == datetime(2021, 3, 2, 3, 30, tzinfo=UTC)
    assert ticks["sales.refresh_daily"] == datetime(2021, 3, 2, 1, tzinfo=UTC)
    assert ticks["orders.cancel_stale"] == datetime(2021, 3, 2, 4, tzinfo=UTC)


def test_contracts_import_no_infrastructure() -> None:
    modules = [f"jobs.{noun}.contracts" for noun in NOUNS]
    code = f"import sys, json, {', '.join(modules)}; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=SHOP.parent).stdout
    )
    assert {"sqlalchemy", "asyncpg", "arq", "redis", "sentry_sdk", "alembic"}.isdisjoint(loaded)
    assert set(modules) <= set(loaded)


def test_nowhere_is_a_transaction_ended() -> None:
    """commit, rollback and close are the runtime's. The demo is a producer with sessions of its own."""
    found = [
        f"{path.relative_to(SHOP)}:{node.lineno}"
        for path in SHOP.rglob("*.py")
        if "demo" not in path.relative_to(SHOP).parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        if node.attr in {"commit", "rollback", "begin"} or ast.unparse(node) in {"session.close", "connection.close"}
    ]
    assert found == []


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (CreateUser, {"email": "no-address", "name": "Ada"}),
        (CreateUser, {"email": f"{'x' * 320}@x", "name": "Ada"}),
        (CreateUser, {"email": "a@x\0", "name": "Ada"}),
        (CreateUser, {"email": "a@x", "name": "x" * 201}),
        (SetActive, {"user_ids": [1] * 50_001, "active": True}),
        (SetActive, {"user_ids": [2**63], "active": True}),
        (DeactivateDormant, {"dormant_for": "-P1D"}),
        (ExportUsers, {"path": "x", "format": "pickle"}),
        (ExportUsers, {"path": "x" * 1_001}),
        (PlaceOrder, {"reference": "R-1", "email": "a@x", "lines": []}),
        (PlaceOrder, {"reference": "R-1", "email": "a@x", "lines": [["TEA", True]]}),
        (PayOrder, {"order_id": True}),
        (SetStatus, {"changes": [[True, "paid"]]}),
        (PlaceOrder, {"reference": "R-1", "email": "a@x", "lines": [["TEA", 0]]}),
        (PlaceOrder, {"reference": "R-1", "email": "a@x", "lines": [["TEA", 10_001]]}),
        (PlaceOrder, {"reference": "R-1", "email": "a@x", "lines": [["TEA", 1]] * 1_001}),
        (PlaceOrder, {"reference": "", "email": "a@x", "lines": [["TEA", 1]]}),
        (CancelOrder, {"order_id": 1, "reason": "x" * 501}),
        (CancelOrder, {"order_id": 0}),
        (SetStatus, {"changes": [[1, "lost"]]}),
        (SetStatus, {"changes": [[1, "paid"]] * 20_001}),
        (CancelStale, {"older_than": "P100000D"}),
        (RefreshDaily, {"day": "1969-12-31"}),
    ],
)
def test_every_input_has_bounds(kind: type[Job], payload: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(payload)


async def test_models_and_migrations_agree(engine: AsyncEngine) -> None:
    """In tables, columns, and which may be null."""

    def columns(connection: Connection) -> dict[str, dict[str, bool]]:
        found = inspect(connection)
        tables = found.get_table_names("public")
        return {table: {column["name"]: column["nullable"] for column in found.get_columns(table)} for table in tables}

    async with engine.connect() as connection:
        in_database = await connection.run_sync(columns)
    tables = Base.metadata.tables.values()
    assert in_database == {table.name: {column.name: bool(column.nullable) for column in table.c} for table in tables}


async def test_the_migration_can_be_taken_back_and_applied_again(engine: AsyncEngine) -> None:
    revision = runpy.run_path(str(MIGRATIONS / "0001_shop.py"))

    def back_and_forth(connection: Connection) -> tuple[list[str], list[str]]:
        with Operations.context(MigrationContext.configure(connection)):
            revision["downgrade"]()
            before = inspect(connection).get_table_names("public")
            revision["upgrade"]()
        return before, inspect(connection).get_table_names("public")

    async with engine.begin() as connection:
        before, after = await connection.run_sync(back_and_forth)
    assert before == []
    assert sorted(after) == ["daily_sales", "order_lines", "orders", "products", "users"]
