"""Whether a database lacks a migration. Mostly told without Alembic: to load it is a seventh of a worker's start."""

import ast
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, cast

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

RUNTIME_VERSIONS = Path(__file__).parent / "migrations" / "versions"
Bases: TypeAlias = frozenset[str]
"""The first versions of a history: one, unless histories were merged."""

# A table that no `worker migrate` of this kind has written has no such column.
_APPLIED = text("select version_num, to_jsonb(found) -> 'bases' from worker.alembic_version as found")


async def missing_versions(engine: AsyncEngine, version_locations: Sequence[Path] = ()) -> set[str]:
    """The newest versions that the database hasn't got; empty where it is up to date."""
    async with engine.connect() as connection:
        ours = newest((RUNTIME_VERSIONS, *version_locations))
        if ours is not None and ours <= (await connection.run_sync(applied)).keys():
            return set()
        # What is ahead, and whose it is, isn't told by names alone.
        from worker.migrate import missing  # noqa: PLC0415 - it loads Alembic

        return await connection.run_sync(missing, version_locations)


def applied(connection: Connection) -> dict[str, Bases | None]:
    """By version where its history begins. Alembic's own way to ask writes two lines of log each time."""
    if connection.execute(text("select to_regclass('worker.alembic_version')")).scalar_one() is None:
        return {}
    return {version: frozenset(bases) if bases else None for version, bases in connection.execute(_APPLIED)}


def newest(folders: Iterable[Path]) -> set[str] | None:
    """The versions that no other comes after, as their files say it. None: only Alembic can tell."""
    versions, passed = set[str](), set[object]()
    try:
        for file in (file for folder in folders for file in folder.glob("*.py") if file.stem != "__init__"):
            told = _assigned(file)
            version, before = told.get("revision"), told.get("down_revision", ...)
            if not isinstance(version, str) or before is ...:
                return None
            versions.add(version)
            passed.update(cast("Sequence[object]", before) if isinstance(before, list | tuple) else (before,))
    except (OSError, SyntaxError, TypeError, ValueError):  # Alembic takes it all the same, or says it better
        return None
    return {version for version in versions if version not in passed} or None  # in a circle, which Alembic refuses


def _assigned(file: Path) -> Mapping[str, object]:
    """What a migration says of its place. Raises ValueError where that is no constant."""
    told: dict[str, object] = {}
    for statement in ast.parse(file.read_bytes()).body:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.expr() as value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ) if name in {"revision", "down_revision"}:
                told[name] = ast.literal_eval(value)
            case _:
                pass
    return told
