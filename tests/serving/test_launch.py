"""Commands in an installation that lacks what they need."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.commands import ASCII_LOCALE, run_python
from tests.conftest import ROOT
from tests.photos import jpeg

NEEDED = [
    ("serve", "onnxruntime", "serve"),
    ("analyze", "torch", "train"),
    ("classify", "grpc", "client"),
    ("models", "grpc", "client"),
]


def said(command: str, first: str, *arguments: str) -> str:
    """What the command says on stderr once `first` has run; it must end with status 2."""
    code = f"import sys; {first}; sys.argv = {[command, *arguments]!r}\n"
    code += f"from serving.launch import {command}; sys.exit({command}())"
    done = run_python("-c", code)
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


def to_install(extra: str) -> str:
    return (
        f"install the extra {extra} of Pawprint from its folder or wheel: pip install '.[{extra}]'"
    )


def enough(command: str, folder: Path) -> tuple[str, ...]:
    """With which a command imports what it needs: `analyze` looks for its version first."""
    if command != "analyze":
        return ("--help",)
    (folder / "pets" / "1").mkdir(parents=True)
    return ("pets", "--data", str(folder), "--models", str(folder))


def signalled(command: str, package: str, number: signal.Signals, *arguments: str) -> str:
    """The program that is sent this signal when it imports the package."""
    return f"""
import os, signal, sys
class Signalled:
    def find_spec(self, name, *_):
        if name == "{package}":
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Signalled())
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.argv = {[command, *arguments]!r}
from serving.launch import {command}
sys.exit({command}())
"""


@pytest.mark.parametrize(
    ("command", "package"), [("serve", "numpy"), ("analyze", "torch"), ("classify", "grpc")]
)
def test_ctrl_c_while_packages_are_imported_says_nothing(
    tmp_path: Path, command: str, package: str
) -> None:
    code = signalled(command, package, signal.SIGINT, *enough(command, tmp_path))
    done = run_python("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.fixture
def container() -> list[str]:
    """Python as the first process of a container, for which signals have no default."""
    unshare = ["unshare", "--pid", "--fork", "--kill-child"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"]).returncode != 0:
        pytest.skip("needs unshare and the right to use it, for a process with the number 1")
    return [*unshare, sys.executable]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("command", "package"), [("serve", "numpy"), ("train", "rich")])
def test_a_container_that_is_stopped_while_packages_are_imported_ends(
    container: list[str], command: str, package: str, number: signal.Signals
) -> None:
    code = signalled(command, package, number, "--help")
    done = subprocess.run(
        [*container, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")


def test_a_container_that_is_stopped_while_it_calls_ends(
    container: list[str], tmp_path: Path
) -> None:
    (tmp_path / "one.jpg").write_bytes(jpeg())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        command = ["-m", "serving.classify", tmp_path / "one.jpg", "--address", address]
        with subprocess.Popen([*container, *command, "--timeout", "300"], cwd=ROOT) as unshare:
            silent.settimeout(120)
            with silent.accept()[0]:
                inside = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text()
                os.kill(int(inside), signal.SIGTERM)
                try:
                    assert unshare.wait(30) == 128 + signal.SIGTERM
                finally:
                    unshare.kill()


@pytest.mark.parametrize(("command", "package", "extra"), NEEDED)
def test_a_package_that_is_missing_is_one_line(
    tmp_path: Path, command: str, package: str, extra: str
) -> None:
    assert said(command, f"sys.modules['{package}'] = None", *enough(command, tmp_path)) == (
        f"error: this needs the package {package}; {to_install(extra)}\n"
    )


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("serving.serve", "onnxruntime", "serve"),
        ("serving.classify", "grpc", "client"),
        ("serving.models", "grpc", "client"),
        ("serving.probe", "grpc", "serve"),
        ("trainer.train", "rich", "train"),
        ("trainer.analysis.analyze", "torch", "train"),
        ("trainer.make_shards", "rich", "train"),
    ],
)
def test_so_it_is_where_python_is_given_the_module(
    tmp_path: Path, module: str, package: str, extra: str
) -> None:
    """As torchrun is."""
    (tmp_path / f"{package}.py").write_text("raise ImportError('no file')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    arguments = enough(module.rpartition(".")[2], tmp_path / "models")
    done = run_python("-m", module, *arguments, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        f"error: this needs the package {package}, which can't be loaded (no file); "
        f"{to_install(extra)}\n",
    )


@pytest.mark.parametrize(("command", "package", "extra"), NEEDED)
@pytest.mark.parametrize("kind", ["ImportError", "RuntimeError"])
def test_a_package_that_can_not_be_loaded_is_one_line(
    tmp_path: Path, command: str, package: str, extra: str, kind: str
) -> None:
    """As where a library of the system is missing, or two packages don't fit each other."""
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(f"raise {kind}('libcudart.so.13: no file')\n")
    arguments = enough(command, tmp_path / "models")
    assert said(command, f"sys.path.insert(0, {str(tmp_path)!r})", *arguments) == (
        f"error: this needs the package {package}, which can't be loaded (libcudart.so.13: no "
        f"file); {to_install(extra)}\n"
    )


