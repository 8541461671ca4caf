"""Which versions a database has of those that this code knows, the runtime's and the domain's.

The version table names the newest of each history. One that this code doesn't know is a later one of its own history,
in a deploy that is under way or was rolled back; or it is of another application's. Beside each stands where its
history begins, which tells the two apart.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from worker.outdated import Bases, applied

RUNTIME = "worker_"
"""What the runtime's versions begin with; a domain's begin with something else."""

# Alembic keeps the column when it moves a row on. IF NOT EXISTS would lock out all who look, where there is one too.
_LACKS_BASES = text("""
select not exists (
    select from pg_attribute
    where attrelid = 'worker.alembic_version'::regclass and attname = 'bases' and not attisdropped
)
""")
_ADD_BASES = text("alter table worker.alembic_version add column bases text[]")
_NOTE_BASES = text("update worker.alembic_version set bases = cast(:bases as text[]) where version_num = :version")
_STAND_IN = text("insert into worker.alembic_version (version_num) values (:version)")
_ADD = text("insert into worker.alembic_version (version_num, bases) values (:version, cast(:bases as text[]))")
_TAKE = text("delete from worker.alembic_version where version_num = :version")


@dataclass(frozen=True, slots=True)
class State:
    """How a database stands to this code."""

    missing: set[str]
    """The newest versions of this code that it hasn't got."""
    ahead: set[str]
    """Those that it has gone beyond."""
    unknown: Mapping[str, Bases | None]
    """What it has and this code hasn't. None: nobody has noted where that begins."""


def look(connection: Connection, config: Config) -> State:
    """Compare the version table with the scripts."""
    scripts = ScriptDirectory.from_config(config)
    found, known = applied(connection), {script.revision for script in scripts.walk_revisions()}
    unknown = {version: bases for version, bases in found.items() if version not in known}
    begun = {base for version in known & found.keys() for base in _bases(scripts, version)}
    later = {base for bases in unknown.values() for base in bases or ()}
    heads = {head: _bases(scripts, head) for head in scripts.get_heads() if head not in found}
    ahead = {head for head, bases in heads.items() if bases & later}
    # Alembic keeps no row of what an applied version depends on.
    had = {
        each.revision
        for version in (known & found.keys()) | ahead
        for each in scripts.iterate_revisions(version, "base")
    }
    missing = {head for head, bases in heads.items() if bases & begun} - had
    untold = {version for version, bases in unknown.items() if bases is None}
    for ours in (True, False):
        unclear = {head for head in heads.keys() - had - missing if head.startswith(RUNTIME) is ours}
        # Only their number is left to go by, and a version that nothing is told of counts as a later one.
        is_behind = len(unclear) > sum(version.startswith(RUNTIME) is ours for version in untold)
        (missing if is_behind else ahead).update(unclear)
    return State(missing, ahead, unknown)


@contextmanager
def understood(connection: Connection, config: Config, state: State) -> Generator[None]:
    """Alembic applies nothing where the table has a version that it can't find: within this it has none.

    Where the database is ahead, the newest that this code knows stands in its place. At the end the table tells where
    each history begins.
    """
    for version in state.unknown:
        connection.execute(_TAKE, {"version": version})
    for version in state.ahead:
        connection.execute(_STAND_IN, {"version": version})
    yield
    if connection.execute(_LACKS_BASES).scalar_one():  # now, since the migrations may have taken long
        connection.execute(_ADD_BASES)
    for version in state.ahead:
        connection.execute(_TAKE, {"version": version})
    scripts = ScriptDirectory.from_config(config)
    for version in applied(connection):
        connection.execute(_NOTE_BASES, {"version": version, "bases": sorted(_bases(scripts, version))})
    for version, bases in state.unknown.items():
        connection.execute(_ADD, {"version": version, "bases": sorted(bases) if bases else None})


def _bases(scripts: ScriptDirectory, version: str) -> Bases:
    """By `down_revision` alone: Alembic's own walk goes to what a version depends on too, which is another history."""
    bases, seen, left = set[str](), set[str](), {version}
    while left:
        seen.add(one := left.pop())
        before = scripts.get_revision(one).down_revision
        if not before:
            bases.add(one)
        left |= {before} - seen if isinstance(before, str) else set(before or ()) - seen
    return frozenset(bases)
