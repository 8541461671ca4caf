"""Settings are read from the environment and checked at the start, with sentences that hold no secret."""

from pathlib import Path

import pytest

from worker.settings import SettingsError, load_settings

DATABASE = "postgresql://ann:hunter2@h/shop"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database and nothing else."""
    monkeypatch.setenv("DATABASE_URL", DATABASE)
    for name in ("REDIS_URL", "SENTRY_DSN", "WORKER_QUEUES", "WORKER_CONCURRENCY"):
        monkeypatch.delenv(name, raising=False)


def test_the_environment_is_read_and_what_is_given_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "REDIS_URL": "redis://h:1/2",
        "SENTRY_DSN": "https://key@sentry.example/1",
        "WORKER_QUEUES": "urgent, arq:queue",
        "WORKER_CONCURRENCY": "3",
        "WORKER_LEASE": "7.5",
        "WORKER_FILES_DIR": "/srv/files",
    }.items():
        monkeypatch.setenv(name, value)
    settings = load_settings(concurrency=5, queues=None)
    assert settings.database_url.get_secret_value() == DATABASE
    assert settings.redis_url.get_secret_value() == "redis://h:1/2"
    assert settings.queues == ("urgent", "arq:queue")
    assert settings.lease == 7.5
    assert settings.files_dir == Path("/srv/files")
    assert (settings.concurrency, settings.connections) == (5, 9)
    assert "hunter2" not in repr(settings)


def test_a_variable_that_is_empty_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compose file hands on `${REDIS_URL:-}` and the like."""
    unset = load_settings()
    for name in (
        "REDIS_URL",
        "SENTRY_DSN",
        "WORKER_QUEUES",
        "WORKER_LISTEN_URL",
        "WORKER_LOG_PAYLOADS",
        "WORKER_LEASE",
    ):
        monkeypatch.setenv(name, "")
    assert load_settings() == unset


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        (
            "DATABASE_URL",
            "",
            "DATABASE_URL is not set; set it, for example DATABASE_URL=postgresql://user@host/database.",
        ),
        (
            "DATABASE_URL",
            "mysql://ann:hunter2@h/shop",
            (
                "DATABASE_URL can't be used: it begins with mysql://; "
                "use one of postgres://, postgresql://, postgresql+asyncpg://."
            ),
        ),
        (
            "WORKER_LISTEN_URL",
            "hunter2",
            "WORKER_LISTEN_URL can't be used: it is no URL; use one of postgres://, postgresql://, postgresql+asyncpg://.",
        ),
        (
            "WORKER_CONCURRENCY",
            "0",
            "WORKER_CONCURRENCY can't be used: input should be greater than or equal to 1.",
        ),
        (
            "WORKER_LOG_FORMAT",
            "hunter2",
            "WORKER_LOG_FORMAT can't be used: input should be 'console' or 'json'.",
        ),
        ("WORKER_QUEUES", "a,,b", "WORKER_QUEUES can't be used: give names of queues, separated by commas."),
        ("WORKER_APP", "jobs.app", "WORKER_APP can't be used: give it as module:attribute."),
        (
            "WORKER_PROCESSES",
            "1001",
            "WORKER_PROCESSES can't be used: input should be less than or equal to 1000.",
        ),
        (
            "WORKER_POOL_SIZE",
            "13",
            "Concurrency 10 needs a pool of at least 14; WORKER_POOL_SIZE is 13: raise it or lower WORKER_CONCURRENCY.",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert str(refused.value) == sentence
    assert refused.value.__cause__ is None


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1", "0.5"])
def test_a_lease_is_at_least_a_second(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("WORKER_LEASE", value)
    with pytest.raises(SettingsError, match=r"^WORKER_LEASE can't be used: "):
        load_settings()


def test_all_that_is_wrong_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "http://h")
    monkeypatch.setenv("WORKER_LEASE", "long")
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert "REDIS_URL" in str(refused.value)
    assert "WORKER_LEASE" in str(refused.value)
