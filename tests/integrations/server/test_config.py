"""Options of the server: YAML, the command line, and what is refused."""

from __future__ import annotations

import argparse
import builtins
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from adafuse_core import ConfigError, EnsembleConfig
from adafuse_core.checks import field_names
from adafuse_integrations.cli import main as cli
from adafuse_integrations.cli import serve
from adafuse_integrations.server.config import ServerConfig
from tests.integrations.stepped import LONG

COMMAND = [sys.executable, "-m", "adafuse_integrations.cli.main", "serve"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
DOCS = Path(__file__).parent.parent.parent.parent / "docs"

FILE = """
port: 0
api_keys: [secret-1]
cors_origins: https://chat.example.org
max_running: 3
max_seconds: null
ensembles:
  pair:
    members: [small:aspen, small:birch]
    tau: 0.5
  other: other.yaml
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "other.yaml").write_text("members: [small:birch]\nbeams: 1\n", encoding="utf-8")
    path = tmp_path / "serve.yaml"
    path.write_text(FILE, encoding="utf-8")
    return path


def config_of(*arguments):
    """The config that arguments of `adafuse serve` describe."""
    parser = argparse.ArgumentParser()
    serve.add_options(parser)
    return serve.server_config(parser.parse_args(arguments))


def test_a_file_has_several_ensembles_and_all_options(file):
    config = ServerConfig.from_any(file)
    assert list(config.ensembles) == ["pair", "other"]
    assert config.ensembles["pair"].strategy.tau == 0.5
    assert [member.label for member in config.ensembles["other"].members] == ["birch"]
    assert config.api_keys == ("secret-1",)
    assert config.cors_origins == ("https://chat.example.org",)
    assert (config.port, config.max_running, config.max_seconds, config.host) == (0, 3, None, "127.0.0.1")
    assert "secret-1" not in repr(config)


def test_the_documented_file_has_every_option_with_its_default():
    config = ServerConfig.from_any(DOCS / "server.yaml")
    given = yaml.safe_load((DOCS / "server.yaml").read_text(encoding="utf-8"))
    assert set(given) == set(field_names(ServerConfig))
    assert list(config.ensembles) == ["pair", "all-options"]
    assert config == ServerConfig(ensembles=config.ensembles)


def test_arguments_override_the_file(file):
    config = config_of("--server-config", str(file), "--port", "80", "--api-keys", "a", "--api-keys", "b")
    assert (config.port, config.api_keys, config.max_running) == (80, ("a", "b"), 3)


def test_arguments_describe_one_ensemble():
    config = config_of("--models", "small:birch", "--tau", "0.4", "--max-new-tokens", "9", "--name", "mine")
    assert list(config.ensembles) == ["mine"]
    assert config.ensembles["mine"].strategy.tau == 0.4
    assert config.ensembles["mine"].generation.max_new_tokens == 9
    assert config_of().ensembles == ServerConfig().ensembles


def test_options_of_an_ensemble_do_not_mix_with_a_file_of_ensembles(file):
    with pytest.raises(ConfigError, match="pair, other"):
        config_of("--server-config", str(file), "--tau", "0.4")


@pytest.mark.parametrize(
    "options",
    [
        {"ensembles": {}},
        {"ensembles": {"a:b": {"members": ["x"]}}},
        {"ensembles": {" ": {"members": ["x"]}}},
        {"ensembles": ["x"]},
        {"ensembles": {"a": {"members": []}}},
        {"port": 70_000},
        {"port": -1},
        {"host": ""},
        {"api_keys": [""]},
        {"api_keys": ["with blank"]},
        {"api_keys": ["schlüssel"]},
        {"max_body_bytes": 0},
        {"max_queue": -1},
        {"max_running": 1.5},
        {"max_running": None},
        {"max_seconds": -1},
        {"shutdown_seconds": "soon"},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ConfigError):
        ServerConfig.from_any(options)


def test_unknown_options_and_unreadable_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="max_running"):
        ServerConfig.from_any({"max_runing": 3})
    with pytest.raises(ConfigError, match="can't read"):
        ServerConfig.from_any(tmp_path / "none.yaml")
    for text in ("[1, 2]", "a: [", "\x00"):
        (tmp_path / "bad.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError):
            ServerConfig.from_any(tmp_path / "bad.yaml")


def test_an_ensemble_may_be_a_config_object():
    config = EnsembleConfig(members=("small:aspen",))
    assert ServerConfig(ensembles={"one": config}).ensembles == {"one": config}


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, capsys):
    real = builtins.__import__

    def without_fastapi(name, *arguments, **options):
        if name.partition(".")[0] == "fastapi":
            raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")
        return real(name, *arguments, **options)

    for name in [name for name in sys.modules if name.startswith("adafuse_integrations.server.")]:
        if not name.endswith(".config"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without_fastapi)
    assert cli.main(["serve"]) == 1
    error = capsys.readouterr().err
    assert "fastapi is not installed" in error
    assert 'pip install "adafuse[serve]"' in error


def test_an_address_in_use_is_a_failure():
    # In a process of its own: a server in the main thread takes over signals and the event loop.
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [*COMMAND, "--port", str(taken.getsockname()[1])]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 1
    assert "address already in use" in done.stderr


def test_the_command_serves_until_it_is_told_to_end():
    command = [*COMMAND, "--port", "0", "--name", "demo"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=ENVIRONMENT)
    try:
        line = next(line for line in process.stderr if "running on" in line)
        url = line.partition("running on ")[2].split()[0]
        assert httpx.get(url + "/ready", timeout=LONG).json() == {"status": "ready"}
        body = {"model": "demo", "messages": [{"role": "user", "content": "What is the capital of Peru?"}]}
        answer = httpx.post(url + "/v1/chat/completions", json=body, timeout=LONG).json()
        assert answer["choices"][0]["message"]["content"] == "The capital of Peru is Lima."
        process.send_signal(signal.SIGINT)
        assert process.wait(6 * LONG) == 130
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
