"""The table of settings in docs/deployment.md: every setting, nothing else, with its real default."""

import re

import pytest

from tests.deploy.files import ROOT, setting_names
from worker.settings import Settings, load_settings

ROW = re.compile(r"^\| `([A-Z_]+)` \| (?:`([^`]+)`|–) \| \S.* \|$", re.MULTILINE)


def read_table() -> dict[str, str]:
    """Read the variables with their defaults, "" for none."""
    _, _, section = (ROOT / "docs" / "deployment.md").read_text().partition("\n## Settings\n")
    assert len(ROW.findall(section)) == section.count("\n| `"), "a row has another form"
    return dict(ROW.findall(section))


def test_it_names_each_setting_in_the_order_of_the_code() -> None:
    assert list(read_table()) == list(setting_names())


def test_its_defaults_are_the_real_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value of the table, set in the environment, changes nothing; a setting without one is unset by default."""
    table = read_table()
    for name in table:
        monkeypatch.delenv(name, raising=False)
    unset = load_settings(database_url="postgresql:///any")
    for name, default in table.items():
        if default:
            monkeypatch.setenv(name, default)
    assert load_settings(database_url="postgresql:///any") == unset

    empty = {name for name, default in table.items() if not default}
    fields = {name: Settings.model_fields[field] for name, field in setting_names().items()}
    assert empty == {name for name, field in fields.items() if field.is_required() or field.default is None}
