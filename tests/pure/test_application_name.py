"""How a process's connections are called: what ends a dead one's must end nobody else's."""

import socket

import pytest

from worker.database import application_name


def test_however_long_the_hosts_name_is_the_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "orders-service-background-worker-6b7f9c6d8f-abcde")
    names = {application_name(pid) for pid in (1, 12, 4_194_304)}
    assert {name.rpartition(":")[2] for name in names} == {"1", "12", "4194304"}
    assert max(map(len, names)) <= 63


@pytest.mark.parametrize(
    "hosts",
    [
        [f"ratchet-production-background-worker-6d8f9c7b5d-{pod}" for pod in ("x2x7k", "9qwzt")],
        [f"worker-{number}.europe-west1-b.c.my-project-name-123456.internal" for number in (1, 2)],
    ],
)
def test_hosts_whose_long_names_differ_at_one_end_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, hosts: list[str]
) -> None:
    names = set[str]()
    for host in hosts:
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        names.add(application_name(17))
    assert len(names) == 2
