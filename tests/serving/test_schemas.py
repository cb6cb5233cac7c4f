"""Versions published long ago, as schemas/ has one of each schema_version: they stay readable.

What lies there is never changed. A new SCHEMA_VERSION gets a folder of its own, made once:
build_version(SCHEMAS / "2", "pets", size=16), with an analysis and the alias `stable`.
"""

import dataclasses
import json
from pathlib import Path

import pytest

from serving.async_client import AsyncClient
from serving.modelspec import SCHEMA_VERSION, Manifest
from serving.repository import Repository
from tests.conftest import running_server

SCHEMAS = Path(__file__).parent / "schemas"


@pytest.mark.parametrize("schema", range(1, SCHEMA_VERSION + 1))
async def test_a_version_of_each_schema_is_verified_and_answers_as_ever(schema: int) -> None:
    models = SCHEMAS / str(schema)
    assert Repository(models).verify("pets", 1) == []
    async with running_server(models) as running, AsyncClient(running.address) as client:
        (result,) = (await client.classify([SCHEMAS / "photo.png"], model="pets", top_k=2)).results
        described = await client.get_model("pets", "stable")
    # Of all time: a photo becomes the same pixels, and they mean the same.
    assert [label.name for label in result.labels] == ["dog", "cat"]
    assert result.labels[0].probability == pytest.approx(0.8944, abs=2e-3)
    assert described.labels == ("cat", "dog") and described.accuracy == pytest.approx(0.9)
    assert described.robustness is not None
    assert described.robustness.corruption_accuracy == pytest.approx(0.5)
    assert described.trust is None and described.threshold_for(0.5) is None


def test_what_is_written_changes_with_the_schema_version_alone() -> None:
    """Else servers of before would refuse what is published now, or read it amiss."""
    version = SCHEMAS / f"{SCHEMA_VERSION}/pets/1"
    there = (version / "manifest.json").read_text()
    written = Manifest.from_json(there).to_json()
    assert written == there, "manifest.json is another than before: raise SCHEMA_VERSION"
    there = json.loads((version / "analysis/summary.json").read_bytes())
    findings = Repository(SCHEMAS / str(SCHEMA_VERSION)).findings("pets", 1)
    assert findings is not None
    written = json.loads(json.dumps(dataclasses.asdict(findings.robustness)))
    assert written == there, "summary.json is another than before: raise SCHEMA_VERSION"
