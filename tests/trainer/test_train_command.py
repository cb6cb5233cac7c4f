"""The command `train`, whole: real photos in, a version out, and every way to be stopped."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import matplotlib
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from serving.errors import BrokenVersion
from serving.preprocess import preprocess
from serving.repository import Repository
from tests.commands import run_python, unread
from tests.conftest import ROOT
from tests.small_disk import small_disk
from tests.trainer.conftest import MakePhotos, write_photos
from tests.warm import run_warm
from trainer import fitting
from trainer.backbones import WEIGHTS, build, load_version, version_state
from trainer.cartoons import draw_cartoon
from trainer.config import TrainConfig
from trainer.console import unshown
from trainer.data import load_data
from trainer.make_shards import main as make_shards
from trainer.optimizers import OPTIMIZERS
from trainer.tiny import Tiny
from trainer.train import main
from trainer.tree import find_files

SCRATCH = ["--backbone", "tiny", "--weights", "none", "--size", "32"]


class Trained:
    """Discs and squares, learnt from scratch by the command, and all it said."""

    def __init__(self, folder: Path) -> None:
        self.photos = write_photos(folder / "photos", 60, ("discs", "squares"))
        whole = (self.photos / "discs" / "000.jpg").read_bytes()
        (self.photos / "discs" / "broken.jpg").write_bytes(whole[: len(whole) // 2])
        (self.photos / "loose.jpg").write_bytes(whole)
        self.repository = Repository(folder / "models")
        self.result = run(
            *("--data", self.photos, "--name", "shapes", "--out", self.repository.root),
            *(*SCRATCH, "--epochs", "10", "--batch-size", "16", "--json", "--int8", "--fp16"),
        )
        assert self.result.returncode == 0, self.result.stderr


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_warm("-m", "trainer.train", *arguments, timeout=300)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"))


def test_every_user_may_read_it(trained: Trained) -> None:
    version = trained.repository.root / "shapes/1"
    assert [p for p in version.rglob("*") if not p.stat().st_mode & 0o004] == []


def test_a_disk_that_is_full_at_the_weights_is_told_in_a_line(trained: Trained, tmp_path: Path):
    version = trained.repository.root / "shapes/1"
    fits, not_all = ((version / file).stat().st_size for file in ("model.onnx", WEIGHTS))
    room = fits + (version / "golden.npz").stat().st_size + not_all // 2
    with small_disk(tmp_path / "disk", room) as disk:
        done = run(
            *("--data", trained.photos, "--name", "shapes", "--out", disk / "models", *SCRATCH),
            *("--epochs", "1", "--checkpoints", "none", "--logs", tmp_path / "logs"),
        )
        assert Repository(disk / "models").names() == []
    assert done.returncode == 75
    assert done.stderr == f"error: {disk}/models/shapes: No space left on device\n"


def test_a_disk_that_is_full_at_a_checkpoint_that_was_asked_for_is_told_in_a_line(
    trained: Trained, tmp_path: Path
):
    weights = (trained.repository.root / "shapes/1" / WEIGHTS).stat().st_size
    with small_disk(tmp_path / "disk", weights // 2) as disk:
        done = run(
            *("--data", trained.photos, "--name", "shapes", "--out", tmp_path / "models", *SCRATCH),
            *("--epochs", "1", "--checkpoints", disk, "--logs", tmp_path / "logs"),
        )
        assert list(disk.iterdir()) == []
    assert done.returncode == 75
    assert done.stderr == (
        f"error: the checkpoint of epoch 1 can't be written to {disk} (No space left on device). "
        "Put that right and run the same command: it starts anew\n"
    )


def test_it_learns_and_publishes_a_whole_version(trained: Trained):
    assert trained.repository.verify("shapes", 1) == []
    manifest = trained.repository.manifest("shapes", 1)
    metrics = manifest.variants["fp32"].metrics
    assert metrics.accuracy >= 0.9 and metrics.photos == 18
    assert metrics.accuracy_low < metrics.accuracy <= metrics.accuracy_high + 1e-9
    assert manifest.labels == ("discs", "squares")
    assert manifest.configuration["epochs"] == 10 and manifest.configuration["size"] == 32
    assert manifest.configuration["dropout"] == 0.2  # the net's own, as it was not given
    assert manifest.variants["fp32"].parity.top1_agreement == 1.0
    assert {"plots/training.png", "plots/confusion.png", "plots/reliability.png"} <= set(
        manifest.files
    )
    assert ("plots/mistakes.png" in manifest.files) == (metrics.correct < metrics.photos)
    training = json.loads((trained.repository.root / "shapes/1" / "training.json").read_text())
    assert 0 <= training["ece_without_temperature"] <= 1
    data = load_data(
        TrainConfig(data=str(trained.photos), name="shapes", size=32),
        find_files(trained.photos),
        manifest.preprocessing,
        unshown,
    )
    assert training["alike"] == [[pair.one.file, pair.other.file] for pair in data.alike]


@pytest.mark.parametrize("drop", [False, True])
def test_wrong_labels_are_named_in_the_version_and_left_out_where_that_is_asked_for(
    trained: Trained, tmp_path: Path, drop: bool
):
    rows, wrong = ["path,label,split"], []
    for number, path in enumerate(sorted(trained.photos.glob("*/[0-9]*.jpg"))):
        split = ("test", "train", "train", "val")[number % 4]
        label = path.parent.name
        if number % (24 if split == "test" else 10) == (0 if split == "test" else 1):
            label = {"discs": "squares", "squares": "discs"}[label]
            wrong.append(str(path))
        rows.append(f"{path},{label},{split}")
    table = tmp_path / "photos.csv"
    table.write_text("\n".join(rows))
    learnt = trained.repository.root / "shapes/1" / WEIGHTS
    done = run(
        *("--data", table, "--name", "shapes", "--out", tmp_path / "models", "--epochs", "0"),
        *("--backbone", "tiny", "--size", "32", "--weights", learnt),
        *(["--drop-label-errors"] if drop else []),
    )
    assert done.returncode == 0, done.stderr
    repository = Repository(tmp_path / "models")
    assert repository.verify("shapes", 1) == []
    version = tmp_path / "models/shapes/1"
    with (version / "label_errors.csv").open(newline="") as file:
        named = list(csv.DictReader(file))
    paths = [row["path"] for row in named]
    found, falsely = (
        Counter(row["split"] == "test" for row in named if (row["path"] in wrong) == right)
        for right in (True, False)
    )
    assert len(wrong) == 17 and falsely[False] <= 2 and falsely.total() <= 3, falsely
    assert found[False] >= 10, found  # of 12; a head that has learnt from them is less sure:
    assert found[True] >= 2 or not drop, found  # of 5
    for row in named:
        assert row["dropped"] == ("yes" if drop and row["split"] != "test" else "no")
    assert all(row["label"] != row["looks_like"] for row in named)
    for split, count in Counter(row["split"] == "test" for row in named).items():
        which = "test" if split else "train and val"
        assert f"The label of {count} {which} photos is probably wrong" in done.stdout
    assert (version / "plots/label_errors.png").exists()
    split = json.loads((version / "split.json").read_text())
    left = {file for part in ("train", "val") for files in split[part].values() for file in files}
    assert (len(left & {*paths}) == 0) == drop
    photos = repository.manifest("shapes", 1).dataset.counts
    assert sum(photos["train"].values()) + sum(photos["val"].values()) == len(left)


def test_it_says_what_it_does_and_stdout_is_json_alone(trained: Trained):
    said = trained.result.stderr
    for text in (
        "Configuration",
        "the backbone's own",
        "Found 2 classes (discs, squares); photos: 84 train, 18 val, 18 test",
        "Left out 1 files:\n  discs/broken.jpg: the photo is damaged or truncated",
        "Left out 1 photos that lie beside the class folders, in none: loose.jpg\n",
        "Epoch 10/10: train loss",
        "test accuracy",
        "Serve it: serve --models",
    ):
        assert text in said
    assert said.index("Configuration") < said.index("Found") < said.index("Epoch 1/10")
    answer = json.loads(trained.result.stdout)
    assert (answer["name"], answer["version"]) == ("shapes", 1)
    assert answer["metrics"]["photos"] == 18


def test_the_metrics_are_those_of_the_file_and_the_servers_preprocessing(trained: Trained):
    """Measured again from nothing but what a server has: photos, model.onnx and the manifest."""
    folder = trained.repository.root / "shapes/1"
    manifest = trained.repository.manifest("shapes", 1)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    split = json.loads((folder / "split.json").read_text())
    right = total = 0
    for i, label in enumerate(manifest.labels):
        for file in split["test"][label]:
            pixels = preprocess((trained.photos / file).read_bytes(), manifest.preprocessing)
            (probabilities,) = session.run(["probabilities"], {"image": pixels[None]})
            right += int(probabilities[0].argmax() == i)
            total += 1
    metrics = manifest.variants["fp32"].metrics
    assert (metrics.correct, metrics.photos) == (right, total)
    of_splits = [split[part] for part in ("train", "val", "test")]
    everywhere = [f for labels in of_splits for files in labels.values() for f in files]
    assert len(everywhere) == len(set(everywhere)) == 120


def test_the_golden_pictures_have_the_files_own_answers(trained: Trained):
    folder = trained.repository.root / "shapes/1"
    with np.load(folder / "golden.npz", allow_pickle=False) as golden:
        images, logits, probabilities = (
            golden[name] for name in ("images", "logits", "probabilities")
        )
    assert images.shape == (8, 32, 32, 3) and images.dtype == np.uint8
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    for i in range(8):
        got = session.run(["probabilities", "logits"], {"image": images[i : i + 1]})
        assert got[0][0] == pytest.approx(probabilities[i], abs=1e-5)
        assert got[1][0] == pytest.approx(logits[i], abs=1e-4)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_other_precisions_are_files_with_figures_and_answers_of_their_own(
    trained: Trained, precision: str
):
    folder = trained.repository.root / "shapes/1"
    manifest = trained.repository.manifest("shapes", 1)
    variant = manifest.variants[precision]
    assert variant.metrics.photos == 18 and variant.latency_ms > 0
    assert variant.metrics.accuracy >= manifest.variants["fp32"].metrics.accuracy - 0.01
    assert 0 < variant.parity.max_logit_error < 0.2 * variant.parity.logit_scale
    session = onnxruntime.InferenceSession(folder / variant.file)
    with np.load(folder / f"golden.{precision}.npz", allow_pickle=False) as golden:
        answer = session.run(["logits"], {"image": golden["images"]})
        assert answer[0] == pytest.approx(golden["logits"], abs=0.05 * variant.parity.logit_scale)
    assert json.loads(trained.result.stdout)["variants"].keys() == {"fp32", "int8", "fp16"}
    assert re.search(
        rf"{precision} .*, labels of .*% of {variant.parity.photos} photos as in fp32, .* as fast",
        trained.result.stderr,
    )
    chosen = json.loads((folder / "quantization.json").read_text())["chosen"]
    assert chosen["method"] in {"minmax", "entropy", "percentile"}


def test_a_version_is_rebuilt_in_pytorch_as_it_was_exported(trained: Trained):
    net, manifest = load_version(trained.repository, "shapes", 1)
    folder = trained.repository.root / "shapes/1"
    with np.load(folder / "golden.npz") as golden:
        images = torch.from_numpy(golden["images"]).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            logits = net(images).numpy()
        assert logits == pytest.approx(golden["logits"], abs=1e-4)
    assert not net.training and manifest.temperature > 0


@pytest.mark.parametrize("seed", [0, 1])
def test_weights_of_a_version_that_knows_the_test_photos_are_said(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int
):
    weights = trained.repository.root / "shapes/1/weights.safetensors"
    flags = ("--out", str(tmp_path), *SCRATCH, "--epochs", "0", "--weights", str(weights))
    assert main(["--data", str(trained.photos), "--seed", str(seed), *flags]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "of 18 test photos have the content or the names of photos that the net in" in said
    ) == (seed == 1)


def test_folders_one_too_far_up_are_told_from_classes(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for seed, year in enumerate(("2023", "2024")):
        folder = photos(f"years/{year}", seed=seed).parent
    flags = ("--out", str(tmp_path / "models"), *SCRATCH, "--epochs", "1")
    assert main(["--data", str(folder), *flags]) == 0
    said = capsys.readouterr().out
    assert "Found 2 classes (2023, 2024)" in said
    assert "all hold the same folders, discs, squares, and no photo beside them" in said


def test_photos_that_look_alike_are_kept_together_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    photos = tmp_path / "photos"
    for species in ("cats", "dogs"):
        (photos / species).mkdir(parents=True)
        for n in range(8):
            drawn = draw_cartoon(species, Random(f"{species} {n}"))
            drawn.save(photos / species / f"{n}.jpg")
            if species == "cats" and n < 2:
                drawn.save(photos / "cats" / f"{n}-again.jpg", quality=60)
    drawn.save(photos / "cats" / "wrong.jpg", quality=60)
    flags = ("--name", "pets", *SCRATCH, "--epochs", "1", "--checkpoints", "none")
    assert main(["--data", str(photos), "--out", str(tmp_path / "models"), *flags]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "4 photos look like others of their class: such stay in one split" in said
    assert "1 photos look like one of another class, so one label may be wrong:" in said
    training = json.loads((tmp_path / "models/pets/1/training.json").read_text())
    (odd,) = training["at_odds"]
    assert sorted(odd) == ["cats/wrong.jpg", "dogs/7.jpg"]
    assert training["alike"] in ([], [odd], [odd[::-1]])


def test_the_probe_is_cross_validated_on_pictures_that_it_has_not_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Of blots there is nothing to learn, but each is there twice."""
    photos, generator = tmp_path / "photos", np.random.default_rng(0)
    for n in range(36):
        folder = photos / ("even", "odd")[n % 2]
        folder.mkdir(parents=True, exist_ok=True)
        blots = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        for side in (80, 96):
            blots.resize((side, side), Image.Resampling.BILINEAR).save(folder / f"{n}-{side}.png")
    torch.manual_seed(0)
    net = tmp_path / "tiny.pth"
    torch.save(build("tiny", 2, 32, "none").backbone.state_dict(), net)
    flags = ["--backbone", "tiny", "--weights", str(net), "--size", "32", "--epochs", "0"]
    out = str(tmp_path / "models")
    assert main(["--data", str(photos), "--name", "blots", "--out", out, *flags]) == 0
    found = re.search(r"cross-validated accuracy ([\d.]+)", capsys.readouterr().out)
    assert found is not None and float(found[1]) < 0.75


