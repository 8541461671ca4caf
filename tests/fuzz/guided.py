"""The same, guided by coverage: `make fuzz`. Arguments are libFuzzer's, behind what to fuzz (messages or files).

It runs in an environment of its own, where alone atheris is installed.
"""

import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

KINDS = (".csv", ".csv.gz", ".csv.zst")
SEEDS = (
    b'{"t":null,"f":"users.create","a":[],"k":{"email":"a@x","_headers":{"baggage":"b"}},"et":1767225600000,"o":1}',
    b'\x00email,name\na@x,"A\nb"\r\n,,\n',
)


def main() -> None:
    """Run until libFuzzer's -max_total_time, or until something doesn't hold; the input is then kept."""
    atheris: Any = import_module("atheris")
    with atheris.instrument_imports(include=["worker.wire", "jobs"]):
        oracles: Any = import_module("tests.fuzz.oracles")
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for number, seed in enumerate(SEEDS):
            (corpus / f"seed-{number}").write_bytes(seed)
        targets: dict[str, Callable[[bytes], None]] = {
            "messages": oracles.check_message,
            "files": lambda raw: _check_file(oracles, Path(folder), raw),
        }
        atheris.Setup([sys.argv[0], *sys.argv[2:], str(corpus)], targets[sys.argv[1]])
        atheris.Fuzz()


def _check_file(oracles: Any, folder: Path, raw: bytes) -> None:
    """The first byte says how the file is named and how large its chunks are."""
    if raw:
        path = folder / f"users{KINDS[raw[0] % len(KINDS)]}"
        path.write_bytes(raw[1:])
        oracles.check_file(path, 1 + raw[0] // len(KINDS))


if __name__ == "__main__":
    main()
