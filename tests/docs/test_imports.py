"""The table "Where things are imported from" of the guide: all of it is there, and so is all that the guide uses."""

import ast
import re
from collections.abc import Iterator
from importlib import import_module

import pytest

from tests.docs.blocks import ROOT, blocks

ROW = re.compile(r"^\| (?P<names>`\w+`(?:, `\w+`)*) \| `(?P<module>worker\.[\w.]+)` \|$", re.MULTILINE)

_, _, TABLE = (ROOT / "docs" / "guide.md").read_text().partition("\n## Where things are imported from\n")
TOLD = {(row["module"], name) for row in ROW.finditer(TABLE) for name in re.findall(r"\w+", row["names"])}


def test_each_row_is_read() -> None:
    assert TABLE.count("\n| `") == len(ROW.findall(TABLE)) > 0


@pytest.mark.parametrize(("module", "name"), sorted(TOLD))
def test_it_is_there(module: str, name: str) -> None:
    assert hasattr(import_module(module), name)


def test_what_the_guides_code_uses_is_in_it() -> None:
    """By the imports of the chapters, in which that code stands."""
    shown = {
        word for block in blocks("python") if block.file == "docs/guide.md" for word in re.findall(r"\w+", block.text)
    }
    assert {(module, name) for module, name in imported() if name in shown} <= TOLD


def imported() -> Iterator[tuple[str, str]]:
    for chapter in (ROOT / "tests" / "guide").glob("*.py"):
        for node in ast.walk(ast.parse(chapter.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("worker."):
                yield from ((node.module or "", alias.name) for alias in node.names)
