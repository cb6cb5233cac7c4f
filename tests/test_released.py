"""What people build on, besides the protos: it only grows until the next major version.

released.json holds the names of the last release. With each one: python -m tests.test_released
"""

import asyncio
import json
import tempfile
from dataclasses import fields
from pathlib import Path

from serving.settings import ServerSettings
from tests.certificates import Authority
from tests.deploy.test_monitoring import offered
from tests.tiny import build_version
from trainer.config import TrainConfig

RELEASED = Path(__file__).with_name("released.json")


def names_now(folder: Path) -> dict[str, list[str]]:
    """Settings, which are flags, variables and keys of files too; and metrics with their labels."""
    build_version(folder / "models", "pets")
    metrics = asyncio.run(offered(folder / "models", Authority(folder / "authority")))
    return {
        "settings of serve": sorted(field.name for field in fields(ServerSettings)),
        "settings of train": sorted(field.name for field in fields(TrainConfig)),
        "metrics": sorted(
            f"{metric} {label}".rstrip()
            for metric, labels in metrics.items()
            if metric.startswith("pawprint_") and not metric.endswith("_created")
            for label in ("", *labels)
        ),
    }


def test_no_name_of_the_last_release_is_gone(tmp_path: Path) -> None:
    now = names_now(tmp_path)
    for kind, released in json.loads(RELEASED.read_text()).items():
        gone = sorted({*released} - {*now[kind]})
        assert not gone, f"{kind}: {gone} would break those who use them"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        RELEASED.write_text(json.dumps(names_now(Path(made)), indent=1) + "\n")
