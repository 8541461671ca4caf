"""Every event that the runtime logs is explained in docs/operations.md, and none that it doesn't log."""

import re

from tests.docs.blocks import ROOT
from worker import outcome

CALL = re.compile(r'(?:_log|log|get_logger\("[\w.]+"\))\.(?:info|warning|error)\(\s*"(\w+)"|_say\([^"\n]+"(\w+)"')
ROW = re.compile(r"^\| (`\w+`(?:, `\w+`)*) \|", re.MULTILINE)


def test_the_tables_of_events_are_complete() -> None:
    sources = (file.read_text() for file in (ROOT / "worker").rglob("*.py"))
    logged = {first or second for source in sources for first, second in CALL.findall(source)}
    logged |= {kind.__name__.lower() for kind in (*outcome.Final.__args__, *outcome.Unfinished.__args__)}
    _, _, section = (ROOT / "docs" / "operations.md").read_text().partition("\n## Logs\n")
    told = ROW.findall(section.partition("\n## ")[0])
    explained = {name for row in told for name in re.findall(r"\w+", row)}
    assert explained == logged
