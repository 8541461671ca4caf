"""Alembic's entry: the versions of the runtime and of the domain, in one version table of the schema `worker`."""

from alembic import context
from sqlalchemy import Connection, text

connection: Connection = context.config.attributes["connection"]
connection.execute(text("create schema if not exists worker"))
context.configure(connection=connection, version_table_schema="worker", transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
