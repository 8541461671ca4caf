"""Counting commands with Redis's MONITOR, which tells those that a client sent from those that a script called.

INFO commandstats counts both alike. MONITOR slows Redis down, so nothing is timed meanwhile.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.servers import DRIVER, Servers

END = b"bench: the end"


@dataclass(frozen=True)
class Commands:
    """By name."""

    sent: Counter[str]
    """By the contender's clients; a script call is one."""
    inside: Counter[str]
    """By scripts."""


def counting(servers: Servers, work: Callable[[], None]) -> Commands:
    """The commands of everybody but the driver while `work` runs."""
    watcher: Any
    with servers.monitor() as watcher:
        drivers = {client["addr"] for client in servers.redis.client_list() if client["name"] == DRIVER}
        work()
        servers.redis.echo(END)
        sent, inside = Counter[str](), Counter[str]()
        for event in watcher:
            command: str = event["command"]
            if END.decode() in command:
                return Commands(sent, inside)
            if event["client_type"] == "lua":
                inside[command.split(" ", 1)[0].upper()] += 1
            elif f"{event['client_address']}:{event['client_port']}" not in drivers:
                sent[command.split(" ", 1)[0].upper()] += 1
    raise AssertionError("MONITOR goes on until it is closed")
