"""worker/README.md tells where each module of the runtime is found, once."""

import re

from tests.docs.blocks import ROOT

WORKER = ROOT / "worker"
ROW = re.compile(r"^\|(?! ---).*\|$", re.MULTILINE)
NAME = re.compile(r"`(\w+/?)`")


def test_each_module_is_in_the_map_once() -> None:
    modules = [file.stem for file in WORKER.glob("*.py") if file.stem != "__init__"]
    folders = [f"{init.parent.name}/" for init in WORKER.glob("*/__init__.py")]
    told = [name for row in ROW.findall((WORKER / "README.md").read_text()) for name in NAME.findall(row)]
    assert sorted(told) == sorted([*modules, *folders, "migrations/"])
