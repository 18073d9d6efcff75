"""What one client may ask of a server: set in the configuration, on the command line, checked."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from running import RunningServer, write_config
from simulated_entries import model_entries, through_httpx

from optllm_router import ConfigurationError
from optllm_router.cli import commands
from optllm_router.server import Limits, ServerOptions, load_limits, serving

NAMES = [limit.name for limit in dataclasses.fields(Limits)]


@pytest.fixture
def served(monkeypatch) -> list[ServerOptions]:
    """What a server was told to do, which it is not started for."""
    told: list[ServerOptions] = []
    monkeypatch.setattr(serving, "serve", lambda options, listening: told.append(options))
    return told


def configuration(folder: Path, **server) -> Path:
    path = folder / "config.yaml"
    path.write_text(json.dumps({"model_list": [], "server": server}))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_sets_each_limit(tmp_path, name):
    value = getattr(Limits(), name) + 1
    limits = load_limits(configuration(tmp_path, limits={name: value}))
    assert limits == dataclasses.replace(Limits(), **{name: value})


def test_the_command_line_wins_over_the_configuration(tmp_path, served):
    limits = {"requests": 10, "header_seconds": 3, "idle_seconds": 75}
    config = configuration(tmp_path, limits=limits)
    for options in ([], ["--max-requests", "20", "--max-request-seconds", "9.5"]):
        done = CliRunner().invoke(commands, ["serve", "--config", str(config), *options])
        assert done.exit_code == 0, done.output
    plain, other = (one.limits for one in served)
    assert plain == Limits(requests=10, header_seconds=3, idle_seconds=75)
    assert other == dataclasses.replace(plain, requests=20, request_seconds=9.5)


def test_what_is_set_nowhere_is_as_the_help_says(served):
    assert CliRunner().invoke(commands, ["serve", "openai/gpt-4o-mini"]).exit_code == 0
    assert served[0].limits == Limits()
    command = commands.get_command(click.Context(commands), "serve")
    options = {option.name: option for option in command.params}
    for name in ("body_bytes", "requests", "connections", "request_seconds", "idle_seconds"):
        assert f"or {getattr(Limits(), name)}]" in options[name].help
        assert f"--max-{name.replace('_', '-')}" in options[name].opts


@pytest.mark.parametrize(
    ("server", "complaint"),
    [
        ({"limits": {"requests": 0}}, "limit requests 0 must be a whole number from 1 to 1000000"),
        ({"limits": {"requests": 1.5}}, "requests 1.5 must be a whole number"),
        ({"limits": {"requests": True}}, "requests True must be"),
        ({"limits": {"requests": None}}, "requests None must be"),
        ({"limits": {"send_seconds": 0.05}}, "send_seconds 0.05 must be a number from 0.1"),
        ({"limits": {"send_seconds": "60"}}, "send_seconds '60' must be"),
        ({"limits": {"body_bytes": 10**12}}, "body_bytes 1000000000000 must be"),
        ({"limits": {"request": 5}}, "'request' is unknown; did you mean 'requests'?"),
        ({"limits": [5]}, "must hold limits"),
        ({"limits": 0}, "must hold limits"),
        ({"limit": {}}, "server setting 'limit' is unknown; did you mean 'limits'?"),
    ],
)
def test_a_limit_that_is_wrong_is_told(tmp_path, server, complaint):
    with pytest.raises(ConfigurationError) as told:
        load_limits(configuration(tmp_path, **server))
    assert complaint in str(told.value)


@pytest.mark.parametrize("name", NAMES)
def test_no_limit_lets_nothing_or_everything_through(name):
    for value in (0, -1, math.inf, math.nan):
        with pytest.raises(ConfigurationError, match=name):
            Limits(**{name: value})


def test_a_server_section_that_is_no_mapping_is_told(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("server: fast\n")
    with pytest.raises(ConfigurationError, match="server must hold settings, not 'fast'"):
        load_limits(path)


def test_a_connection_waits_for_its_next_request_as_long_as_it_may(provider, tmp_path):
    config = write_config(tmp_path, through_httpx(model_entries(provider.base_url)))
    with RunningServer(config, "--max-idle-seconds", "1") as server, server.connect() as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        connection.settimeout(20)
        heard = b""
        while part := connection.recv(4096):
            heard += part
    assert heard.startswith(b"HTTP/1.1 200")
