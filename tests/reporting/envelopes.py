"""A server on loopback that takes what Sentry's SDK really sends."""

import gzip
import json
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import sentry_sdk

Payload = dict[str, Any]


@dataclass
class SentryServer:
    """Where envelopes arrive."""

    dsn: str
    bodies: list[bytes] = field(default_factory=list[bytes])
    """Each request's body, unpacked."""

    def events(self) -> list[Payload]:
        return self._payloads("event")

    def transactions(self) -> list[Payload]:
        return self._payloads("transaction")

    def check_ins(self) -> list[Payload]:
        return self._payloads("check_in")

    def everything(self) -> str:
        """All that was sent, as text."""
        sentry_sdk.flush(timeout=10)
        return "\n".join(body.decode() for body in self.bodies)

    def _payloads(self, kind: str) -> list[Payload]:
        """The items of one type, in the order in which they came. What the SDK still holds is sent first."""
        sentry_sdk.flush(timeout=10)
        return [payload for body in self.bodies for type_, payload in _items(body) if type_ == kind]


def _items(envelope: bytes) -> Iterator[tuple[str, Payload]]:
    """Sentry's envelope: a line of headers, then for each item a line of headers and a payload."""
    _, _, rest = envelope.partition(b"\n")
    while rest.strip():
        line, _, rest = rest.partition(b"\n")
        headers = cast("Payload", json.loads(line))
        length = headers.get("length", rest.find(b"\n") if b"\n" in rest else len(rest))
        yield headers["type"], json.loads(rest[:length])
        rest = rest[length + 1 :]


@contextmanager
def sentry_server() -> Generator[SentryServer]:
    """Listen on a free port of loopback until the block ends."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            packed = self.headers.get("Content-Encoding") == "gzip"
            bodies.append(gzip.decompress(body) if packed else body)
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the standard library
            """Say nothing between the tests' lines."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield SentryServer(f"http://key@127.0.0.1:{server.server_port}/1", bodies)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
