"""`train --tune`: settings searched on val, resumed, refused, and trained with in the end."""

import dataclasses
import json
import re
import signal
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from serving.repository import Repository
from tests.small_disk import small_disk
from tests.trainer.conftest import MakePhotos
from tests.warm import Warm, run_warm
from trainer.config import TrainConfig
from trainer.metrics import accuracy, nll
from trainer.search_space import draw, searched, start
from trainer.tiny import Tiny
from trainer.train import main
from trainer.training import Epoch, FineTuned, best_of, fine_tune
from trainer.tune import best_first, least_of, score, searching

optuna = pytest.importorskip("optuna")


def arguments(photos: Path, out: Path, trials: int, *more: object) -> list[str]:
    given = [
        *("--data", photos, "--name", "shapes", "--out", out, "--backbone", "tiny"),
        *("--weights", "none", "--size", 32, "--epochs", 2, "--workers", 1, "--tune", trials),
    ]
    return [str(argument) for argument in (*given, *more)]


def test_accuracy_decides_and_the_loss_among_equals():
    def epoch(right: int, loss: float) -> float:
        return score(Epoch(1, 0.5, 0.5, loss, right / 20), least_of(np.zeros(20, int), "none"))

    assert epoch(18, 9.0) > epoch(17, 0.01)
    assert epoch(18, 0.2) > epoch(18, 0.3)


def test_where_classes_are_balanced_no_loss_outweighs_a_photo_of_the_most_frequent_one():
    targets = np.repeat([0, 1, 3], [100, 4, 4])  # none of class 2 is in val

    def epoch(wrong: int, loss: float) -> float:
        recall = (2 + (100 - wrong) / 100) / 3
        return score(Epoch(1, 0.5, 0.5, loss, 0.5, None, recall), least_of(targets, "weights"))

    assert epoch(0, 9.0) > epoch(1, 0.01)
    assert epoch(1, 0.2) > epoch(1, 0.3)


def test_the_best_has_the_highest_mean_recall_however_little_that_is():
    def trial(recall: float, loss: float) -> Any:
        epoch = Epoch(1, 0.5, 0.5, loss, 0.9, None, recall)
        value = score(epoch, least_of(np.repeat([0, 1], [10, 9]), "weights"))
        return optuna.trial.create_trial(
            value=value, user_attrs={"best": dataclasses.asdict(epoch)}
        )

    of_ten, of_nine = trial((9 / 10 + 1) / 2, 1.0), trial((1 + 8 / 9) / 2, 0.2)
    sure = trial((9 / 10 + 1) / 2, 0.3)
    assert best_first([of_nine, of_ten, sure]) == [sure, of_ten, of_nine]


def test_what_is_given_is_not_searched():
    free = searched({"data": "x", "optimizer": "sgd", "thaw": 0.5})
    assert "learning_rate" in free and not {"optimizer", "thaw"} & set(free)
    assert not {"thaw", "layer_decay"} & set(searched({"weights": "none"}))
    assert "mixup" not in searched({"teacher": "pets"})
    assert "optimizer" not in searched({"head_solver": "sgd"})


def test_settings_drawn_are_valid_and_the_first_are_the_defaults():
    config = TrainConfig(data="x", name="x")
    names = searched({})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(start(names, config))
    first = draw(study.ask(), names, config)
    assert first == {name: getattr(config, name) for name in names}
    for _ in range(50):
        settings: dict[str, Any] = draw(study.ask(), names, config)
        assert TrainConfig(data="x", name="x", **settings)
        steep = settings["optimizer"] == "momentum"
        assert settings["learning_rate"] <= (0.3 if steep else 0.01)


