"""docs/guarantees.md names tests that exist, and commands that run them."""

import ast
import re
from functools import cache

import pytest

from tests.docs.blocks import ROOT

SECTIONS = re.split(r"^## ", (ROOT / "docs" / "guarantees.md").read_text(), flags=re.MULTILINE)[1:]
NAMED = re.compile(r"`(?P<file>tests/[\w/]+\.py)::(?P<test>\w+)`")
COMMAND = re.compile(r'^Run them: `make test ARGS="(?P<paths>[^"]+)"`', re.MULTILINE)


@cache
def names_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {function.name for function in functions}


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.partition("\n")[0])
def test_each_promise_has_tests_that_exist_a_command_that_runs_them_and_its_limits(section: str) -> None:
    named = list(NAMED.finditer(section))
    command = COMMAND.search(section)
    assert named
    assert command
    assert "\nNot promised: " in section
    paths = command["paths"].split()
    for test in named:
        assert test["test"] in names_in(test["file"]), test[0]
        assert any(test["file"] == path or test["file"].startswith(f"{path}/") for path in paths), test[0]
    for path in paths:
        assert any(test["file"].startswith(path) for test in named), path
