"""A plugin for the pytest that runs arq's tests: puts a class in the place of arq's Worker, and keeps the results."""

import functools
import inspect
import json
import pickle
from importlib import import_module
from pathlib import Path
from typing import Any

import arq
import arq.worker
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--worker-class", help="module:class that runs in the place of arq's Worker")
    parser.addoption("--told", type=Path, help="where it is written, as JSON, how each test ended")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Before arq's conftest is imported, which keeps the class that it finds."""
    module, _, name = early_config.known_args_namespace.worker_class.partition(":")
    worker_class: Any = _with_pickle(getattr(import_module(module), name))
    arq.Worker = arq.worker.Worker = worker_class  # type: ignore[misc]  # that is the point of it


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Told(config.option.told))


def _with_pickle(worker_class: Any) -> Any:
    """arq's tests send pickles, which its Worker takes unasked. Here both classes are told to."""
    init = functools.partialmethod(worker_class.__init__, job_serializer=pickle.dumps, job_deserializer=pickle.loads)
    # arq reads the names of the settings that its class takes from its signature; ours hands all of them on.
    return type("Worker", (worker_class,), {"__init__": init, "__signature__": inspect.signature(arq.worker.Worker)})


class _Told:
    """Keeps how each test ended: passed, failed or skipped, and why."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told: dict[str, tuple[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A failed teardown comes after the call that passed.
        if report.when == "call" or report.outcome != "passed":
            self._told[report.nodeid] = (report.outcome, report.longreprtext)

    def pytest_sessionfinish(self) -> None:
        self._path.write_text(json.dumps(self._told))
