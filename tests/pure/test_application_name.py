"""How a process's connections are called: what ends a dead one's must end nobody else's."""

import socket

import pytest

from worker.database import application_name


def test_however_long_the_hosts_name_is_the_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "orders-service-background-worker-6b7f9c6d8f-abcde")
    names = {application_name(pid) for pid in (1, 12, 4_194_304)}
    assert {name.rpartition(":")[2] for name in names} == {"1", "12", "4194304"}
    assert max(map(len, names)) <= 63
