"""Files to import: damaged, packed, or of no kind at all."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.oracles import check_file

LINES = st.lists(
    st.sampled_from([b"a@x,A", b'b@x,"', b'"', b"\n", b"\r\n", b",", b"\0", b"\xed\xa0\x80", b"9" * 400]) | st.binary(),
    max_size=20,
).map(b"".join)
PACK: dict[str, Callable[[bytes], bytes]] = {".csv": bytes, ".csv.gz": gzip.compress, ".csv.zst": zstd.compress}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(body=LINES, kind=st.sampled_from(list(PACK)), size=st.integers(1, 5))
def test_every_byte_of_a_file_is_read_once_or_refused_in_a_sentence(
    folder: Path, body: bytes, kind: str, size: int
) -> None:
    path = folder / f"users{kind}"
    path.write_bytes(PACK[kind](b"email,name\n" + body))
    check_file(path, size)


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(body=LINES, kind=st.sampled_from(list(PACK)), place=st.floats(0, 1), junk=st.binary(max_size=4))
def test_a_damaged_file_is_read_or_refused(folder: Path, body: bytes, kind: str, place: float, junk: bytes) -> None:
    packed = PACK[kind](b"email,name\n" + body)
    cut = int(place * len(packed))
    path = folder / f"damaged{kind}"
    path.write_bytes(packed[:cut] + junk + packed[cut + 2 :])
    check_file(path, 2)


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(raw=st.binary(max_size=200), kind=st.sampled_from(list(PACK)))
def test_so_is_what_is_no_such_file(folder: Path, raw: bytes, kind: str) -> None:
    path = folder / f"anything{kind}"
    path.write_bytes(raw)
    check_file(path, 1)
