# ruff: noqa: INP001 - Alembic loads it by path
"""Alembic's entry: the versions of the runtime and of the domain, in one version table of the schema `worker`."""

from alembic import context
from sqlalchemy import Connection, text

connection: Connection = context.config.attributes["connection"]
# IF NOT EXISTS would ask for the right to make schemas even where an administrator has made this one.
if not connection.execute(text("select exists (select from pg_namespace where nspname = 'worker')")).scalar_one():
    connection.execute(text("create schema worker"))
context.configure(connection=connection, version_table_schema="worker", transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
