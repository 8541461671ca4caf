"""Hosts on one machine: network namespaces, each with a cable to a bridge where the servers are. Linux, as root."""

import os
import secrets
import shutil
import subprocess
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import pytest

IP = shutil.which("ip")
needs_namespaces = pytest.mark.skipif(
    IP is None or os.geteuid() != 0, reason="network namespaces need root and iproute2 (Debian's iproute2)"
)


class Network:
    """A bridge with an address of its own, and hosts that reach it. All of it is gone when the block ends."""

    def __init__(self) -> None:
        self._name = f"rt{secrets.token_hex(3)}"  # an interface's name has 15 characters at most
        self._prefix = f"10.213.{secrets.randbelow(256)}"
        self._stack = ExitStack()
        self._hosts = 0

    @property
    def address(self) -> str:
        """Where servers listen that the hosts are to reach."""
        return f"{self._prefix}.1"

    @property
    def range(self) -> str:
        return f"{self._prefix}.0/24"

    def host(self) -> str:
        """A new host, by the name of its namespace."""
        self._hosts += 1
        name = f"{self._name}h{self._hosts}"
        _ip(f"netns add {name}")
        self._stack.callback(_ip, f"netns delete {name}")
        _ip(f"link add {name} type veth peer name eth0 netns {name}")
        self._stack.callback(_ip, f"link delete {name}")  # both ends of it
        _ip(f"link set {name} master {self._name} up")
        _ip(f"-n {name} address add {self._prefix}.{self._hosts + 1}/24 dev eth0")
        _ip(f"-n {name} link set eth0 up")
        _ip(f"-n {name} link set lo up")
        return name

    def pull(self, host: str) -> None:
        """Pull its cable out, at the bridge's end: whoever is on it learns of nothing."""
        _ip(f"link set {host} nomaster down")

    def plug(self, host: str) -> None:
        _ip(f"link set {host} master {self._name} up")

    def __enter__(self) -> Self:
        _ip(f"link add {self._name} type bridge")
        self._stack.callback(_ip, f"link delete {self._name}")
        _ip(f"address add {self.address}/24 dev {self._name}")
        _ip(f"link set {self._name} up")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()


def within(host: str, *command: str) -> list[str]:
    """`command`, run on `host`."""
    assert IP is not None
    return [IP, "netns", "exec", host, *command]


def _ip(words: str) -> None:
    assert IP is not None
    done = subprocess.run([IP, *words.split()], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, f"ip {words}: {done.stderr}"
