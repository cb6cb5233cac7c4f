"""Settings that can't act: those that are named truly change nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from serving.repository import Repository
from tests.trainer.conftest import MakePhotos
from trainer.compare import configurations
from trainer.config import TrainConfig
from trainer.console import Console
from trainer.defaults import with_defaults
from trainer.idle import _IDLE, _reasons, idle
from trainer.pipeline import train
from trainer.tiny import Tiny
from trainer.train import main

# Another value than the default for each setting that the table knows.
OTHER = {
    **{"learning_rate": 0.05, "weight_decay": 0.3, "warmup": 0.5, "thaw": 1.0, "views": 1},
    **{"schedule": "constant", "layer_decay": 0.5, "gradual": True, "augment": "rand"},
    **{"erasing": 0.9, "mixup": 0.5, "cutmix": 1.0, "label_smoothing": 0.3, "dropout": 0.7},
    **{"clip": 0.01, "ema": 0.9, "accumulate": 2, "patience": 1, "wise_ft": True, "amp": "fp16"},
    **{"compile": True, "optimizer": "sgd", "batch_size": 8, "head_solver": "sgd"},
    **{"head_epochs": 2, "head_rate": 1.0, "head_init": "normal", "teacher_share": 0.1},
    **{"teacher_temperature": 9.0, "max_accuracy_loss": 0.5},
}
# Between them, each line of the table is why something can't act.
RUNS = (
    {"epochs": 0},
    {"epochs": 0, "head_solver": "sgd", "head_epochs": 5},
    {"epochs": 1, "weights": "none", "adversarial": "fast@4/255"},
    {"epochs": 1, "patience": 2},
    {"epochs": 2, "head_solver": "none", "thaw": 1.0},
    {"epochs": 2, "teacher": "big", "teacher_share": 0.0, "head_solver": "none"},
    {"epochs": 2, "teacher": "big", "teacher_share": 1.0, "head_solver": "none"},
    {"epochs": 4, "thaw": 0.0, "head_solver": "none", "learning_rate": 1.0},
)


@pytest.mark.parametrize(
    "run",
    # With a teacher two nets are trained.
    [pytest.param(run, marks=[pytest.mark.slow] if "teacher" in run else []) for run in RUNS],
    ids=str,
)
def test_what_is_named_changes_no_bit_of_the_version(
    photos: MakePhotos, tmp_path: Path, run: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pth")
    run = {"weights": str(tmp_path / "tiny.pth"), "checkpoints": "none", **run}
    places = {name: tmp_path / name for name in ("cache", "checkpoints")}
    other = OTHER | {name: str(place) for name, place in places.items()}
    run |= {"data": str(photos(per_class=12)), "name": "shapes", "backbone": "tiny", "size": 32}
    named = _reasons(with_defaults(run))
    digests = []
    for given in (run, {**run, **{name: other[name] for name in named}}):
        config = with_defaults({**given, "out": str(tmp_path / f"models{len(digests)}")})
        console = Console(to_stderr=True, silent=True)
        if config.teacher is not None:
            alone = {"name": "big", "teacher": None, "head_solver": "lbfgs", "cache": None}
            train(replace(config, **alone, epochs=0), console)
        published = train(config, console)
        assert published is not None
        files = published.manifest.files
        digests.append([files[file].sha256 for file in ("weights.safetensors", "model.onnx")])
    assert digests[0] == digests[1] and not any(place.exists() for place in places.values())


def test_each_line_of_the_table_is_tried() -> None:
    whys = {
        why
        for run in RUNS
        for why in _reasons(TrainConfig(**{"data": "d", "name": "n", **run})).values()
    }
    assert whys == {why for _, _, why in _IDLE}
    assert {"cache", "checkpoints", *OTHER} == {name for names, _, _ in _IDLE for name in names}


def test_they_are_named_once_with_why_where_they_were_given(
    photos: MakePhotos,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pth")
    file = tmp_path / "usual.toml"
    file.write_text("mixup = 0.2\nhead_rate = 1\nema = 0.0\n")
    monkeypatch.setenv("PAWPRINT_TRAIN_PATIENCE", "3")
    arguments = [
        *("--data", photos(per_class=12), "--name", "shapes", "--out", tmp_path / "models"),
        *("--backbone", "tiny", "--weights", tmp_path / "tiny.pth", "--size", "32"),
        *("--config", file, "--epochs", "0"),
    ]
    assert main([str(argument) for argument in arguments]) == 0
    assert (
        "These settings have no part in this run: --mixup, --patience (--epochs 0 trains the head "
        "alone); --head-rate (of --head-solver sgd alone)\n"
    ) in capsys.readouterr().out
    assert Repository(tmp_path / "models").names() == ["shapes"]


def test_a_share_of_what_the_photos_bring_is_named(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pth")
    for seed, split in enumerate(("train", "test")):
        photos(f"all/{split}", seed=seed)
    arguments = [
        *("--data", tmp_path / "all", "--name", "shapes", "--out", tmp_path / "models"),
        *("--backbone", "tiny", "--weights", tmp_path / "tiny.pth", "--size", "32"),
        *("--epochs", "0", "--val-fraction", "0.2", "--test-fraction", "0.3"),
    ]
    assert main([str(argument) for argument in arguments]) == 0
    said = capsys.readouterr().out
    assert "--test-fraction has no part in this run: the photos bring their own test\n" in said
    assert "--val-fraction has no part" not in said


@pytest.mark.slow
def test_how_many_photos_stay_in_their_splits_is_said(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pth")
    data = photos(per_class=20)

    def trained(*more: str | Path, data: Path = data, status: int = 0) -> str:
        arguments = [
            *("--data", data, "--name", "shapes", "--out", tmp_path / "models", "--size", "32"),
            *("--backbone", "tiny", "--weights", tmp_path / "tiny.pth", "--epochs", "0", *more),
        ]
        assert main([str(argument) for argument in arguments]) == status
        captured = capsys.readouterr()
        return captured.out + captured.err

    assert "were split for" not in trained()
    said = trained("--split-like", "shapes", "--seed", "1")
    assert "40 of the photos were split for shapes/1: 40 are in the same split\n" in said
    repository = Repository(tmp_path / "models")
    assert repository.manifest("shapes", 2).configuration["split_like"] == "shapes/1"
    assert "no model 'squares'" in trained("--split-like", "squares", status=2)
    for seed, split in enumerate(("train", "val", "test")):
        photos(f"all/{split}", seed=seed)
    said = trained("--split-like", "shapes/1", data=tmp_path / "all")
    assert "--split-like has no part in this run: the photos bring their own val and test" in said


def test_what_acts_is_not_named() -> None:
    acts = {
        **{"mixup": 0.2, "ema": 0.9, "optimizer": "sgd", "head_epochs": 9, "head_init": "normal"},
        **{"int8": True, "max_accuracy_loss": 0.1, "teacher": "big", "teacher_share": 0.5},
    }
    config = TrainConfig(data="d", name="n", head_solver="sgd", **{**acts, "mixup": 0.0})
    assert idle({**acts, "head_solver": "sgd"}, [config]) is None


def test_a_comparison_names_what_acts_in_none_of_its_ways(photos: MakePhotos) -> None:
    settings = {"data": str(photos()), "name": "n", "backbone": "tiny", "weights": "tiny.pth"}
    settings |= {"mixup": 0.2, "head_init": "normal", "teacher_share": 0.5, "epochs": 1}
    said = idle(settings, list(configurations(settings, with_defaults).values()))
    assert said == "These settings have no part in this run: --teacher-share (without --teacher)"