@pytest.mark.slow
def test_killed_it_goes_on_to_the_trials_in_all_and_publishes_the_best(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data, out = photos(per_class=10), tmp_path / "models"
    journal = out / ".tune/shapes.journal"
    process = Warm("-m", "trainer.train", *arguments(data, out, 50))
    deadline = time.monotonic() + 150
    while not (journal.exists() and '"best"' in journal.read_text()):
        assert process.returncode is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate()

    found = {}
    for trials in (4, 5):
        assert main(arguments(data, out, trials, "--json")) == 0, capsys.readouterr().err
        found[trials] = json.loads(capsys.readouterr().out)
        rows = json.loads((out / "shapes-tuning.json").read_text())
        assert [row["trial"] for row in rows] == list(range(1, len(rows) + 1))
        assert len(rows) >= trials
    assert not [t for t in study(journal).trials if not t.state.is_finished()], "none runs still"
    assert rows[0]["settings"]["learning_rate"] == pytest.approx(3e-3), "the defaults come first"
    complete = [row for row in rows if row["state"] == "complete"]
    accuracies = [(row["best"]["val_accuracy"], -row["best"]["val_loss"]) for row in complete]
    best = complete[accuracies.index(max(accuracies))]["settings"]
    tuned = tomllib.loads((out / "shapes-tuned.toml").read_text())
    assert best.items() <= tuned.items() and tuned["backbone"] == "tiny"
    configuration = Repository(out).manifest("shapes", found[5]["version"]).configuration
    assert best.items() <= configuration.items()
    assert (out / "shapes-tuning.png").read_bytes().startswith(b"\x89PNG")

    with journal.open("a") as file:  # what a full disk leaves of a line
        file.write('{"op_code": 8, "worker_id": "x')
    assert main(arguments(data, out, 5, "--label-smoothing", 0.1)) == 2
    said = capsys.readouterr().err
    assert "is of other settings: label_smoothing is 0.1, there 0.0; searched is" in said


KILLED_WRITING = """
import os, signal, sys
from trainer.train import main
fsync, left = os.fsync, int(sys.argv[1])
def dying(descriptor):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)
os.fsync = dying
main(sys.argv[2:])
"""


# Before there is a trial; within the draw of the first.
@pytest.mark.slow
@pytest.mark.parametrize("line", [2, 5])
def test_killed_while_it_writes_its_journal_it_goes_on_from_the_defaults(
    photos: MakePhotos, tmp_path: Path, line: int
):
    search = arguments(photos(per_class=10), Path("models"), 1)
    for code in (["-c", KILLED_WRITING, str(line)], ["-m", "trainer.train"]):
        done = run_warm(*code, *search, cwd=tmp_path)
        if "-c" in code:
            assert done.returncode == -signal.SIGKILL
            assert (tmp_path / "models/.tune/shapes.journal.lock").is_symlink()
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "models/shapes-tuning.json").read_text())
    defaults = {"learning_rate": 3e-3, "label_smoothing": 0.0, "mixup": 0.0}
    assert defaults.items() <= row["settings"].items()


@pytest.mark.parametrize("line", [b"no JSON", b"[1, 2]", bytes(4096)])
def test_a_damaged_journal_is_named(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: bytes
):
    journal = tmp_path / ".tune/shapes.journal"
    journal.parent.mkdir()
    journal.write_bytes(line + b"\n")
    assert main(arguments(photos(), tmp_path, 1)) == 2
    said = f"error: the search in {journal} can't be read; delete it to start anew\n"
    assert capsys.readouterr().err == said