@pytest.mark.parametrize("package", ["torch", "onnxscript", "tensorboard"])
def test_train_asks_for_its_packages_before_any_work(tmp_path: Path, package: str) -> None:
    """But says first what is wrong by itself, as they take seconds to import."""
    lacks = f"sys.modules['{package}'] = None"
    assert said("train", lacks, "--data", str(tmp_path)) == (
        f"error: this needs the package {package}; {to_install('train')}\n"
    )
    nowhere = ("--data", str(tmp_path / "photos"))
    assert said("train", lacks, *nowhere).startswith("error: no folder")
    assert said("train", lacks, "--data", str(tmp_path), "--epochs", "-1").startswith(
        "error: epochs must be 0 to 10000"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--compare", "--wise-ft"), "--compare can't be given --wise-ft"),
        (("--compare", "--weights", "none"), "--compare needs pre-trained weights"),
        (("--find-rate", "--epochs", "0"), "epochs must be at least 1 to look for a learning rate"),
        (("--tune", "0"), "--tune must be 1 to 10000 trials, got 0"),
        (("--tune", "3", "--adversarial", "pgd-3@4/255"), "--tune looks at the accuracy on clean"),
    ],
)
def test_what_does_not_suit_a_search_or_a_comparison_is_said_first(
    flags: Sequence[str], message: str
) -> None:
    """Not once the data set is downloaded."""
    lacks = "sys.modules['torch'] = None"
    assert said("train", lacks, "--data", "food101", *flags).startswith(f"error: {message}")


def test_analyze_asks_for_its_version_and_photos_first(tmp_path: Path) -> None:
    (tmp_path / "pets" / "1").mkdir(parents=True)
    lacks, models = "sys.modules['torch'] = None", ("--models", str(tmp_path))
    there = ("--data", str(tmp_path))
    assert said("analyze", lacks, "dogs", *there, *models) == (
        "error: no model 'dogs'; models here: pets\n"
    )
    for given in (("pets",), ("--compare", "pets", "pets/1")):
        nowhere = ("--data", str(tmp_path / "photos"))
        assert said("analyze", lacks, *given, *nowhere, *models).startswith("error: no folder")
        assert said("analyze", lacks, *given, *there, *models).startswith("error: this needs")


@pytest.mark.parametrize("command", ["train", "analyze", "serve", "classify", "models"])
def test_help_waits_for_no_package_that_takes_seconds(command: str) -> None:
    heavy = ["torch", "torchvision", "onnx", "scipy", "matplotlib", "pandas", "pyarrow"]
    code = f"import sys; sys.modules.update(dict.fromkeys({heavy}))\n"
    code += f"sys.argv = ['{command}', '--help']\n"
    code += f"from serving.launch import {command}; sys.exit({command}())"
    done = run_python("-c", code)
    assert (done.returncode, done.stderr) == (0, "") and f"usage: {command}" in done.stdout


def test_ctrl_c_once_all_is_done_makes_no_other_status_of_it(tmp_path: Path) -> None:
    """As Python lets go of what is left."""
    code = f"""
import signal, sys
class Late:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
late = Late()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.argv = ["models", "list", "--models", {str(tmp_path)!r}]
from serving.launch import models
sys.exit(models())
"""
    done = run_python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["train", "analyze", "serve", "classify", "models"])
def test_a_flag_that_is_wrong_is_one_line(command: str) -> None:
    code = f"import sys; sys.argv = ['{command}', *{['--data', 'd', 'cats', '--nope']}]\n"
    done = run_python("-c", f"{code}from serving.launch import {command}; sys.exit({command}())")
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "") and line.startswith("error: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("serving.classify", __file__, "--address", "caf\udce9:1"),
        ("serving.models", "load", "caf\udce9", "--server", "localhost:1"),
        ("serving.models", "status", "--server", "caf\udce9:1"),
        ("serving.probe", "--service", "caf\udce9"),
    ],
)
def test_an_argument_that_is_not_utf_8_is_one_line(arguments: Sequence[str]) -> None:
    done = run_python("-m", *arguments)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert r"caf\udce9" in done.stderr and done.stderr.endswith("' is not UTF-8\n")
    done = run_python("-m", *arguments, env=os.environ | ASCII_LOCALE)
    assert done.stderr.endswith("whose encoding is ascii: set PYTHONUTF8=1\n")


@pytest.mark.parametrize(
    ("arguments", "closed", "status", "said"),
    [
        (("list",), ">&-", 0, ""),
        (("list",), "<&- >&- 2>&-", 0, ""),
        (("list", "--nope"), "2>&-", 2, ""),  # not on stdout instead
        (("list", "--nope"), ">&-", 2, "error: unrecognized arguments: --nope"),
    ],
)
def test_standard_streams_may_be_closed(
    models: Path, arguments: Sequence[str], closed: str, status: int, said: str
) -> None:
    command = [sys.executable, "-m", "serving.models", *arguments, "--models", str(models)]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr.partition(" (")[0]) == (status, "", said)


def test_a_current_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    gone = f"cd {tmp_path / 'gone'} && rmdir {tmp_path / 'gone'} && exec {sys.executable} -m"
    (tmp_path / "gone").mkdir()
    done = subprocess.run(
        ["sh", "-c", f"{gone} trainer.train --data {tmp_path} --name pets"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: the current folder is no longer there; change to another\n"


def test_what_is_wrong_with_ours_is_seen_whole() -> None:
    code = (
        "import sys; sys.modules['serving.commandline'] = None\n"
        "from serving.launch import classify; classify()"
    )
    done = run_python("-c", code)
    assert done.returncode == 1 and "Traceback" in done.stderr
