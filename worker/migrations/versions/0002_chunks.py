"""What a chunked run remembers of its pace and its progress, and of its partitions."""

from alembic import op

revision = "worker_0002"
down_revision = "worker_0001"
branch_labels = None
depends_on = None

# None of them makes PostgreSQL write the table anew.
UPGRADE = (
    """
    alter table worker.run
        add column chunks bigint not null default 0,
        add column chunk_size bigint,
        add column row_seconds double precision,
        add column rate double precision,
        add column time_left_s double precision,
        add column partitions bigint,
        add column bounds jsonb
    """,
    "create index run_partitions on worker.run (parent_id, enqueued_ms) where parent_id is not null",
)
DOWNGRADE = (
    "drop index worker.run_partitions",
    """
    alter table worker.run
        drop column chunks, drop column chunk_size, drop column row_seconds, drop column rate, drop column time_left_s,
        drop column partitions, drop column bounds
    """,
)


def upgrade() -> None:
    """Add the columns, and the index by which a parent finds its partitions."""
    for statement in UPGRADE:
        op.get_bind().exec_driver_sql(statement)


def downgrade() -> None:
    """Take them away. Partitions that have begun would begin anew, so let them end first."""
    for statement in DOWNGRADE:
        op.get_bind().exec_driver_sql(statement)