def test_a_disk_that_is_full_is_named(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with small_disk(tmp_path / "disk", 4096) as disk:
        assert main(arguments(photos(), disk, 3)) == 75
    assert capsys.readouterr().err == f"error: {disk}/.tune: No space left on device\n"


def study(journal: Path) -> Any:
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    return optuna.load_study(study_name="shapes", storage=optuna.storages.JournalStorage(backend))


def test_trials_whose_loss_is_no_number_are_failed_and_the_search_goes_on(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "models"
    growing = ["--optimizer", "sgd", "--learning-rate", 10, "--weight-decay", 1, "--warmup", 0]
    longer = ["--batch-size", 2, "--epochs", 40]  # each step multiplies kernels by about -9
    assert main(arguments(photos(per_class=10), out, 2, *growing, *longer)) == 1
    said = capsys.readouterr().err
    assert "error: none of 2 trials came to an end; the last: the loss is " in said
    (advice,) = re.findall(r"error: .*(try a lower.*)", said)
    assert advice == (
        f"try a lower --learning-rate (it is 10), or --clip 1. For other settings delete "
        f"{out}/.tune/shapes.journal; with these, a larger --tune tries more"
    )
    trials = study(out / ".tune/shapes.journal").trials
    assert [t.state.name for t in trials] == ["FAIL", "FAIL"], "the second was tried too"


@pytest.mark.parametrize(
    "more",
    [["--thaw", 0.25], ["--weights", "tiny.pth", "--head-solver", "none", "--epochs", 3]],
)
def test_trained_with_the_best_it_learns_what_the_trial_did(
    more: list[object], photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pth")
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "models"
    assert main(arguments(photos(per_class=10), out, 1, *more)) == 0
    version = out / "shapes" / "1"
    val = json.loads((version / "split.json").read_text())["val"]
    photos_of_val = sum(len(files) for files in val.values())
    (trial,) = study(out / ".tune/shapes.journal").trials
    history = json.loads((version / "training.json").read_text())["history"]
    assert {epoch["epoch"] for epoch in history[1:]} == set(trial.intermediate_values)
    assert len(history) > 2
    for epoch in history[1:]:
        expected = score(Epoch(**epoch), 1 / photos_of_val)
        assert trial.intermediate_values[epoch["epoch"]] == pytest.approx(expected)


def test_the_best_is_trained_by_the_teacher_and_on_the_split_of_the_search(
    photos: MakePhotos, tmp_path: Path
):
    """Whichever version these names stand for by then."""
    *one, _, _ = given = arguments(photos(per_class=10), tmp_path, 1)
    assert main([*one, "--epochs", "1"]) == 0
    named = ["--name", "small", "--teacher", "shapes", "--split-like", "shapes"]
    assert main([*given, *named]) == 0
    settings = tomllib.loads((tmp_path / "small-tuned.toml").read_text())
    assert (settings["teacher"], settings["split_like"]) == ("shapes/1", "shapes/1")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tune", "0"], "--tune must be 1 to 10000 trials, got 0"),
        (["--tune", "3", "--adversarial", "pgd-3@4/255"], "not with adversarial"),
        (["--tune", "3", "--weights", "imagenet", "--backbone", "resnet18", "--epochs", "0"],
         "epochs must be at least 1 for --tune"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(
    more: list[str], message: str, photos: MakePhotos, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    assert main([*arguments(photos(), tmp_path, 1), *more]) == 2
    assert message in capsys.readouterr().err


def test_without_optuna_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, photos: MakePhotos, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(arguments(photos(), tmp_path, 3)) == 2
    assert "pip install '.[tune]'" in capsys.readouterr().err


def test_one_search_at_a_time_and_trials_differ_by_what_they_learn_from_the_same_probe(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    histories = []

    def recorded(*given: Any, **more: Any) -> FineTuned:
        result = fine_tune(*given, **more)
        histories.append(result.history)
        return result

    monkeypatch.setattr("trainer.tune.fine_tune", recorded)
    torch.manual_seed(0)
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pth")
    out = tmp_path / "models"
    given = arguments(photos(per_class=10), out, 3, "--weights", tmp_path / "tiny.pth")
    assert main(given) == 0, capsys.readouterr().err
    rows = json.loads((out / "shapes-tuning.json").read_text())
    assert len(rows) == len(histories) == 3
    assert len({history[0].val_loss for history in histories}) == 1, "all start from one probe"
    trials = study(out / ".tune/shapes.journal").trials
    for trial, history in zip(trials, histories, strict=True):
        best = best_of(history[1:])
        assert best.epoch == trial.user_attrs["best"]["epoch"] > 0
        split = json.loads((out / "shapes/1/split.json").read_text())["val"]
        assert trial.value == score(best, 1 / sum(map(len, split.values())))
        assert set(trial.intermediate_values) == {1, 2}
    assert len({trial.value for trial in trials}) == 3
    assert set(rows[0]["settings"]) >= {"thaw", "layer_decay"}
    with searching(out / ".tune", "shapes"):
        assert main(given) == 75
    assert "another process is tuning shapes" in capsys.readouterr().err


def test_with_wise_ft_a_trial_is_worth_what_would_be_published_of_it(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """At such a rate the last stages unlearn what the probe knew; half the way they have not."""
    results = []

    def recorded(*given: Any, **more: Any) -> FineTuned:
        results.append(fine_tune(*given, **more))
        return results[-1]

    monkeypatch.setattr("trainer.tune.fine_tune", recorded)
    torch.manual_seed(0)
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pth")
    out = tmp_path / "models"
    given = ["--weights", tmp_path / "tiny.pth", "--wise-ft", "--learning-rate", 0.3]
    assert main(arguments(photos(per_class=10), out, 1, *given)) == 0, capsys.readouterr().err
    ((trial,), (result,)) = study(out / ".tune/shapes.journal").trials, results
    split = json.loads((out / "shapes/1/split.json").read_text())["val"]
    targets = np.repeat([0, 1], [len(split[label]) for label in ("discs", "squares")])
    published = trial.user_attrs["best"]
    assert published["val_accuracy"] == accuracy(result.val_logits, targets)
    assert published["val_loss"] == pytest.approx(nll(result.val_logits, targets))
    assert trial.value == score(Epoch(**published), 1 / len(targets))
    assert trial.value > score(best_of(result.history[1:]), 1 / len(targets))
