"""Every link within the project leads somewhere."""

import re
from pathlib import Path

import pytest

from tests.docs.blocks import FILES, ROOT

LINK = re.compile(r"\]\((?P<path>[^)#:\s]*)(?:#(?P<anchor>[^)\s]+))?\)")
HEADING = re.compile(r"^#+ (?P<title>.+)$", re.MULTILINE)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_somewhere(file: Path) -> None:
    for link in LINK.finditer(file.read_text()):
        target = file.parent / link["path"] if link["path"] else file
        assert target.exists(), link[0]
        if link["anchor"]:
            assert link["anchor"] in anchors(target), link[0]


def anchors(file: Path) -> set[str]:
    """As GitHub makes them from headings."""
    titles = (heading["title"].lower() for heading in HEADING.finditer(file.read_text()))
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}
