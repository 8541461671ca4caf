"""`worker.enqueue` refuses queues that are called as the runtime's own keys in Redis are."""

from alembic import op

revision = "worker_0003"
down_revision = "worker_0002"
branch_labels = None
depends_on = None

BEHIND = "    if jsonb_typeof(payload) is distinct from 'object' then\n"
CHECK = """
    if queue ~ '^ratchet:' then
        raise exception 'worker.enqueue got the queue %; names that begin with ratchet: are the runtime''s own.',
            quote_literal(left(queue, 50)) using errcode = 'invalid_parameter_value';
    end if;
"""[1:]
# The function stays as it stands but for this check: its owner, its rights and its search_path too.
UPGRADE = f"""
do $do$ begin
    execute replace(pg_get_functiondef('worker.enqueue'::regproc), $old${BEHIND}$old$, $new${CHECK}{BEHIND}$new$);
end $do$
"""
DOWNGRADE = f"""
do $do$ begin
    execute replace(pg_get_functiondef('worker.enqueue'::regproc), $new${CHECK}$new$, '');
end $do$
"""


def upgrade() -> None:
    """Add the check."""
    op.get_bind().exec_driver_sql(UPGRADE)


def downgrade() -> None:
    """Take it away."""
    op.get_bind().exec_driver_sql(DOWNGRADE)
