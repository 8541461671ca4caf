"""No code block of the docs may rot."""

import textwrap
from itertools import dropwhile, pairwise, takewhile

import pytest
from typer import Context
from typer.core import TyperGroup
from typer.main import get_command

from tests.docs.blocks import ROOT, Block, blocks
from worker.cli.commands import make_cli

CHAPTERS = [file.read_text() for file in sorted((ROOT / "tests" / "guide").glob("*.py"))]
MAKEFILE = (ROOT / "Makefile").read_text()

KNOWN = {"python", "sql", "sh run", "sh check", "console", "json", "text", "yaml", ""}
INDENTS = (0, 4, 8)
OPERATORS = ("|", ";", "&&", ">", "<", "2>")


def test_every_block_says_what_it_is() -> None:
    assert [f"{block}: {block.info}" for block in blocks() if block.info not in KNOWN] == []


def test_only_the_readme_says_run() -> None:
    """So that test_readme.py, which runs them, has seen them all."""
    assert {block.file for block in blocks("sh run")} == {"README.md"}


@pytest.mark.parametrize("block", blocks("python", "sql"), ids=str)
def test_code_stands_word_for_word_in_a_chapter_of_the_guide(block: Block) -> None:
    if "Handler(Hello, hello)" in block.text:
        return  # a whole file, which test_readme.py runs
    variants = [textwrap.indent(block.text, " " * indent) for indent in INDENTS]
    assert any(f"\n{variant}" in chapter for chapter in CHAPTERS for variant in variants)


@pytest.mark.parametrize("block", blocks("sh run", "sh check", "console"), ids=str)
def test_commands_and_their_options_exist(block: Block) -> None:
    cli = get_command(make_cli())
    assert isinstance(cli, TyperGroup)
    context = Context(cli)
    for words in block.commands:
        program, *arguments = without_the_shell(words)
        if program == "make":
            assert f"\n{arguments[0]}: " in MAKEFILE
        elif program == "worker":
            command = cli.get_command(context, arguments[0])
            assert command is not None, f"there is no command worker {arguments[0]}"
            # Raises for an option that the command hasn't got, or an argument that it lacks.
            command.make_context(arguments[0], arguments[1:])


def without_the_shell(words: list[str]) -> list[str]:
    """The program and its arguments: without variables before it, pipes behind it, and the containers around it."""
    words = list(dropwhile(lambda word: "=" in word, takewhile(lambda word: word not in OPERATORS, words)))
    if words[:2] == ["docker", "compose"] and ("worker", "worker") in pairwise(words):
        words = words[words.index("worker") + 1 :]
    return [words[0].removeprefix(".venv/bin/"), *words[1:]]
