"""The container files: what they copy, install and run exists, and the commands of the page parse."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from adafuse_integrations.cli.main import parser
from tests.test_code_blocks import blocks

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples/docker"
DOCKERFILE = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
PORT = "8000"
WITH_VALUE = {"-p", "-v", "-e", "--gpus"}  # options of `docker run` that the page uses


def instruction(name):
    """The argument of the last instruction with this name."""
    return re.findall(rf"^{name} (.*)", DOCKERFILE, re.MULTILINE)[-1]


def check_command(words):
    """Check a command of `adafuse` without its name."""
    if words[0] == "serve":
        pytest.importorskip("adafuse_integrations.cli.serve")
    args, unknown = parser().parse_known_args(words)
    assert not unknown
    return args


def published(service):
    """The addresses and the port inside of a service."""
    (text,) = COMPOSE["services"][service]["ports"]
    return text.split(":")


def test_the_dockerfile_copies_and_installs_what_exists():
    assert (ROOT / "constraints.txt").is_file()
    assert (ROOT / ".packages/build.py").is_file()
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for tool in ("build", "hatchling"):
        (pin,) = re.findall(rf"\b{tool}==\S+", DOCKERFILE)
        assert pin in pins


def test_the_extras_of_the_image_exist():
    pytest.importorskip("adafuse_integrations.cli.serve")
    assert "[${EXTRAS}]" in DOCKERFILE
    extras = re.findall(r"^ARG EXTRAS=(\S+)", DOCKERFILE, re.MULTILINE)
    extras += re.findall(r"EXTRAS=([a-z,-]+)", (ROOT / "docs/docker.md").read_text(encoding="utf-8"))
    extras += re.findall(r"ADAFUSE_EXTRAS:-([a-z,-]+)", (FOLDER / "compose.yaml").read_text(encoding="utf-8"))
    assert len(extras) == 3
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {name for each in extras for name in each.split(",")} <= set(project["optional-dependencies"])


def test_the_image_runs_an_existing_command():
    assert json.loads(instruction("ENTRYPOINT")) == ["adafuse"]
    args = check_command(json.loads(instruction("CMD")))
    assert args.host == "0.0.0.0"
    assert instruction("EXPOSE") == PORT


def test_the_image_does_not_run_as_root():
    assert f"useradd --uid {int(instruction('USER'))} " in DOCKERFILE


def test_compose_builds_the_dockerfile_with_its_arguments():
    build = COMPOSE["services"]["adafuse"]["build"]
    assert (FOLDER / build["context"]).resolve() == ROOT
    assert ROOT / build["dockerfile"] == FOLDER / "Dockerfile"
    assert set(build["args"]) == set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))


def test_compose_runs_an_existing_command_with_a_key():
    args = check_command(COMPOSE["services"]["adafuse"]["command"])
    assert args.api_keys == ["${ADAFUSE_API_KEY:?set it to a key of your choice}"]


def test_the_chat_page_calls_the_server_with_the_same_key():
    variables = COMPOSE["services"]["chat"]["environment"]
    assert variables["OPENAI_API_BASE_URL"] == f"http://adafuse:{PORT}/v1"
    assert variables["OPENAI_API_KEY"] == "${ADAFUSE_API_KEY}"


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_services_are_published_to_this_machine_only(service):
    assert published(service)[0] == "127.0.0.1"


def test_every_volume_is_declared():
    used = {text.split(":")[0] for service in COMPOSE["services"].values() for text in service["volumes"]}
    assert used == set(COMPOSE["volumes"])
    assert instruction("VOLUME") in str(COMPOSE["services"]["adafuse"]["volumes"])


LINES = [
    line
    for page, _, text in blocks("sh")
    if page.name == "docker.md"
    for line in text.replace("\\\n", " ").splitlines()
]


@pytest.mark.parametrize("line", LINES)
def test_commands_of_the_page_use_existing_files_and_options(line):
    for path in re.findall(r"examples/docker/\S+", line):
        assert (ROOT / path).is_file()
    for argument in re.findall(r"--build-arg (\w+)=", line):
        assert re.search(rf"^ARG {argument}\b", DOCKERFILE, re.MULTILINE)
    words = shlex.split(line)
    if words[:2] == ["docker", "run"] and (command := after_image(words[2:])):
        check_command(command)


def after_image(words):
    """What follows the image in the arguments of `docker run`."""
    while words[0].startswith("-"):
        words = words[2:] if words[0] in WITH_VALUE else words[1:]
    return words[1:]
