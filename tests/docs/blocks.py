"""The code blocks of the project's Markdown files, and what the words after the fence say about them.

- `python`: it stands word for word in tests/guide, or is a file that a test runs.
- `sql`: it stands there too.
- `sh run`: tests/docs/test_readme.py runs it.
- `sh check`: it isn't run; its commands and options must exist.
- `console`: as `sh check`; lines after `$ ` are commands, the others what they print.
- `json`, `text`: what a command prints.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/README.md", "worker/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
)

_FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    file: str
    line: int
    """Of its first line of code, from 1."""
    info: str
    """What stands after the opening fence."""
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def commands(self) -> Iterator[list[str]]:
        """The words of each command of a shell block; lines that end with a backslash go on."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.info == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return (words for words in (shlex.split(line, comments=True) for line in lines) if words)


def blocks(*infos: str) -> list[Block]:
    """All blocks, or those with one of these words after the fence."""
    return [block for file in FILES for block in _blocks_of(file) if not infos or block.info in infos]


def _blocks_of(file: Path) -> Iterator[Block]:
    text = file.read_text()
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("text")) + 1
        yield Block(str(file.relative_to(ROOT)), line, match["info"], match["text"])
