"""A URL of several hosts is one URL for each, with all the rest of it."""

from pathlib import Path

import pytest

from worker.hosts import certificates_fault, each_host, names_attributes


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql:///db", ["postgresql:///db"]),
        ("postgresql://u:p@h:1/db?sslmode=require", ["postgresql://u:p@h:1/db?sslmode=require"]),
        ("postgresql://u:a%40b@h:1,[::1]:2/db?x=y", ["postgresql://u:a%40b@h:1/db?x=y", "postgresql://u:a%40b@[::1]:2/db?x=y"]),
        ("postgresql://h,i,j/db", ["postgresql://h/db", "postgresql://i/db", "postgresql://j/db"]),
        ("postgresql://u@/db?host=/run/a,/run/b", ["postgresql://u@/db?host=%2Frun%2Fa", "postgresql://u@/db?host=%2Frun%2Fb"]),
        ("postgresql:///db?host=a,b&port=1,2", ["postgresql:///db?host=a&port=1", "postgresql:///db?host=b&port=2"]),
        ("postgresql:///db?host=a,b&port=1", ["postgresql:///db?host=a&port=1", "postgresql:///db?host=b&port=1"]),
    ],
)  # fmt: skip
def test_each_host_has_a_url_of_its_own(url: str, hosts: list[str]) -> None:
    assert each_host(url) == hosts


def test_ports_that_dont_match_the_hosts_are_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        each_host("postgresql:///db?host=a,b,c&port=1,2")


def test_whether_a_url_asks_for_a_kind_of_server() -> None:
    assert names_attributes("postgresql://a,b/db?target_session_attrs=any")
    assert not names_attributes("postgresql://target_session_attrs@a,b/db")


def test_a_file_of_certificates_that_isnt_there_is_named() -> None:
    fault = certificates_fault("postgresql://h/db?sslmode=verify-full&sslrootcert=/no/such/file")
    assert fault == "its sslrootcert names a file that isn't there; correct it"
    assert certificates_fault(f"postgresql://h/db?sslrootcert={__file__}") is None


def test_certificates_that_are_to_be_checked_need_some_to_check_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PGSSLROOTCERT", raising=False)
    url = "postgresql://h/db?sslmode=verify-full"
    assert certificates_fault(url) == (
        "its sslmode is verify-full, and it names no certificates to check with; add sslrootcert=FILE"
    )
    (tmp_path / ".postgresql").mkdir()
    (tmp_path / ".postgresql/root.crt").touch()
    assert certificates_fault(url) is None
