"""Whether a database lacks a migration. Mostly told without Alembic: to load it is a seventh of a worker's start."""

import ast
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

RUNTIME_VERSIONS = Path(__file__).parent / "migrations" / "versions"


async def missing_versions(engine: AsyncEngine, version_locations: Sequence[Path] = ()) -> set[str]:
    """The newest versions that the database hasn't got; empty where it is up to date."""
    async with engine.connect() as connection:
        ours = newest((RUNTIME_VERSIONS, *version_locations))
        if ours is not None and ours <= await _applied(connection):
            return set()
        # What is ahead, and whose it is, isn't told by names alone.
        from worker.migrate import missing  # noqa: PLC0415 - it loads Alembic

        return await connection.run_sync(missing, version_locations)


async def _applied(connection: AsyncConnection) -> set[str]:
    table = await connection.execute(text("select to_regclass('worker.alembic_version')"))
    if table.scalar_one() is None:
        return set()
    return set((await connection.execute(text("select version_num from worker.alembic_version"))).scalars())


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
    return {version for version in versions if version not in passed}


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
