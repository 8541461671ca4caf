"""The deployment files, read for the tests."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, Field
from ruamel.yaml import YAML

from worker.settings import Settings

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
DOCKERFILE = ROOT / "Dockerfile"
COMPOSE = ROOT / "docker-compose.yml"


def run_tool(name: str, *args: str, cwd: Path = ROOT) -> str:
    """Run a command of the environment's bin directory and return what it printed; it must end with 0."""
    done = subprocess.run([str(BIN / name), *args], capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- docker-compose.yml: what the tests look at -----------------------------------------------------------------------


class Healthcheck(BaseModel):
    test: list[str] = []
    disable: bool = False
    interval: str = ""
    timeout: str = ""
    retries: int = 0
    start_period: str = ""


class Condition(BaseModel):
    condition: str


class Limits(BaseModel):
    memory: str
    pids: int


class Resources(BaseModel):
    limits: Limits


class Deploy(BaseModel):
    resources: Resources
    replicas: int = 1


class Service(BaseModel):
    image: str
    build: str | None = None
    user: str | None = None
    init: bool
    read_only: bool
    cap_drop: list[str]
    security_opt: list[str]
    command: list[str] = []
    environment: dict[str, str | None] = {}
    depends_on: dict[str, Condition] = {}
    networks: list[str]
    volumes: list[str] = []
    ports: list[str] = []
    healthcheck: Healthcheck
    restart: str
    stop_grace_period: str = "10s"
    deploy: Deploy


class Network(BaseModel):
    internal: bool = False


class Compose(BaseModel):
    services: dict[str, Service]
    networks: dict[str, Network]
    volumes: dict[str, None]
    text: str = Field(exclude=True)


def read_compose() -> Compose:
    text = COMPOSE.read_text()
    return Compose.model_validate({**YAML(typ="safe").load(text), "text": text})


def interpolate(text: str, values: dict[str, str]) -> str:
    """Put `values` in for ${NAME:?…}, the one form that the file uses."""
    return re.sub(r"\$\{(\w+):\?[^}]+\}", lambda match: values[match[1]], text)


def seconds(duration: str) -> int:
    """Read "45s"."""
    return int(duration.removesuffix("s"))


# --- Dockerfile -------------------------------------------------------------------------------------------------------


class Instruction(NamedTuple):
    name: str
    text: str


def read_stages() -> list[list[Instruction]]:
    """Read the instructions of each stage, the first of which is its FROM; no comments, continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    stages: list[list[Instruction]] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, text = line.strip().partition(" ")
        if name == "FROM":
            stages.append([])
        if name:
            stages[-1].append(Instruction(name, " ".join(text.split())))
    return stages


def texts(stage: list[Instruction], name: str) -> list[str]:
    return [instruction.text for instruction in stage if instruction.name == name]


def read_environment(stage: list[Instruction]) -> dict[str, str]:
    pairs = [pair.partition("=") for text in texts(stage, "ENV") for pair in text.split()]
    return {name: value for name, _, value in pairs}


def read_image_health(stage: list[Instruction]) -> tuple[dict[str, str], list[str]]:
    """Read the options and the command of HEALTHCHECK."""
    [text] = texts(stage, "HEALTHCHECK")
    options, _, command = text.partition("CMD ")
    return {
        name.removeprefix("--"): value for name, _, value in (option.partition("=") for option in options.split())
    }, json.loads(command)


# --- settings ---------------------------------------------------------------------------------------------------------


def setting_names() -> dict[str, str]:
    """Name each setting's variable, with the field that it sets."""
    prefix = Settings.model_config.get("env_prefix", "")
    fields = Settings.model_fields.items()
    return {str(field.validation_alias or f"{prefix}{name.upper()}"): name for name, field in fields}
