"""A table of users for the bulk cases, in a database of its own that stays for the whole case."""

from collections.abc import Generator
from contextlib import contextmanager

from bench.servers import ADMIN, Servers
from jobs.app import MIGRATIONS
from worker.migrate import migrate

DATABASE = "bench_users"

FILL = """
insert into users (email, name, is_active, last_seen_at, created_at)
select 'user' || n || '@example.com', 'User ' || n, n % 3 > 0, case when n % 2 = 0 then now() - n * interval '1 s' end,
    now() - n * interval '61 s'
from generate_series(1, {rows}) n
"""


@contextmanager
def database(servers: Servers, rows: int = 0) -> Generator[str]:
    """The URL of a migrated database with so many users, vacuumed; dropped at the end."""
    servers.value(f"drop database if exists {DATABASE} with (force)", ADMIN)
    servers.value(f"create database {DATABASE}", ADMIN)
    url = servers.url_of(DATABASE)
    migrate(url, [MIGRATIONS])
    if rows:
        servers.value(FILL.format(rows=rows), DATABASE)
        servers.value("vacuum (analyze, freeze) users", DATABASE)
    try:
        yield url
    finally:
        servers.forget(DATABASE)
        servers.value(f"drop database {DATABASE} with (force)", ADMIN)
