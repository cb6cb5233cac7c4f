"""Where settings come from, and what they may be."""

import os
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from serving.cores import usable_cores
from serving.errors import InvalidRequest
from trainer.auto import choose, choose_batch_size, choose_workers
from trainer.config import TrainConfig
from trainer.defaults import with_defaults
from trainer.flags import GROUPS
from trainer.given import read_settings


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """photos/ and d/ in the current folder, each of two classes."""
    for name in ("photos/cat", "photos/dog", "d/cat", "d/dog"):
        folder = tmp_path / "here" / name
        folder.mkdir(parents=True)
        (folder / "1.jpg").touch()
    monkeypatch.chdir(tmp_path / "here")


def read_config(flags: dict, environment: dict, file: Path | None) -> TrainConfig:
    return with_defaults(read_settings(flags, environment, file))


REQUIRED = {"data": "photos", "name": "pets"}


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path):
    file = tmp_path / "train.toml"
    file.write_text("epochs = 1\nbatch_size = 8\nviews = 9\nlearning_rate = 1\nstrict = true\n")
    environment = {"PAWPRINT_TRAIN_EPOCHS": "2", "PAWPRINT_TRAIN_BATCH_SIZE": "16", "HOME": "/"}
    config = read_config({**REQUIRED, "epochs": 3}, environment, file)
    assert (config.epochs, config.batch_size, config.views) == (3, 16, 9)
    assert config.learning_rate == 1.0 and config.strict is True
    assert config.seed == TrainConfig.seed


def test_settings_that_may_stand_open_take_what_they_are_given():
    assert read_config(REQUIRED, {}, None).dropout is None
    assert read_config(REQUIRED, {"PAWPRINT_TRAIN_DROPOUT": "0"}, None).dropout == 0.0
    with pytest.raises(InvalidRequest, match="must be float, got 'much'"):
        read_config(REQUIRED, {"PAWPRINT_TRAIN_DROPOUT": "much"}, None)


def test_required_settings_may_come_from_the_environment():
    environment = {"PAWPRINT_TRAIN_DATA": "d", "PAWPRINT_TRAIN_NAME": "n"}
    assert read_config({}, environment, None).data == "d"
    for nothing in ({}, {"PAWPRINT_TRAIN_DATA": ""}):
        with pytest.raises(InvalidRequest, match="--data is required"):
            read_config({"name": "n"}, nothing, None)


def test_the_folder_of_the_user_is_known_where_no_shell_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    file = tmp_path / "train.toml"
    file.write_text('data = "~/photos"\ncache = "a~b"\n', encoding="utf-8-sig")  # as on Windows
    config = read_config({"out": "~/models"}, {"PAWPRINT_TRAIN_LOGS": "~"}, file)
    here = str(tmp_path / "here")
    assert (config.data, config.out) == (f"{here}/photos", f"{here}/models")
    assert (config.logs, config.cache, config.name) == (here, "a~b", "photos")


def test_defaults_follow_backbone_and_weights():
    assert read_config({**REQUIRED, "backbone": "inception_v3"}, {}, None).size == 299
    scratch = read_config({**REQUIRED, "backbone": "tiny", "weights": "none"}, {}, None)
    assert scratch.size == 64 and scratch.thaw == 1.0
    assert scratch.learning_rate > TrainConfig.learning_rate
    sturdy = read_config({**REQUIRED, "adversarial": "fast@2/255"}, {}, None)
    assert sturdy.thaw == 1.0 and sturdy.epochs > TrainConfig.epochs
    kept = read_config({**REQUIRED, "weights": "none", "learning_rate": 0.5}, {}, None)
    assert kept.learning_rate == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "unknown setting 'epoch'; known: data, name"),
        ("epochs = '3'", "epochs must be int, got '3'"),
        ("strict = 1", "strict must be bool, got 1"),
        ("epochs = ", "can't be read as TOML"),
        ('data = "a\\u0000b"', "data holds a NUL character"),
        (f"learning_rate = {10**400}", "learning_rate must be 1e-08 to 10, got inf"),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, text: str, message: str):
    file = tmp_path / "train.toml"
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=message):
        read_config(REQUIRED, {}, file)
    with pytest.raises(InvalidRequest, match="absent.toml can't be read"):
        read_config(REQUIRED, {}, tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("EPOCH", "3", "unknown setting in the environment: PAWPRINT_TRAIN_EPOCH"),
        ("EPOCHS", "few", "PAWPRINT_TRAIN_EPOCHS must be int, got 'few'"),
        ("STRICT", "maybe", "PAWPRINT_TRAIN_STRICT must be bool"),
    ],
)
def test_an_environment_that_is_wrong(variable: str, text: str, message: str):
    with pytest.raises(InvalidRequest, match=message):
        read_config(REQUIRED, {f"PAWPRINT_TRAIN_{variable}": text}, None)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("name", "a/b", "a name has 1 to 64"),
        ("interpolation", "nearest", "interpolation must be one of bilinear, bicubic, lanczos"),
        ("size", 8, "size must be 32 to 1024, got 8"),
        ("epochs", -1, "epochs must be 0 to 10000, got -1"),
        ("epochs", 10**400, "epochs must be 0 to 10000, got 10000"),  # beyond all floats
        ("learning_rate", float("nan"), "learning_rate must be 1e-08 to 10, got nan"),
        ("learning_rate", float("inf"), "learning_rate must be 1e-08 to 10, got inf"),
        ("val_fraction", 0.9, "val_fraction must be 0.01 to 0.5, got 0.9"),
        ("batch_size", 1, "batch_size must be 2 to 4096, got 1"),
        ("data", "caf\udce9", "data 'caf.udce9' is not UTF-8"),  # it would end at the manifest
        *[(name, "", f"{name} must not be empty") for name in ("out", "logs", "cache", "data")],
    ],
)
def test_values_out_of_range_are_named_with_what_was_expected(
    setting: str, value: object, message: str
):
    with pytest.raises(InvalidRequest, match=message):
        TrainConfig(**{**REQUIRED, setting: value})


