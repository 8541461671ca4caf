"""What migration files say of their place, read without Alembic. It is asked wherever they leave a doubt."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from worker.outdated import RUNTIME_VERSIONS, newest

SHOP = Path(__file__).parents[2] / "jobs" / "migrations" / "versions"


def test_it_says_of_the_real_ones_what_alembic_says() -> None:
    config = Config()
    config.set_main_option("script_location", str(RUNTIME_VERSIONS.parent))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", f"{RUNTIME_VERSIONS}\n{SHOP}")
    assert newest([RUNTIME_VERSIONS, SHOP]) == set(ScriptDirectory.from_config(config).get_heads())


@pytest.mark.parametrize("both", [("b", "c"), ["b", "c"]])
def test_histories_that_part_and_meet(tmp_path: Path, both: Sequence[str]) -> None:
    for version, before in {"a": None, "b": "a", "c": "a", "d": both, "e": None}.items():
        (tmp_path / f"{version}.py").write_text(f"revision: str = {version!r}\ndown_revision = {before!r}\n")
    (tmp_path / "__init__.py").write_text("")
    assert newest([tmp_path]) == {"d", "e"}


@pytest.mark.parametrize(
    "written",
    [
        "revision = 'a'",
        "down_revision = None",
        "from elsewhere import revision, down_revision",
        "revision = 'a' + suffix\ndown_revision = None",
        "revision = 'a'\ndown_revision = {'b', 'c'}",
        "revision = 'a'\ndown_revision =",
        "revision = 'a'\ndown_revision = 'a'",
    ],
)
def test_what_only_alembic_can_tell(tmp_path: Path, written: str) -> None:
    (tmp_path / "a.py").write_text(written)
    assert newest([tmp_path]) is None
