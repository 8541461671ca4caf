"""What a statement does beyond its own work: it ends the transaction, or leaves something in the session. Pure."""

import re
from collections.abc import Iterator
from enum import Enum, auto
from functools import lru_cache


class Effect(Enum):
    """Of a text that may hold several statements: the first of these that holds for one of them."""

    ENDS = auto()
    """It ends the transaction. A rollback to a savepoint doesn't."""
    LEAVES = auto()
    """What it does stays with the session after its transaction: a setting, a temporary table, an advisory lock."""
    SETS = auto()
    """It calls set_config, and a parameter says whether that stays."""
    NONE = auto()


MAX_KEPT_CHARACTERS = 4_096
"""Of a text whose effect is remembered: an application has some hundreds of them, and runs each time and again."""

_ENDS = re.compile(r"(commit|end|abort|prepare\s+transaction|rollback(?!\s+(work\s+|transaction\s+)?to\b))\b")
_LEAVES = re.compile(
    r"set\s+(?!local\b|transaction\b|constraints\b)|listen\b|load\b|(prepare|deallocate)\b"
    r"|declare\b.*\bwith\s+hold\b"
    r"|create\s+(or\s+replace\s+)?((global|local)\s+)?temp(orary)?\b(?!.*\bon\s+commit\s+drop\b)",
    re.DOTALL,
)
_MAKES_TEMPORARY = re.compile(
    r"create\s+(or\s+replace\s+)?(\w+\s+){1,2}(if\s+not\s+exists\s+)?\"?pg_temp\"?\s*\.(?!.*\bon\s+commit\s+drop\b)"
    r"|(select|with)\b.*(?<!insert\s)(?<!merge\s)\binto\s+((global|local)\s+)?temp(orary)?\s",
    re.DOTALL,
)
_LOCKS = re.compile(r"\bpg_(try_)?advisory_lock")
_SET_CONFIG = r"\bset_config\"?\s*\("


def _nested(levels: int) -> str:
    """A character, or parentheses with others among them."""
    return rf"(?:[^()]|\({_nested(levels - 1)}*\))" if levels else r"[^()]"


_ARGUMENTS = _nested(4) + r"*,\s*"
"""All but the last."""
_SETTINGS = re.compile(_SET_CONFIG)
_SETS_FOR_NOW = re.compile(_SET_CONFIG + _ARGUMENTS + r"('t(rue)?'|'on'|true)(::bool(ean)?)?\s*\)")
_SETS_AS_TOLD = re.compile(_SET_CONFIG + _ARGUMENTS + r"\$\d+(::\w+)?\s*\)")

_BLANK = re.compile(r"(?:\s|;|--[^\n]*(?:\n|\Z))*+")
_COMMENT = re.compile(r"/\*|\*/")
_TOKEN = re.compile(r"--[^\n]*|/\*|'[^']*'|\"[^\"]*\"|\$(\w*)\$.*?\$\1\$|;", re.DOTALL)


def effect_of(text: str) -> Effect:
    """The effect of a text, which may hold several statements."""
    return _remembered(text) if len(text) <= MAX_KEPT_CHARACTERS else _effect_of(text)


@lru_cache(maxsize=1_024)
def _remembered(text: str) -> Effect:
    return _effect_of(text)


def _effect_of(text: str) -> Effect:
    return min(map(_effect_of_one, _statements(text.lower())), key=lambda effect: effect.value)


def _effect_of_one(statement: str) -> Effect:
    place = _first_word(statement)
    if _ENDS.match(statement, place):
        return Effect.ENDS
    if _LEAVES.match(statement, place):
        return Effect.LEAVES
    # To look for a word is 100 times as fast as to search for what it may mean.
    if "temp" in statement and _MAKES_TEMPORARY.match(statement, place):
        return Effect.LEAVES
    if "advisory_lock" in statement and _LOCKS.search(statement):
        return Effect.LEAVES
    return _effect_of_settings(statement) if "set_config" in statement else Effect.NONE


def _effect_of_settings(statement: str) -> Effect:
    """A call that can't be read is taken for one that stays, which costs a connection and nothing else."""
    as_told = len(_SETS_AS_TOLD.findall(statement))
    if len(_SETTINGS.findall(statement)) > as_told + len(_SETS_FOR_NOW.findall(statement)):
        return Effect.LEAVES
    return Effect.SETS if as_told else Effect.NONE


def _statements(text: str) -> Iterator[str]:
    """Each with what stands before it."""
    start = place = 0
    last = text.rfind(";", 0, -1)  # one at the very end parts nothing
    while place <= last and (token := _TOKEN.search(text, place)):
        place = _end_of_comment(text, token.start()) if token[0] == "/*" else token.end()
        if token[0] == ";":
            yield text[start:place]
            start = place
    yield text[start:]


def _first_word(statement: str) -> int:
    """Where it begins, behind blanks and comments."""
    place = 0
    while True:
        blank = _BLANK.match(statement, place)
        place = blank.end() if blank else place
        if not statement.startswith("/*", place):
            return place
        place = _end_of_comment(statement, place)


def _end_of_comment(text: str, start: int) -> int:
    """Behind the comment that begins there. PostgreSQL's hold others."""
    depth = 0
    for mark in _COMMENT.finditer(text, start):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return mark.end()
    return len(text)
