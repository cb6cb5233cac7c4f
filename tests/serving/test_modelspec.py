import json
from pathlib import Path
from typing import Any

import pytest

from serving.errors import BrokenVersion
from serving.modelspec import Manifest, Preprocessing, RobustnessSummary, Trust, read_strictly
from serving.repository import Repository
from tests.tiny import build_version


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    build_version(tmp_path, "pets")
    return Repository(tmp_path).manifest("pets", 1)


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every field of every object in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, inner in items:
        if isinstance(value, dict):
            found.append((*at, key))
        if isinstance(inner, dict | list):
            found += paths(inner, (*at, key))
    return found


def test_what_is_written_is_read_back(manifest: Manifest) -> None:
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_every_missing_field_is_an_error(manifest: Manifest) -> None:
    free = {"per_class", "configuration", "software", "files", "variants"}
    checked = 0
    for path in paths(json.loads(manifest.to_json())):
        if "counts" in path[:-1] or (len(path) > 1 and path[-2] in free):
            continue  # the keys of a mapping are the user's own
        value = json.loads(manifest.to_json())
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        del holder[path[-1]]
        with pytest.raises(BrokenVersion, match=rf"missing \['{path[-1]}'\]"):
            Manifest.from_json(json.dumps(value))
        checked += 1
    assert checked > 30


@pytest.mark.parametrize(
    "change, place",
    [
        ({"extra": 1}, r"unknown \['extra'\]"),
        ({"version": "1"}, "manifest.version: expected int"),
        ({"version": True}, "manifest.version: expected int"),
        ({"labels": "cat"}, "manifest.labels: expected a list"),
        ({"labels": ["cat", 3]}, r"manifest.labels\[1\]: expected str"),
        ({"labels": ["cat", "cat"]}, "distinct"),
        ({"labels": ["cat"]}, "two or more"),
        ({"schema_version": 0}, "schema_version is 0"),
        ({"schema_version": "1"}, "manifest.schema_version: expected int"),
        ({"preprocessing": {"size": 5, "interpolation": "bilinear"}}, "preprocessing: size must"),
        ({"preprocessing": {"size": 32, "interpolation": "box"}}, "interpolation must be one of"),
        ({"variants": {}}, "must hold fp32"),
        ({"files": {}}, "not listed in files"),
        ({"configuration": []}, "manifest.configuration: expected an object"),
        ({"temperature": None}, "manifest.temperature: expected float"),
        ({"temperature": 10**400}, "manifest.temperature: expected a number of at most 64 bits"),
        ({"version": 2**63}, "manifest.version: expected a number of at most 64 bits"),
        ({"version": -(2**63) - 1}, "manifest.version: expected a number of at most 64 bits"),
        ({"labels": ["cat", "\ud800"]}, r"manifest.labels\[1\]: expected text"),
        ({"software": {"\ud800": "1"}}, "manifest.software: expected text"),
        ({"files": {"a": {"sha256": "../../../a", "size": 1}}}, "files.a: sha256 must be 64"),
        ({"files": {"a": {"sha256": "0" * 64, "size": -1}}}, "files.a: size must be 0 or more"),
    ],
)
def test_a_malformed_field_is_named(manifest: Manifest, change: dict, place: str) -> None:
    value = json.loads(manifest.to_json()) | change
    with pytest.raises(BrokenVersion, match=place):
        Manifest.from_json(json.dumps(value))


def test_a_net_takes_pictures_of_16_to_4096_pixels() -> None:
    for size in (16, 4096):
        assert Preprocessing(size=size, interpolation="bilinear").size == size
    for size in (15, 4097):
        with pytest.raises(ValueError, match=f"size must be 16 to 4096 pixels, got {size}"):
            Preprocessing(size=size, interpolation="bilinear")


def test_a_later_schema_is_told_before_the_fields_that_it_has(manifest: Manifest) -> None:
    value = json.loads(manifest.to_json()) | {"schema_version": 2, "extra": 1}
    with pytest.raises(BrokenVersion, match="schema_version 2, and this Pawprint reads 1: a newer"):
        Manifest.from_json(json.dumps(value))


def test_more_photos_than_a_message_holds_are_refused(manifest: Manifest) -> None:
    value = json.loads(manifest.to_json())
    value["variants"]["fp32"]["metrics"]["photos"] = 2**31
    with pytest.raises(BrokenVersion, match=r"fp32.metrics: photos must be from 0 to 2147483647"):
        Manifest.from_json(json.dumps(value))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_text_that_is_no_manifest(text: bytes) -> None:
    with pytest.raises(BrokenVersion, match=r"manifest(.json)? is malformed"):
        Manifest.from_json(text)


def test_an_integer_serves_as_a_float_and_not_the_other_way() -> None:
    assert read_strictly(tuple[float, ...], [1, 2.5], "here") == (1.0, 2.5)
    with pytest.raises(ValueError, match="here.size: expected int"):
        read_strictly(Preprocessing, {"size": 32.0, "interpolation": "bilinear"}, "here")


def test_a_pair_has_two_items() -> None:
    assert read_strictly(tuple[int, int], [1, 2], "here") == (1, 2)
    with pytest.raises(ValueError, match="here: expected 2 items"):
        read_strictly(tuple[int, int], [1, 2, 3], "here")


def test_a_robustness_summary_is_read() -> None:
    value = {
        "photos": 64,
        "clean_accuracy": 1,
        "robust_accuracy": [{"norm": "linf", "epsilon": 0.00392, "accuracy": 0.031}],
        "corruption_accuracy": 0.7,
        "created": "2026-01-01T00:00:00+00:00",
    }
    summary = read_strictly(RobustnessSummary, value, "summary.json")
    assert summary.robust_accuracy[0].norm == "linf" and summary.clean_accuracy == 1.0


def test_a_count_that_no_message_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="photos must be from 0"):
        Trust(photos=2**31, confidence=0.95, thresholds=())
