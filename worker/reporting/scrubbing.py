"""What leaves for Sentry: types, frames, times and names; no error's text, no payload, no query's literal, no address.

What a handler's own code says to Sentry in a tag or a span's name goes out as it says it, but for e-mail addresses.
"""

import re
from typing import Any, cast

from sentry_sdk.types import Event, Hint

DROPPED = ("breadcrumbs", "extra", "logentry", "message", "request", "user")
KEPT_CONTEXTS = frozenset({"trace", "runtime"})

# Lengths are bounded (RFC 5321), so that no text can make the search slow.
ADDRESS = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,10}")

# PostgreSQL's lexical rules. A quoted identifier stays; comments and literals go, one that was cut off too.
LITERAL = re.compile(
    r"""("[^"]*")|(?<![\w$.])\.?\d(?:[\w.]|(?<=[eE])[+-])*|--[^\n]*|/\*.*?\*/|\b[eE]'(?:[^'\\]|\\.|'')*(?:'|\Z)|'(?:[^']|'')*(?:'|\Z)|\$((?:[^\W\d]\w*)?)\$.*?(?:\$\2\$|\Z)""",
    re.DOTALL,
)


def scrub_event(event: Event, _hint: Hint) -> Event:
    """`before_send`: an error event or a cron check-in."""
    if event.get("type") == "check_in":
        return event
    hidden = _hidden(event)
    for error in event.get("exception", {}).get("values", []):
        error["value"] = hidden
    return _scrubbed(event)


def scrub_transaction(event: Event, _hint: Hint) -> Event:
    """`before_send_transaction`."""
    for span in cast("list[dict[str, Any]]", event.get("spans", [])):
        if str(span.get("op", "")).startswith("db"):
            span["description"] = without_literals(span.get("description") or "")
    return _scrubbed(event)


def without_literals(query: str) -> str:
    """`query` without its literals and comments; placeholders stay."""
    return LITERAL.sub(lambda found: found[1] or "'…'", query)


def without_addresses(value: Any) -> Any:
    """A JSON value in which every e-mail address is `[e-mail]`."""
    match value:
        case str():
            return ADDRESS.sub("[e-mail]", value) if "@" in value else value
        case dict():
            return {key: without_addresses(item) for key, item in cast("dict[str, Any]", value).items()}
        case list():
            return [without_addresses(item) for item in cast("list[object]", value)]
        case _:
            return value


def _scrubbed(event: Event) -> Event:
    for key in DROPPED:
        cast("dict[str, Any]", event).pop(key, None)
    contexts = event.get("contexts", {})
    event["contexts"] = {name: context for name, context in contexts.items() if name in KEPT_CONTEXTS}
    return cast("Event", without_addresses(event))


def _hidden(event: Event) -> str:
    job_id = cast("dict[str, str]", event.get("tags", {})).get("job_id")
    return f"[hidden: see worker show {job_id}]" if job_id else "[hidden]"
