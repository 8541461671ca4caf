"""TLS to both servers, with a CA of the test's own. The embedded builds have none, so these are Debian's."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from signal import Signals

import pytest
import trustme
from redis import Redis
from redis.exceptions import ConnectionError, RedisError  # noqa: A004

from tests.conftest import StartWorker
from tests.ha.app import TABLES
from tests.ha.load import ENV
from tests.support.networked import HBA, NetworkedPostgres
from worker.broker import arq_settings, connect_blocking, connect_broker, is_untrusted
from worker.database import DatabaseAway, connect
from worker.dev.server import Server, free_port
from worker.dev.user import UNPRIVILEGED_USER
from worker.migrate import migrate
from worker.settings import SettingsError

POSTGRES = Path("/usr/lib/postgresql/15/bin")
REDIS = shutil.which("redis-server")

needs_postgres = pytest.mark.skipif(
    not (POSTGRES / "postgres").exists(), reason="PostgreSQL 15 (Debian's postgresql-15) isn't installed here"
)
needs_redis = pytest.mark.skipif(REDIS is None, reason="Redis (Debian's redis-server) isn't installed here")
PLAIN_REFUSED = HBA.replace("host all", "hostssl all")


class Authority:
    """A CA, and the file that has its certificate."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.file)

    def issue(self, name: str) -> tuple[str, str]:
        """Key and certificate of a server of this name, as PEM."""
        issued = self._ca.issue_cert(name)
        return issued.private_key_pem.bytes().decode(), "".join(p.bytes().decode() for p in issued.cert_chain_pems)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A CA that has signed nothing."""
    return Authority(tmp_path_factory.mktemp("stranger"))


@pytest.fixture(scope="module")
def postgres_tls(ca: Authority) -> Iterator[NetworkedPostgres]:
    """Start a PostgreSQL that takes nothing but TLS on its address, and is called localhost."""
    server = NetworkedPostgres(installed=POSTGRES, hba=PLAIN_REFUSED)
    key, certificate = ca.issue("localhost")
    server._options |= {
        "ssl": "on",
        "ssl_key_file": str(server.own_file("key", key)),
        "ssl_cert_file": str(server.own_file("certificate", certificate)),
    }
    with server:
        migrate(server.url)
        server.psql(*TABLES)
        yield server


@pytest.fixture(scope="module")
def redis_tls(ca: Authority) -> Iterator[str]:
    """Start a Redis that has no other port than one for TLS."""
    assert REDIS is not None
    server, port = Server("Redis", Signals.SIGTERM), free_port()
    own, user = server.directory, UNPRIVILEGED_USER if os.geteuid() == 0 else None
    key, certificate = ca.issue("localhost")
    (own / "key").write_text(key)
    (own / "certificate").write_text(certificate)
    (own / "ca").write_text(ca.file.read_text())
    if user:  # root runs it as somebody else, who can't read what pytest's folders hold
        for path in (own, *own.iterdir()):
            shutil.chown(path, user)

    def answers() -> bool:
        try:
            with Redis(host="localhost", port=port, ssl=True, ssl_ca_certs=str(ca.file)) as client:
                return bool(client.ping())
        except RedisError:
            return False

    server.launch(
        [
            *(REDIS, "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(own)),
            *("--tls-key-file", str(own / "key"), "--tls-cert-file", str(own / "certificate")),
            *("--tls-ca-cert-file", str(own / "ca"), "--tls-auth-clients", "no"),
        ],
        ready=answers,
        user=user,
    )
    yield f"rediss://localhost:{port}"
    server.remove()


def database_at(server: NetworkedPostgres, host: str, ca: Authority) -> str:
    return f"postgresql://postgres@{host}:{server.port}/postgres?sslmode=verify-full&sslrootcert={ca.file}"


@needs_postgres
@needs_redis
async def test_a_job_runs_over_tls_to_both_servers(
    postgres_tls: NetworkedPostgres, redis_tls: str, ca: Authority, start_worker: StartWorker
) -> None:
    env = {
        "DATABASE_URL": database_at(postgres_tls, "localhost", ca),
        "REDIS_URL": f"{redis_tls}?ssl_ca_certs={ca.file}",
    }
    worker = await start_worker(**ENV, **env)
    for way in ([], ["--direct"]):
        asked = await start_worker(*("enqueue", "ha.mark", "--json", '{"n": 1}', "--wait", *way), **ENV, **env)
        assert await asked.wait() == 0, asked.output
    assert postgres_tls.psql("select count(*) from effect") == "2"
    over_tls = "select count(*) > 0 and bool_and(ssl) from pg_stat_ssl join pg_stat_activity using (pid) "
    assert postgres_tls.psql(over_tls + "where starts_with(application_name, 'ratchet worker')") == "t"
    assert await worker.stop() == 0


@needs_postgres
async def test_a_postgresql_that_another_ca_has_signed_ends_a_worker_with_a_sentence(
    postgres_tls: NetworkedPostgres, stranger: Authority, start_worker: StartWorker
) -> None:
    worker = await start_worker(**ENV, DATABASE_URL=database_at(postgres_tls, "localhost", stranger))
    assert await worker.wait() == 3
    assert "CERTIFICATE_VERIFY_FAILED" in worker.output
    assert "check DATABASE_URL and the server." in worker.output
    assert "Traceback" not in worker.output


@needs_postgres
async def test_a_postgresql_of_another_name_is_refused(postgres_tls: NetworkedPostgres, ca: Authority) -> None:
    with pytest.raises(DatabaseAway, match=r"127\.0\.0\.1") as refusal:
        await connect(database_at(postgres_tls, "127.0.0.1", ca), "test")
    assert refusal.value.refused
    with pytest.raises(DatabaseAway, match="no encryption"):
        await connect(f"postgresql://postgres@localhost:{postgres_tls.port}/postgres?sslmode=disable", "test")


async def test_a_file_of_certificates_that_isnt_there_is_a_wrong_setting() -> None:
    with pytest.raises(SettingsError, match=r"sslrootcert names a file that isn't there"):
        await connect("postgresql://localhost:1/any?sslmode=verify-full&sslrootcert=/no/such/file", "test")


@needs_redis
async def test_a_redis_of_another_name_is_refused(redis_tls: str, ca: Authority) -> None:
    url = f"{redis_tls.replace('localhost', '127.0.0.1')}?ssl_ca_certs={ca.file}"
    client, blocking = connect_broker(url), connect_blocking(url)
    with pytest.raises(ConnectionError) as refusal:
        await client.ping()
    assert is_untrusted(refusal.value)
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1"):
        blocking.ping()
    assert arq_settings(url).ssl_check_hostname
    await client.aclose()
    unchecked = connect_broker(f"{url}&ssl_check_hostname=false")
    assert await unchecked.ping()
    await unchecked.aclose()


@needs_redis
async def test_a_redis_that_another_ca_has_signed_ends_a_worker_with_a_sentence(
    database_url: str, redis_tls: str, stranger: Authority, start_worker: StartWorker
) -> None:
    worker = await start_worker(**ENV, REDIS_URL=f"{redis_tls}?ssl_ca_certs={stranger.file}")
    assert await worker.wait() == 3
    assert "Redis shows a certificate that isn't trusted; check ssl_ca_certs in REDIS_URL." in worker.output
    assert "Traceback" not in worker.output
