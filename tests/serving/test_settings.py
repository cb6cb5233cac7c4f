import math
import os
from dataclasses import fields
from pathlib import Path

import pytest

from serving.errors import InvalidRequest
from serving.serve_flags import GROUPS
from serving.settings import ServerSettings, read_settings
from tests.commands import ASCII_LOCALE, run_python


def test_flags_before_environment_before_file_before_default(tmp_path: Path) -> None:
    config = tmp_path / "serve.toml"
    config.write_text('max_batch = 2\nmax_queue = 100\nport = 1\nhost = "::"\ndrain_s = 5\n')
    environment = {"PAWPRINT_SERVE_MAX_BATCH": "3", "PAWPRINT_SERVE_PORT": "2", "HOME": "/"}
    settings = read_settings(["--config", str(config), "--port", "3"], environment)
    assert settings == ServerSettings(max_batch=3, max_queue=100, port=3, host="::", drain_s=5.0)


def test_the_file_may_be_named_in_the_environment(tmp_path: Path) -> None:
    config = tmp_path / "serve.toml"
    config.write_text('models = "here"')
    settings = read_settings([], {"PAWPRINT_SERVE_CONFIG": str(config)})
    assert str(settings.models) == "here"


def test_the_file_is_utf_8_in_any_locale_and_may_say_so_as_on_windows(tmp_path: Path) -> None:
    config = tmp_path / "serve.toml"
    config.write_text('models = "größe"', encoding="utf-8-sig")
    read = "import sys; from serving.settings import read_settings as read; "
    read += "print(ascii(read(sys.argv[1:], {}).models))"
    done = run_python("-c", read, "--config", config, env=os.environ | ASCII_LOCALE)
    assert done.stdout == "'gr\\xf6\\xdfe'\n", done.stderr


def test_defaults() -> None:
    settings = read_settings([], {})
    assert settings == ServerSettings()
    assert settings.inference_cores >= 1 and settings.decoders >= 1


