"""`train --compare`: four ways, one table."""

import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serving.repository import Repository
from tests.object_store import BUCKET, running_store
from tests.tiny import build_version
from tests.trainer.conftest import MakePhotos
from tests.trainer.processes import together
from tests.warm import run_warm
from trainer.compare import configurations
from trainer.data import PhotoData, load_data
from trainer.defaults import with_defaults
from trainer.finished_ways import FinishedWays
from trainer.tiny import Tiny
from trainer.train import main


def comparing(photos: Path, tmp_path: Path) -> list[str]:
    """The arguments of a comparison of ways for the model `shapes` in tmp_path / "models"."""
    torch.manual_seed(0)
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pth")
    arguments = [
        *("--data", photos, "--name", "shapes", "--out", tmp_path / "models", "--backbone", "tiny"),
        *("--weights", tmp_path / "tiny.pth", "--size", 32, "--epochs", 1, "--compare", "--json"),
    ]
    return [str(argument) for argument in arguments]


@pytest.mark.slow
def test_four_ways_are_four_versions_in_one_table(
    photos: MakePhotos,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    out, opened = tmp_path / "models", []

    def opening(*what: Any) -> PhotoData:
        opened.append(what)
        return load_data(*what)

    monkeypatch.setattr("trainer.preparing.load_data", opening)
    compared = [*comparing(photos(per_class=12), tmp_path), "--balance", "weights"]
    assert main(compared) == 0
    assert len(opened) == 1
    captured = capsys.readouterr()
    rows = json.loads(captured.out)
    assert [row["way"] for row in rows] == ["frozen", "fine-tuned", "full", "scratch"]
    assert json.loads((out / "shapes-comparison.json").read_text()) == rows
    assert (out / "shapes-comparison.png").read_bytes().startswith(b"\x89PNG")
    repository = Repository(out)
    for row in rows:
        name, number = row["version"].split("/")
        metrics = repository.manifest(name, int(number)).variants["fp32"].metrics
        assert row["accuracy"] == metrics.accuracy and row["seconds"] > 0
        assert row["mean_recall"] == metrics.mean_recall
        assert f"mean recall {metrics.mean_recall:.4f}" in captured.err
    assert rows[0]["trained"] == "linear probe" and "scratch" in rows[3]["trained"]
    assert "Ways of transfer learning" in captured.err


@pytest.mark.slow
def test_processes_that_a_scheduler_starts_compare_too(photos: MakePhotos, tmp_path: Path):
    """The others wait for what the first publishes alone, and say nothing."""
    torch.manual_seed(0)
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pth")
    train = [
        *("-m", "trainer.train"),
        *("--data", photos(per_class=12), "--name", "shapes", "--out", tmp_path / "models"),
        *("--backbone", "tiny", "--weights", tmp_path / "tiny.pth", "--size", 32, "--epochs", 1),
        *("--batch-size", 8, "--compare", "--json"),
    ]
    both = together(train, train)
    (first, said), (other, _) = (one.communicate(timeout=300) for one in both)
    assert [one.returncode for one in both] == [0, 0], said
    assert len(json.loads(first)) == 4 and other == ""


STOPPED = """
import os, signal, sys
from trainer.compare import Console
from trainer.train import main

def said(self, text=""):
    say(self, text)
    if text == "--- full":
        os.kill(os.getpid(), signal.SIGKILL)

say, Console.line = Console.line, said
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_killed_after_some_ways_the_same_command_publishes_the_others_alone(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "models"
    arguments = comparing(photos(per_class=8), tmp_path)
    stopped = run_warm("-c", STOPPED, *arguments)
    assert stopped.returncode == -signal.SIGKILL
    repository = Repository(out)
    assert repository.names() == ["shapes-fine-tuned", "shapes-frozen"]
    shutil.rmtree(out / "shapes-fine-tuned")  # one that is gone is made again

    assert main(arguments) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)
    ways = ["frozen", "fine-tuned", "full", "scratch"]
    assert [row["version"] for row in rows] == [f"shapes-{way}/1" for way in ways]
    assert captured.err.count("published before it was stopped: shapes-frozen/1") == 1
    assert captured.err.count("before it was stopped") == 1
    metrics = repository.manifest("shapes-frozen", 1).variants["fp32"].metrics
    assert rows[0]["accuracy"] == metrics.accuracy and rows[0]["trained"] == "linear probe"
    assert list((out / ".checkpoints").iterdir()) == [], "it has ended: another begins anew"


def test_other_settings_are_another_comparison(tmp_path: Path):
    build_version(tmp_path, "x-frozen")
    row, path = {"version": "x-frozen/1"}, tmp_path / "ways.json"
    repository = Repository(tmp_path)
    FinishedWays(path, repository, {"frozen": {"seed": 0}}).note("frozen", row)
    for seed, expected in ((1, {}), (0, {"frozen": row})):
        assert FinishedWays(path, repository, {"frozen": {"seed": seed}}).load() == expected


def test_without_weights_there_is_nothing_to_compare(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["--data", photos(), "--out", tmp_path, "--weights", "none", "--compare"]
    assert main([str(argument) for argument in arguments]) == 2
    assert "error: --compare needs pre-trained weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--wise-ft",), "--compare can't be given --wise-ft, which not all"),
        (("--drop-label-errors",), "--compare can't be given --drop-label-errors, which not all"),
        (("--teacher", "pets"), "--compare can't be given --teacher, which not all"),
        (("--adversarial", "pgd-3@4/255"), "--compare can't be given --adversarial, which not all"),
        (("--head-solver", "none"), "--compare can't be given --head-solver none: one way is a"),
        (("--epochs", 0), "--compare needs --epochs of at least 1"),
        (("--accumulate", 64), "accumulate must be 1 to 16"),
    ],
)
def test_what_one_way_would_refuse_is_refused_before_the_first(
    photos: MakePhotos,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[object, ...],
    message: str,
):
    out = tmp_path / "models"
    arguments = ["--data", photos(), "--out", out, "--backbone", "tiny", "--compare", *flags]
    assert main([str(argument) for argument in arguments]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}") and not out.exists()


def test_what_a_later_way_can_not_do_with_these_photos_is_refused_before_the_first(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Only the frozen way has no cutmix: the others have, of which one is given vectors."""
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pth")
    out = tmp_path / "models"
    arguments = [
        *("--data", photos(), "--name", "shapes", "--out", out, "--backbone", "tiny", "--size", 32),
        *("--weights", tmp_path / "tiny.pth", "--compare", "--cutmix", 1, "--thaw", 0),
    ]
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert "only vectors; give a larger --thaw" in said.err and "Published" not in said.out
    assert Repository(out).names() == []


def test_the_four_ways_have_one_backbone(photos: MakePhotos, monkeypatch: pytest.MonkeyPatch):
    """On a GPU too, of which only its memory is asked."""
    properties = SimpleNamespace(total_memory=24 << 30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    configs = configurations({"data": str(photos()), "name": "x"}, with_defaults)
    assert {config.backbone for config in configs.values()} == {"resnet50"}
    assert {config.batch_size for config in configs.values()} == {128}
    assert [config.epochs for config in configs.values()] == [0, 6, 6, 15]
    assert [config.weights for config in configs.values()] == ["imagenet"] * 3 + ["none"]
    assert [config.thaw for config in configs.values()] == [0.25, 0.25, 1.0, 1.0]
    configs = configurations({"data": str(photos()), "name": "x", "thaw": 0.6}, with_defaults)
    assert [config.thaw for config in configs.values()] == [0.25, 0.6, 1.0, 1.0]


@pytest.mark.slow
def test_the_table_of_a_bucket_lies_where_it_is_said(
    photos: MakePhotos,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pth")
    place = f"s3://{BUCKET}/compared"
    with running_store(tmp_path) as store:
        store.put_into(monkeypatch)
        monkeypatch.setenv("PAWPRINT_CACHE", str(tmp_path / "cache"))
        arguments = [
            *("--data", photos(per_class=12), "--name", "shapes", "--out", place, "--size", 32),
            *("--backbone", "tiny", "--weights", tmp_path / "tiny.pth", "--epochs", 1, "--compare"),
        ]
        assert main([str(argument) for argument in arguments]) == 0
    said = capsys.readouterr().out
    (written,) = (tmp_path / "cache").rglob("shapes-comparison.json")
    assert len(json.loads(written.read_text())) == 4 and str(written) in said
