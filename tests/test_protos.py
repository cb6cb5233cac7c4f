"""The generated code in the repository is what protos/generate.py makes of the .proto files."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def generated(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in (root / "protos").rglob("*_pb2*.py*")
        if path.suffix in (".py", ".pyi")
    }


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    code = "import sys, pathlib, protos.generate as g; g.generate(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True, timeout=60)
    fresh, here = generated(tmp_path), generated(ROOT)
    assert fresh.keys() == here.keys() and len(here) >= 3
    stale = [file for file in here if fresh[file] != here[file]]
    assert not stale, f"stale: {stale}; run `make protos`"
