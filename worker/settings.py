"""Settings from the environment. Checked at start, with sentences."""

import re
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from worker.broker import check_url
from worker.file_urls import read_prefixes
from worker.job import DEFAULT_QUEUE
from worker.pressure import Ceiling
from worker.queue_order import QueueOrder, parse_order

DEFAULT_REDIS_URL = "redis://localhost:6379"
DEFAULT_CONCURRENCY = 10
DEFAULT_KEEP_RESULT = 3600.0
SPARE_CONNECTIONS = 4
"""Beyond one a job: for the relay (two, for what coalesces), the schedule, what is paused, the ending of zombies, and
whether PostgreSQL is there. Seldom all at once: who finds none waits."""

POSTGRES_SCHEMES = ("postgres", "postgresql", "postgresql+asyncpg")
REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel")


class SettingsError(ValueError):
    """Settings that can't work; the text says which and what to do."""


class Settings(BaseSettings):
    """Everything that can be set. Times are in seconds."""

    model_config = SettingsConfigDict(
        env_prefix="WORKER_", env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True
    )

    database_url: SecretStr = Field(validation_alias="DATABASE_URL")
    redis_url: SecretStr = Field(SecretStr(DEFAULT_REDIS_URL), validation_alias="REDIS_URL")
    sentry_dsn: SecretStr | None = Field(None, validation_alias="SENTRY_DSN")

    app: str = "jobs.app:app"
    queues: Annotated[QueueOrder, NoDecode] = QueueOrder((DEFAULT_QUEUE,))
    """Their names; it knows in which order to look at them."""
    concurrency: int = Field(DEFAULT_CONCURRENCY, ge=1, le=10_000)
    processes: int = Field(1, ge=1, le=1000)
    max_jobs: int | None = Field(None, ge=1)
    """About so many jobs, and a process ends in order for another to take its place."""
    max_rss_mb: int | None = Field(None, ge=1)
    """The same at about so much resident memory (MiB)."""
    pool_size: int | None = Field(None, ge=1, le=20_000)
    """Connections to PostgreSQL of each process; concurrency + 4 unless given."""

    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_payloads: bool = False
    show_payloads: bool = False
    # These three are checked here, when a worker starts; an application that takes files reads them by itself.
    files_dir: Path = Path("./files")
    files_urls: Annotated[tuple[str, ...] | None, NoDecode] = None
    """Prefixes of URLs that may be written to."""
    files_max_unpacked_mb: int = Field(10_240, ge=1)
    """What a packed file (.gz, .zst) that is imported may hold (MiB)."""

    poll_delay: float = Field(0.1, gt=0, le=60)
    lease: float = Field(15, ge=1, le=3600)
    shutdown_grace: float = Field(25, ge=0, le=3600)
    keep_result: float = Field(DEFAULT_KEEP_RESULT, ge=0, le=30 * 86400)
    relay_poll: float = Field(1, gt=0, le=60)
    sweep_interval: float = Field(30, gt=0, le=3600)
    max_replication_lag: float = Field(10, ge=0, le=86_400)
    max_transaction_age: float = Field(3600, ge=0, le=30 * 86_400)
    max_waiting_locks: int = Field(50, ge=0, le=100_000)
    """Above any of these chunked jobs wait between their chunks. 0: that isn't looked at."""
    pgbouncer: bool = False
    """Whether DATABASE_URL leads through PgBouncer in transaction mode."""
    listen_url: SecretStr | None = None
    """Where LISTEN goes, if not to DATABASE_URL; around a pooler in transaction mode."""

    sentry_traces_sample_rate: float = Field(1.0, ge=0, le=1)
    sentry_environment: str | None = None
    sentry_send_payloads: bool = False

    @field_validator("queues", mode="plain")
    @classmethod
    def _read_queues(cls, value: str | Iterable[str]) -> QueueOrder:
        if isinstance(value, QueueOrder):
            return value
        return parse_order(value.split(",") if isinstance(value, str) else value)

    @field_validator("files_urls", mode="before")
    @classmethod
    def _read_files_urls(cls, value: object) -> object:
        return read_prefixes(value) if isinstance(value, str) else value

    @field_validator("app")
    @classmethod
    def _check_app(cls, value: str) -> str:
        if not re.fullmatch(r"[\w.]+:\w+", value):
            raise ValueError("give it as module:attribute")
        return value

    @field_validator("database_url", "listen_url")
    @classmethod
    def _check_database_url(cls, value: SecretStr | None) -> SecretStr | None:
        return value and _checked_url(value, POSTGRES_SCHEMES)

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: SecretStr) -> SecretStr:
        check_url(_checked_url(value, REDIS_SCHEMES).get_secret_value())
        return value

    @field_validator("sentry_dsn")
    @classmethod
    def _check_sentry_dsn(cls, value: SecretStr | None) -> SecretStr | None:
        if value:
            from sentry_sdk.utils import Dsn  # noqa: PLC0415 - it takes 33 ms, which commands without a DSN needn't pay

            try:
                Dsn(value.get_secret_value())
            except ValueError:  # whose text may quote it
                raise ValueError("it is no DSN; copy it from the project's settings") from None
        return value

    @model_validator(mode="after")
    def _check_pool(self) -> Self:
        if self.pool_size is not None and self.pool_size < self.concurrency + SPARE_CONNECTIONS:
            raise ValueError(
                f"Concurrency {self.concurrency} needs a pool of at least {self.concurrency + SPARE_CONNECTIONS}; "
                f"WORKER_POOL_SIZE is {self.pool_size}: raise it or lower WORKER_CONCURRENCY."
            )
        return self

    @property
    def ceiling(self) -> Ceiling:
        """When chunked jobs leave PostgreSQL alone."""
        lag, age = timedelta(seconds=self.max_replication_lag), timedelta(seconds=self.max_transaction_age)
        return Ceiling(lag, age, self.max_waiting_locks)

    @property
    def listens_at(self) -> SecretStr | None:
        """The URL to LISTEN at. None: there is none, since a notification finds no way back through PgBouncer."""
        return self.listen_url or (None if self.pgbouncer else self.database_url)

    @property
    def connections(self) -> int:
        """How many connections to PostgreSQL each process may hold, beside the one that listens."""
        return self.pool_size or self.concurrency + SPARE_CONNECTIONS


def load_settings(**overrides: object) -> Settings:
    """The settings of the environment; `overrides` (field names) win where they are not None.

    Raises SettingsError, whose text holds no value: it could be a password.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]  # checked by pydantic
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
    raise SettingsError(
        " ".join(
            _sentence(str(fault["loc"][0]) if fault["loc"] else "", fault["type"], fault["msg"]) for fault in faults
        )
    )


def _sentence(field: str, kind: str, message: str) -> str:
    text = message.removeprefix("Value error, ")
    if not field:
        return text
    alias = Settings.model_fields[field].validation_alias if field in Settings.model_fields else field
    name = str(alias or f"WORKER_{field.upper()}")
    if kind == "missing":
        return f"{name} is not set; set it, for example {name}=postgresql://user@host/database."
    return f"{name} can't be used: {text[0].lower()}{text[1:].rstrip('.')}."


def _checked_url(value: SecretStr, schemes: tuple[str, ...]) -> SecretStr:
    """Raises ValueError, whose text holds nothing of the URL but its scheme."""
    scheme, mark, _ = value.get_secret_value().partition("://")
    if scheme not in schemes:
        begins = f"it begins with {scheme[:20]}://" if mark else "it is no URL"
        raise ValueError(f"{begins}; use one of {', '.join(f'{known}://' for known in schemes)}")
    return value