def test_shares_that_leave_nothing_to_train_on_are_refused():
    with pytest.raises(InvalidRequest, match="0.5 and test_fraction 0.5 leave nothing to train on"):
        TrainConfig(**REQUIRED, val_fraction=0.5, test_fraction=0.5)
    TrainConfig(**REQUIRED, val_fraction=0.5, test_fraction=0.4)


def test_the_model_is_named_after_its_folder(tmp_path: Path):
    assert read_config({"data": "photos"}, {}, None).name == "photos"
    odd = tmp_path / "My cats & dogs!"
    (tmp_path / "here" / "photos").rename(odd)
    assert read_config({"data": str(odd)}, {}, None).name == "My-cats-dogs"


def test_backbone_and_epochs_follow_photos_and_device():
    assert choose(500, gpu=False) == {"backbone": "mobilenet_v2", "epochs": 6}
    epochs = [choose(photos, gpu=True)["epochs"] for photos in (500, 10_000, 10**6)]
    assert epochs == sorted(set(epochs), reverse=True)
    assert choose(500, gpu=True)["backbone"] == "resnet50"
    assert choose(10_000, gpu=True)["backbone"] == "convnext_tiny"
    given = read_config({"data": "photos", "weights": "file.pth", "batch_size": 5}, {}, None)
    assert (given.backbone, given.batch_size) == (TrainConfig.backbone, 5)


def test_a_batch_is_what_memory_holds_of_so_many_pixels():
    assert choose_batch_size(224, None) == 32
    assert 8 <= choose_batch_size(224, 4 << 30) < choose_batch_size(224, 80 << 30) <= 256
    half, whole = choose_batch_size(448, 24 << 30), choose_batch_size(224, 24 << 30)
    assert half * 4 == whole == choose_batch_size(64, 24 << 30)


@pytest.mark.parametrize("weights", ["imagenet", "none"])
def test_with_a_gpu_all_choices_are_its_own(monkeypatch: pytest.MonkeyPatch, weights: str):
    """Of a GPU only its memory is asked, so this needs none."""
    properties = SimpleNamespace(total_memory=24 << 30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    chosen = read_config({"data": "photos", "weights": weights}, {}, None)
    assert (chosen.backbone, chosen.batch_size) == ("resnet50", 128)
    assert chosen.epochs == (15 if weights == "none" else 6)
    large = read_config({"data": "photos", "weights": weights, "size": 448}, {}, None)
    assert large.batch_size == 32
    own = read_config({"data": "photos", "backbone": "efficientnet_v2_s"}, {}, None)
    assert (own.size, own.batch_size) == (384, 64)
    with pytest.raises(InvalidRequest, match="size must be 32 to 1024, got 0"):
        read_config({"data": "photos", "size": 0}, {}, None)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_workers_are_the_cores_of_this_process():
    allowed = os.sched_getaffinity(0)
    assert choose_workers({}) == min(64, usable_cores())
    assert choose_workers({"LOCAL_WORLD_SIZE": str(usable_cores())}) == 1
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert read_config(REQUIRED, {}, None).workers == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert read_config({**REQUIRED, "workers": 7}, {}, None).workers == 7


@pytest.mark.parametrize(
    ("backbone", "rate"), [("tiny", 3e-3), ("vgg11_bn", 3e-3), ("vgg11", 3e-4), ("swin_t", 3e-4)]
)
def test_from_scratch_a_net_without_batch_norms_learns_more_slowly(backbone: str, rate: float):
    scratch = {"data": "photos", "weights": "none", "backbone": backbone}
    assert read_config(scratch, {}, None).learning_rate == rate
    assert read_config(scratch | {"learning_rate": 0.5}, {}, None).learning_rate == 0.5
    assert read_config(scratch | {"weights": "imagenet"}, {}, None).learning_rate == 1e-4


def test_each_setting_is_told_once():
    told = [name for group in GROUPS.values() for name in group]
    assert sorted(told) == sorted(field.name for field in fields(TrainConfig))