def test_altered_weights_are_not_loaded(trained: Trained, tmp_path: Path):
    copied = tmp_path / "models" / "shapes" / "1"
    copied.parent.mkdir(parents=True)
    subprocess.run(["cp", "-r", trained.repository.root / "shapes/1", copied], check=True)
    data = bytearray((copied / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (copied / "weights.safetensors").write_bytes(data)
    with pytest.raises(BrokenVersion, match="weights.safetensors is altered"):
        load_version(Repository(tmp_path / "models"), "shapes", 1)


def test_weights_of_which_a_later_net_makes_something_else_are_not_loaded(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
):
    """As a release of ours, or of timm, may that changes an activation: they fit all the same."""
    monkeypatch.setattr("trainer.tiny.nn.ReLU", torch.nn.SiLU)
    with pytest.raises(BrokenVersion, match=r"can't be rebuilt: .* with pawprint .*, torch \d"):
        load_version(trained.repository, "shapes", 1)


def test_a_probe_that_fine_tuning_does_not_beat_is_published(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """On the weights of a version, which are right on val already: the backbone stays as it was."""
    weights = trained.repository.root / "shapes/1" / "weights.safetensors"
    arguments = [
        *("--data", trained.photos, "--name", "probe", "--out", tmp_path, "--backbone", "tiny"),
        *("--weights", weights, "--size", 32, "--epochs", 1, "--cache", tmp_path / "cache"),
    ]
    assert main([str(argument) for argument in arguments]) == 0
    said = capsys.readouterr().out
    assert "Linear probe: penalty" in said and "Epoch 1/1" in said
    assert "than chance may give" in said and "linear probe" in said
    manifest = Repository(tmp_path).manifest("probe", 1)
    assert manifest.variants["fp32"].metrics.accuracy >= 0.9
    before = load_file(weights)
    after = load_file(tmp_path / "probe/1/weights.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"classifier.1.weight", "classifier.1.bias"}
    assert len(list((tmp_path / "cache").glob("features-*.npz"))) == 1


def test_features_of_many_photos_come_from_the_exported_backbone_though_fine_tuning_follows(
    trained: Trained,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    arguments = [
        *("--data", trained.photos, "--name", "many", "--out", tmp_path, "--backbone", "tiny"),
        *("--weights", trained.repository.root / "shapes/1" / "weights.safetensors"),
        *("--size", 32, "--epochs", 1),
    ]
    assert main([str(argument) for argument in arguments]) == 0
    few = capsys.readouterr().out
    monkeypatch.setattr(fitting, "EXPORTED_FROM", 1)
    assert main([str(argument) for argument in arguments]) == 0
    many = capsys.readouterr().out
    features = "Features of the frozen backbone"
    assert few.index("Exporting to ONNX") > few.index(features)
    assert many.index("Exporting to ONNX") < many.index(features)
    one, other = (Repository(tmp_path).manifest("many", number) for number in (1, 2))
    logits = (m.variants["fp32"].metrics.nll for m in (one, other))
    assert next(logits) == pytest.approx(next(logits), rel=1e-3)


def test_the_next_probe_with_a_cache_exports_nothing_and_is_the_same(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    weights = trained.repository.root / "shapes/1" / "weights.safetensors"
    arguments = [
        *("--data", trained.photos, "--name", "probe", "--out", tmp_path, "--backbone", "tiny"),
        *("--weights", weights, "--size", 32, "--epochs", 0, "--cache", tmp_path / "cache"),
    ]
    said = []
    for _ in range(2):
        assert main([str(argument) for argument in arguments]) == 0
        said.append(capsys.readouterr().out)
    assert ["Exporting to ONNX" in text for text in said] == [True, False]
    first, second = (tmp_path / f"probe/{number}/model.onnx" for number in (1, 2))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.slow
def test_a_head_does_not_depend_on_what_filled_the_cache_before(trained: Trained, tmp_path: Path):
    """Fine-tuning takes features from PyTorch, a head alone from ONNX Runtime."""
    weights = trained.repository.root / "shapes/1" / "weights.safetensors"
    arguments = [
        *("--data", trained.photos, "--name", "probe", "--out", tmp_path, "--backbone", "tiny"),
        *("--weights", weights, "--size", 32, "--epochs"),
    ]
    cache = ["--cache", tmp_path / "cache"]
    for more in ([0], [1, *cache], [0, *cache]):
        assert main([str(argument) for argument in (*arguments, *more)]) == 0
    alone, after = (tmp_path / f"probe/{number}/model.onnx" for number in (1, 3))
    assert alone.read_bytes() == after.read_bytes()


def test_a_version_that_callers_do_not_get_yet_says_how_they_would(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    weights = trained.repository.root / "shapes/1" / "weights.safetensors"
    arguments = [
        *("--data", trained.photos, "--name", "shapes", "--out", tmp_path, "--backbone", "tiny"),
        *("--weights", weights, "--size", 32, "--epochs", 0),
    ]
    assert main([str(argument) for argument in arguments]) == 0
    assert "models promote" not in capsys.readouterr().out
    Repository(tmp_path).promote("shapes", 1)
    assert main([str(argument) for argument in arguments]) == 0
    said = capsys.readouterr().out
    assert "Callers get version 1, which stable names" in said
    assert f"models promote shapes/2 --models {tmp_path}" in said
    assert "Its labels" not in said
    arguments[1] = write_photos(tmp_path / "renamed", 6, ("blobs", "squares"))
    assert main([str(argument) for argument in arguments]) == 0
    gone = sorted({*trained.repository.manifest("shapes", 1).labels} - {"squares"})
    told = f"Its labels are not those of version 1: gone: {', '.join(gone)}; new: blobs\n"
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    "settings",
    [
        ("--head-solver", "sgd", "--optimizer", "momentum", "--head-init", "glorot", "--epochs", 0),
        ("--head-solver", "none", "--head-init", "normal", "--thaw", 0, "--epochs", 12)
        + ("--learning-rate", 0.1),
    ],
)
def test_a_head_may_be_solved_by_steps_or_be_drawn(
    trained: Trained,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    settings: tuple[object, ...],
):
    """On the weights of a version, whose features tell the classes apart."""
    weights = trained.repository.root / "shapes/1" / "weights.safetensors"
    arguments = [
        *("--data", trained.photos, "--name", "head", "--out", tmp_path, "--backbone", "tiny"),
        *("--weights", weights, "--size", 32, *settings),
    ]
    assert main([str(argument) for argument in arguments]) == 0
    said = capsys.readouterr().out
    solved = "sgd" in settings
    assert ("Linear probe: penalty" in said) is solved
    assert ("fine-tuned from a head drawn at random, epoch" in said) is not solved
    manifest = Repository(tmp_path).manifest("head", 1)
    assert manifest.variants["fp32"].metrics.accuracy >= 0.9
    before, after = load_file(weights), load_file(tmp_path / "head/1/weights.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"classifier.1.weight", "classifier.1.bias"}


def test_a_drawn_head_needs_epochs(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    arguments = ["--data", str(tmp_path), "--name", "x", "--head-solver", "none", "--epochs", "0"]
    assert main([*arguments, "--backbone", "tiny"]) == 2
    assert "epochs must be at least 1 with head_solver none, got 0" in capsys.readouterr().err


@pytest.mark.parametrize("broken", [False, True])
def test_labels_with_dollars_and_plots_that_fail_cost_no_training(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: bool
):
    """TeX, asked for in the user's matplotlibrc, can't set such labels, if it is there at all."""
    data = photos(labels=("price_$1_$2", "price_$3_\\frac_$4"), per_class=12)
    arguments = [*("--data", data, "--name", "prices", "--out", tmp_path / "models"), *SCRATCH]
    with matplotlib.rc_context({"text.usetex": broken}):
        assert main([str(argument) for argument in [*arguments, "--epochs", 1]]) == 0
    repository = Repository(tmp_path / "models")
    assert repository.verify("prices", 1) == []
    assert ("plots/confusion.png" in repository.manifest("prices", 1).files) is not broken
    assert ("Warning: not all plots could be drawn" in capsys.readouterr().out) is broken


@pytest.mark.slow
def test_a_probe_alone_is_tracked_and_balanced_where_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Twelve squares beside sixty discs, on a net drawn at random, which can't tell them well."""
    torch.manual_seed(0)
    torch.save(version_state(build("tiny", 2, 32)), tmp_path / "random.pth")
    folder = write_photos(tmp_path / "photos", 12, ("squares",))
    write_photos(folder, 60, ("discs",))
    kept = []
    for balance in ("none", "weights"):
        arguments = [
            *("--data", folder, "--name", balance, "--out", tmp_path / "models"),
            *("--backbone", "tiny", "--weights", tmp_path / "random.pth", "--size", 32),
            *("--epochs", 0, "--balance", balance),
        ]
        assert main([str(argument) for argument in arguments]) == 0
        kept.append(load_file(tmp_path / "models" / balance / "1/weights.safetensors"))
        (logs,) = (tmp_path / "models/.logs" / balance).iterdir()
        curves = EventAccumulator(str(logs)).Reload()
        found = {tag: curves.Scalars(tag)[0].value for tag in curves.Tags()["scalars"]}
        assert {"accuracy/cross-validated", "penalty/probe", "accuracy/test"} <= found.keys()
        measured = Repository(tmp_path / "models").manifest(balance, 1).variants["fp32"].metrics
        assert found["nll/test"] == pytest.approx(measured.nll, rel=1e-5)
        assert ("mean recall/cross-validated" in found) == (balance == "weights")
        said = capsys.readouterr().out
        recall = np.mean([right / photos for right, photos in measured.per_class.values()])
        told = re.findall(r"mean recall +(\S+)  on test, each class alike", said)
        assert told == ([f"{recall:.4f}"] if balance == "weights" else [])
    assert "Fine-tuning" not in said
    assert not torch.allclose(kept[0]["classifier.1.bias"], kept[1]["classifier.1.bias"])


def test_figures_that_nobody_asked_for_cost_no_training(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    out = tmp_path / "models"
    arguments = ["--data", photos(), "--name", "x", "--out", out, *SCRATCH, "--epochs", 1]
    assert main([str(a) for a in (*arguments, "--logs", tmp_path / "file/logs")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Warning: no more figures for TensorBoard" in said
    assert Repository(out).versions("x") == [1]


def test_a_net_that_has_learnt_nothing_from_scratch_is_called_so(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Steps that float32 can't tell from none, of a net without batch norms, which move alone."""
    arguments = [
        *("--data", photos(), "--name", "shapes", "--out", tmp_path, "--backbone", "squeezenet1_1"),
        *("--weights", "none", "--size", 48, "--epochs", 1, "--learning-rate", 1e-8),
        *("--optimizer", "sgd", "--clip", 1e-3),
    ]
    assert main([str(argument) for argument in arguments]) == 0
    said = capsys.readouterr().out
    assert "Warning: no epoch did better on val" in said and "has learnt nothing from" in said
    assert "give it more of them, more --epochs or pre-trained --weights" in said.replace("\n", " ")


def start(out: Path, data: Path, *flags: str, epochs: int, code: str) -> subprocess.Popen[str]:
    """`train` in a process of its own, after `code`."""
    arguments = [*("--data", str(data), "--name", "shapes", "--out", str(out)), *SCRATCH]
    return subprocess.Popen(
        [sys.executable, "-c", f"{code}\nimport sys; from trainer.train import main\n"
         "sys.exit(main(sys.argv[1:]))", *arguments, "--epochs", str(epochs), *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


_HANGS = """
import threading
from torch.utils.tensorboard import SummaryWriter
SummaryWriter.close = lambda writer: threading.Event().wait()
"""


def interrupted(process: subprocess.Popen[str], at: str) -> str:
    """Its last words, after Ctrl-C at the line that begins so."""
    with process:
        try:
            for line in process.stdout:
                if line.startswith(at):
                    break
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    return said


@pytest.mark.parametrize(
    "code",
    [pytest.param("", marks=pytest.mark.slow), _HANGS],
    ids=["", "hangs on the way out"],
)
def test_ctrl_c_leaves_no_version_and_says_so_in_one_line(
    photos: MakePhotos, tmp_path: Path, code: str
):
    out = tmp_path / "models"
    said = interrupted(start(out, photos(per_class=8), code=code, epochs=500), "Epoch 2/")
    assert said == "error: interrupted; nothing was published\n"
    assert Repository(out).names() == [] and not list(out.glob("shapes/*"))
    assert list(out.glob(".logs/shapes/*/events.out.tfevents.*"))  # for TensorBoard


def test_ctrl_c_that_strikes_in_a_callback_of_a_weak_reference_is_not_lost():
    code = """
import signal, time, weakref
from trainer.interrupt import ends_when_interrupted
class Net: ...
net = Net()
watch = weakref.ref(net, lambda _: signal.raise_signal(signal.SIGINT))
with ends_when_interrupted("late"):
    try:
        del net
        time.sleep(3)
        print("went on")
    except KeyboardInterrupt:
        print("interrupted")
"""
    done = run_python("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")


@pytest.mark.slow
def test_ctrl_c_does_not_deny_what_a_comparison_has_published(photos: MakePhotos, tmp_path: Path):
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pth")
    out, weights = tmp_path / "models", ["--weights", str(tmp_path / "tiny.pth"), "--compare"]
    process = start(out, photos(per_class=8), *weights, code="", epochs=500)
    said = interrupted(process, "Epoch 1/")
    assert said == "error: interrupted; what is done of the comparison stays published\n"
    assert Repository(out).names() == ["shapes-frozen"]


def test_killed_before_the_rename_nothing_is_there_to_be_served(photos: MakePhotos, tmp_path: Path):
    out, data = tmp_path / "models", photos(per_class=8)
    kill = (
        "import os, signal, serving.repository as repository\n"
        "repository.os.rename = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)\n"
        "import sys; from trainer.train import main; main(sys.argv[1:])"
    )
    arguments = ["--data", data, "--name", "shapes", "--out", out, *SCRATCH, "--epochs", 1]
    assert run_warm("-c", kill, *arguments).returncode == -signal.SIGKILL
    (left,) = (out / "shapes").iterdir()  # it came as far as the worst moment
    assert (left / "manifest.json").is_file() and left.name.startswith(".staging-")
    repository = Repository(out)
    assert repository.names() == [] and repository.versions("shapes") == []


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What `train` says to input that it refuses: one line, status 2."""
    status = main([str(argument) for argument in arguments])
    said = capsys.readouterr().err
    assert status == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    return said.removeprefix("error: ").strip()


def test_wrong_input_is_one_line_that_says_what_to_do(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = photos()
    good = ["--data", data, "--name", "x", "--out", tmp_path / "models", *SCRATCH]
    assert refused(capsys, "--name", "x") == "--data is required; see train --help"
    assert "no folder" in refused(capsys, *good, "--data", tmp_path / "absent")
    assert "did you mean" in refused(capsys, *good, "--backbone", "resnet19")
    assert "no weights file" in refused(capsys, *good, "--weights", "absent.pth")
    assert "a name has 1 to 64" in refused(capsys, *good, "--name", "../x")
    assert "size must be 32 to 1024, got 7" in refused(capsys, *good, "--size", "7")
    assert "epochs must be at least 1" in refused(capsys, *good, "--epochs", "0")
    assert "learning_rate must be" in refused(capsys, *good, "--learning-rate", "nan")
    (tmp_path / "file").touch()
    assert "file" in refused(capsys, *good, "--out", tmp_path / "file")
    for flag in ("--out", "--cache", "--logs", "--checkpoints"):
        within = data / "models"
        assert f"{flag} {within} lies in {data}" in refused(capsys, *good, flag, within)
        assert not within.exists()
    assert make_shards(["--data", str(data), "--out", str(tmp_path / "shards")]) == 0
    within = tmp_path / "shards" / "models"  # where a folder would make them photos by class
    assert "models lies in " in refused(capsys, *good, "--data", within.parent, "--out", within)
    hidden = [*good, "--cache", data / ".cache", "--epochs", "0"]  # a hidden folder is no class
    assert "epochs must be at least 1" in refused(capsys, *hidden)
    (data / "discs" / "bad.jpg").write_bytes(b"")
    assert "discs/bad.jpg (the photo is empty" in refused(capsys, *good, "--strict")
    assert not (tmp_path / "models" / "x").exists()


def test_usage_errors_exit_2(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(["--epochs", "many"])
    assert stopped.value.code == 2


def test_weights_that_are_no_numbers_fail_with_status_1(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    state = Tiny().state_dict()
    state["features.0.0.weight"].fill_(float("nan"))
    torch.save(state, tmp_path / "nan.pth")
    data = ["--data", photos(), "--name", "x", "--out", tmp_path / "models", *SCRATCH]
    status = main([str(a) for a in [*data, "--weights", tmp_path / "nan.pth"]])
    assert status == 1
    assert (
        "error: the frozen backbone gives features that are not finite" in capsys.readouterr().err
    )
    assert not (tmp_path / "models" / "x").exists()


def test_a_gpu_that_is_full_is_one_line_that_says_what_to_try(
    photos: MakePhotos,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """The error is torch's own, where it comes first: as the optimiser makes its averages."""

    class Full(torch.optim.SGD):
        def step(self, closure: None = None) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(OPTIMIZERS, "adamw", lambda groups: Full(groups, lr=0.0))
    status = main(
        ["--data", str(photos()), "--name", "shapes", "--out", str(tmp_path / "models"),
         "--backbone", "tiny", "--weights", "none", "--size", "32", "--batch-size", "8"]
    )  # fmt: skip
    (said,) = capsys.readouterr().err.splitlines()
    assert status == 1 and said.startswith("error: the GPU has too little memory; end what")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its memory from /proc")
@pytest.mark.parametrize("epochs", [0, 1], ids=["ONNX Runtime", "torch"])
def test_a_machine_that_is_full_is_one_line_too(photos: MakePhotos, tmp_path: Path, epochs: int):
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pth")
    code = """
import resource, sys, torch
import trainer.pipeline
from trainer.train import main
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 29), -1))
sys.exit(main(sys.argv[1:]))
"""
    arguments = ["--data", photos(per_class=12), "--name", "x", "--out", tmp_path / "models"]
    arguments += ["--backbone", "tiny", "--weights", tmp_path / "tiny.pth", "--size", 1024]
    without_gpu = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = run_warm("-c", code, *arguments, "--epochs", epochs, env=without_gpu)
    *others, said = done.stderr.splitlines()
    assert done.returncode == 1 and not any("Traceback" in line for line in others)
    assert said.startswith("error: this machine has too little memory; end what else runs on it")


def test_help_explains_itself():
    result = run("--help")
    assert result.returncode == 0 and "examples:" in result.stdout
    for flag in ("--data", "--backbone", "--weights", "--epochs", "--strict", "--json"):
        assert flag in result.stdout
    assert "(default: mobilenet_v2)" not in result.stdout  # a GPU has another one


def test_a_version_is_published_whoever_reads_of_it(photos: MakePhotos, tmp_path: Path):
    arguments = ["--data", photos(), "--name", "shapes", "--out", tmp_path, *SCRATCH]
    status, said = unread("-m", "trainer.train", *arguments, "--epochs", "1", "--json")
    assert status == 0, said
    assert said.endswith(f"Serve it: serve --models {tmp_path}\n")
    assert Repository(tmp_path).versions("shapes") == [1]
