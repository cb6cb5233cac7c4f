"""Generates the Python code of every .proto below protos/, beside it; `make protos` runs it."""

import sys
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent


def generate(out: Path) -> None:
    """Write *_pb2.py, *_pb2.pyi and *_pb2_grpc.py for each .proto, with paths as below the root."""
    for proto in sorted((ROOT / "protos").rglob("*.proto")):
        status = protoc.main(
            [
                "protoc",
                f"-I{ROOT}",
                f"--python_out={out}",
                f"--pyi_out={out}",
                f"--grpc_python_out={out}",
                str(proto),
            ]
        )
        if status != 0:
            sys.exit(f"protoc failed on {proto}")


if __name__ == "__main__":
    generate(ROOT)
