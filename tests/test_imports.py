"""The arrows between the modules: who may import whom, read from the source."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import run_python
from tests.conftest import ROOT

CONTRACTS = {
    *(
        "cores",
        "csv_text",
        "durable",
        "errors",
        "folders",
        "jpeg_scans",
        "layout",
        "modelspec",
        "paths",
        "percent",
        "photo_formats",
        "photo_parts",
        "preprocess",
        "repository",
        "triton_config",
        "visible",
        "whole_file",
    )
}
# What each contract may import of serving.
CONTRACT_ARROWS = {
    "cores": set(),
    "csv_text": set(),
    "durable": {"whole_file"},
    "errors": set(),
    "folders": set(),
    "jpeg_scans": set(),
    "layout": {"errors", "modelspec", "paths"},
    "modelspec": {"errors"},
    "paths": set(),
    "percent": set(),
    "photo_formats": {"errors"},
    "photo_parts": {"errors"},
    "preprocess": {"errors", "jpeg_scans", "modelspec", "photo_formats", "photo_parts"},
    "repository": {
        *{"durable", "errors", "layout", "modelspec", "paths", "triton_config", "whole_file"},
    },
    "triton_config": {"modelspec"},
    "visible": set(),
    "whole_file": set(),
}
# The core knows neither gRPC nor its messages; batching knows no ONNX Runtime either.
CORE = {
    "admission",
    "answers",
    "batching",
    "bound_runs",
    "catalogue",
    "classification",
    "computing_threads",
    "decoding",
    "device",
    "engine",
    "golden",
    "gpu_settings",
    "inference_thread",
    "loaded_version",
    "loading",
    "observed_run",
    "onnxfile",
    "precision",
    "providers",
    "runtime",
    "session",
    "setting",
    "shadowing",
    "splits",
    "turns",
    "version_policy",
    "wire_format",
    "wishes",
    *CONTRACTS,
}
SERVING_NEEDS = {
    *{"PIL", "google", "grpc", "grpc_health", "grpc_reflection", "numpy", "onnxruntime", "rich"},
    *{"prometheus_client", "uvloop"},
    *{"serving", "protos"},
}
EXTRAS = {
    "serving.bucket": {"aiobotocore", "botocore", "fsspec", "gcsfs"},
    "serving.conditional_write": {"azure"},
    "serving.parquet": {"pyarrow"},
    "serving.photo_formats": {"pi_heif"},
    "serving.gpu_memory": {"pynvml"},
    "serving.tracing": {"opentelemetry"},
}  # of their extras


def modules(package: str) -> dict[str, Path]:
    """Dotted name -> file."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in (ROOT / package).rglob("*.py")
    }


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it, by its full dotted name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def of_serving(path: Path) -> set[str]:
    """The modules of serving that a file imports, by their short names."""
    names = {name.split(".")[1] for name in imports(path) if name.startswith("serving.")}
    return {name for name in names if (ROOT / "serving" / f"{name}.py").exists()}


@pytest.mark.parametrize("name", sorted(modules("serving")))
def test_serving_imports_only_what_the_serving_environment_has(name: str) -> None:
    allowed = sys.stdlib_module_names | SERVING_NEEDS | EXTRAS.get(name, set())
    assert tops(modules("serving")[name]) <= allowed


def test_serving_never_loads_torch() -> None:
    names = [name for name in modules("serving") if not name.endswith("__init__")]
    code = (
        f"import sys, importlib; [importlib.import_module(n) for n in {names!r}]; "
        "print(sorted({'torch', 'torchvision', 'onnx', 'trainer', 'scipy'} & sys.modules.keys()))"
    )
    done = run_python("-c", code)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_serving_has_an_empty_init() -> None:
    assert (ROOT / "serving/__init__.py").read_text() == ""


@pytest.mark.parametrize("name", sorted(CONTRACT_ARROWS))
def test_contracts_stand_on_little(name: str) -> None:
    path = ROOT / "serving" / f"{name}.py"
    assert of_serving(path) <= CONTRACT_ARROWS[name]
    needs = {"preprocess": {"numpy", "PIL"}, "photo_formats": {"PIL", "pi_heif"}}.get(name, set())
    assert tops(path) <= sys.stdlib_module_names | {"serving"} | needs


@pytest.mark.parametrize("name", sorted(CORE))
def test_the_core_knows_no_grpc(name: str) -> None:
    path = ROOT / "serving" / f"{name}.py"
    assert not tops(path) & {"grpc", "protos", "google", "grpc_health", "grpc_reflection"}
    assert of_serving(path) <= CORE


def test_serving_imports_onnx_runtime_where_its_telemetry_is_off() -> None:
    for name, path in modules("serving").items():
        assert "onnxruntime" not in imports(path) or name == "serving.runtime"


@pytest.mark.parametrize("module", ["serving.engine", "trainer.onnx_runner", "trainer.quantize"])
def test_onnx_runtime_keeps_no_record_of_this_machine(module: str, tmp_path: Path) -> None:
    """What it would send lies below the home folder, from its import on."""
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    environment.pop("XDG_CACHE_HOME", None)
    asked = f"import {module}, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    said = subprocess.run(
        [sys.executable, "-c", asked], env=environment, cwd=ROOT, capture_output=True, check=True
    )
    assert said.stdout == b"1\n"
    assert [path for path in tmp_path.rglob("*") if "icrosoft" in str(path)] == []


def test_the_batcher_knows_no_onnx_runtime() -> None:
    for name in ("batching", "inference_thread"):
        path = ROOT / "serving" / f"{name}.py"
        assert "onnxruntime" not in tops(path) and "engine" not in of_serving(path)


@pytest.mark.parametrize("name", sorted(modules("trainer")))
def test_trainer_imports_only_the_contracts_of_serving(name: str) -> None:
    """And what opens a repository or shards wherever they are, where it is given their place; and
    what commands start with."""
    also = {
        "trainer.compare": {"storage"},
        "trainer.listing": {"blob_cache"},
        "trainer.preparing": {"storage"},
        "trainer.train": {"launch"},
        "trainer.flags": {"commandline"},
        "trainer.analysis.analyze": {"access", "commandline", "launch", "storage"},
        "trainer.analysis.carry_out": {"access"},
        "trainer.analysis.over_grpc": {"client"},
        "trainer.shard_places": {"bucket"},
        "trainer.shard_cache": {"blob_cache"},
        "trainer.make_shards": {"bucket", "commandline", "launch"},
    }.get(name, set())
    assert of_serving(modules("trainer")[name]) <= CONTRACTS | also


@pytest.mark.parametrize("name", sorted(modules("benchmarks")))
def test_what_benchmarks_import_is_there(name: str) -> None:
    """They run too seldom to be left behind; modules of other packages are not looked at."""
    for module in imports(modules("benchmarks")[name]):
        package, _, last = module.rpartition(".")
        if module.partition(".")[0] in ("serving", "trainer", "protos") and package:
            if not hasattr(importlib.import_module(package), last):
                importlib.import_module(module)


def test_there_are_no_circles() -> None:
    """Within serving and within trainer, imports run one way."""
    files = modules("serving") | modules("trainer")
    graph = {name: imports(path) & files.keys() - {name} for name, path in files.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way, name))
        if name not in done:
            for other in graph[name]:
                visit(other, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())