@pytest.mark.parametrize(
    "text, words",
    [
        ("max_batches = 2", "unknown setting max_batches in"),
        ("[batching]\nmax_batch = 2", "unknown setting batching in"),
        ('max_batch = "2x"', "max_batch in .*: expected int, got '2x'"),
        ("max_batch = 2.5", "expected int, got 2.5"),
        ("max_batch = true", "expected int, got True"),
        (f"drain_s = 1{400 * '0'}", "expected float, got 1000"),
        ("host = 5", "expected str, got 5"),
        ("max_batch = ", "can't be read"),
        (f"max_batch = {'[' * 10_000}", "can't be read"),
        ('config = "other.toml"', "unknown setting config in"),
        ('port_file = "a\\u0000b"', "port_file holds a NUL character"),
        ('host = "a..b"', "host is no address: 'a..b'"),
        (f'metrics_host = "{64 * "a"}"', "metrics_host is no address: 'aaaa"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    config = tmp_path / "serve.toml"
    config.write_text(text)
    with pytest.raises(InvalidRequest, match=words):
        read_settings(["--config", str(config)], {})


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="can't be read"):
        read_settings(["--config", str(tmp_path / "none.toml")], {})


@pytest.mark.parametrize(
    "environment, words",
    [
        ({"PAWPRINT_SERVE_MAX_BATCHES": "2"}, "unknown setting PAWPRINT_SERVE_MAX_BATCHES"),
        ({"PAWPRINT_SERVE_PORT": "tcp://10.0.0.1:50051"}, "PAWPRINT_SERVE_PORT: expected int"),
        ({"PAWPRINT_SERVE_DEVICE": "tpu"}, "device must be one of auto, cpu, cuda, got 'tpu'"),
    ],
)
def test_a_bad_environment_is_refused(environment: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        read_settings([], environment)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--port", "70000"], "port must be 0 to 65535, got 70000"),
        (["--port", "-1"], "port must be"),
        (["--metrics-host", ""], "metrics_host must not be empty"),  # it would be every network
        (["--host="], "host must not be empty"),
        (["--host", "[::1]"], "host is an address alone, without brackets: ::1, not .::1"),
        (["--host", "caf\udce9"], "host is no address: 'caf.udce9'"),
        # The system takes these.
        (["--host", "*"], "host is no address: '.'; every network is 0.0.0.0"),
        (["--admin-host", "127.1"], "admin_host is no address: '127.1'"),
        (["--metrics-host", "0"], "metrics_host is no address: '0'"),
        (["--models="], "models must not be empty"),
        (["--max-batch", "-1"], "max_batch must be"),
        (["--versions", "latest:0"], "versions must be latest:N, all, alias, or numbers"),
        # Of "$A,$B" where neither is set: no wish for all models, nor for none to be tried.
        (["--only", ","], "only must name models, with commas, got ','"),
        (["--canary", ","], "canary must be MODEL=VERSION:SHARE, or empty; got ','"),
        (["--shadow", ",,"], "shadow must be MODEL=VERSION:SHARE, or empty; got ',,'"),
        (["--max-delay-ms", "nan"], "max_delay_ms must be"),
        (["--max-queue", "8"], "max_queue must be at least max_batch"),
        (["--workers", "2", "--admin-port", "9"], "admin_port and several workers don't go"),
        (["--drain-s", "x"], "--drain-s: expected float, got 'x'"),
        (
            ["--workers", "3", "--metrics-port", "50049"],
            "takes the ports up to 50052, which .* not the port of the calls",
        ),
        (["--workers", "2", "--metrics-port", "65534"], "up to 65536, which must be no more"),
        (["--admin-port", "50051"], "port and admin_port are both 50051"),
        (["--host", "0.0.0.0", "--metrics-port", "50051"], "port and metrics_port are both 50051"),
        (["--metrics-port", "50051", "--workers", "2"], "port and metrics_port are both 50051"),
        (["--admin-port", "9", "--metrics-port", "9"], "admin_port and metrics_port are both 9"),
        # A connection that comes of age would break off its calls.
        (["--max-connection-age-s", "60", "--drain-s", "0"], "needs a drain_s of more than 0"),
    ],
)
def test_a_bad_flag_is_refused(flags: list[str], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        read_settings(flags, {})


def test_more_cores_than_the_machine_has_are_refused() -> None:
    built_in = os.cpu_count() or 1
    assert read_settings(["--cores", str(built_in)], {}).inference_cores == built_in
    with pytest.raises(InvalidRequest, match=rf"than this machine has \({built_in}\), got 1024"):
        read_settings(["--cores", "1024"], {})


def test_one_port_may_be_had_on_two_addresses_and_0_is_none_yet() -> None:
    read_settings(["--metrics-port", "50051", "--metrics-host", "127.0.0.2"], {})
    read_settings(["--port", "0"], {})


def test_every_number_has_a_least_and_every_choice_its_choices() -> None:
    for field in fields(ServerSettings):
        if field.type in (int, float):
            for wrong in (-1, math.nan):
                with pytest.raises(InvalidRequest, match=f"{field.name} must be "):
                    ServerSettings(**{field.name: wrong})
    for name in (
        "device",
        "precision",
        "pad",
        "control",
        "log_format",
        "access_log",
        "cuda_graphs",
    ):
        with pytest.raises(InvalidRequest, match=f"{name} must be one of .*, got 'perhaps'"):
            ServerSettings(**{name: "perhaps"})


def test_an_unknown_flag_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read_settings(["--max-batches", "2"], {})
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: unrecognized arguments: --max-batches")


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read_settings(["--help"], {})
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for name in ServerSettings.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text


def test_each_setting_is_told_once():
    told = [name for group in GROUPS.values() for name in group]
    assert sorted(told) == sorted(field.name for field in fields(ServerSettings))
