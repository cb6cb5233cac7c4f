"""A training in MLflow, read back from a real store; what can't be sent costs a line."""

import sys
import time
from pathlib import Path

import pytest

from serving.repository import Repository
from tests.trainer.conftest import MakePhotos
from trainer.config import TrainConfig
from trainer.console import Console
from trainer.errors import FailedCheck
from trainer.mlflow_run import mlflow_run
from trainer.train import main

tracking = pytest.importorskip("mlflow.tracking")
pytest.importorskip("sqlalchemy")

# MLflow's own use of SQLAlchemy and of its database.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def arguments(photos: Path, out: Path, *more: object) -> list[str]:
    given = [
        *("--data", photos, "--name", "shapes", "--out", out, "--backbone", "tiny"),
        *("--weights", "none", "--size", 32, "--epochs", 2, "--workers", 1, *more),
    ]
    return [str(argument) for argument in given]


def test_settings_epochs_test_figures_and_version_can_be_read_back(
    photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "drawn")
    monkeypatch.chdir(tmp_path)
    assert main(arguments(photos(), tmp_path / "models", "--label-smoothing", 0.1)) == 0
    client = tracking.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("drawn")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "shapes"
    assert run.data.params["label_smoothing"] == "0.1" and run.data.params["backbone"] == "tiny"
    steps = {
        name: [m.step for m in client.get_metric_history(run.info.run_id, name)]
        for name in ("loss/val", "accuracy/val", "loss/train")
    }
    assert steps == {"loss/val": [0, 1, 2], "accuracy/val": [0, 1, 2], "loss/train": [1, 2]}
    metrics = Repository(tmp_path / "models").manifest("shapes", 1).variants["fp32"].metrics
    assert run.data.metrics["accuracy/test"] == metrics.accuracy
    assert run.data.metrics["ece/test"] == metrics.ece
    assert run.data.tags["pawprint.version"] == "shapes/1"

    growing = ["--optimizer", "sgd", "--learning-rate", 10, "--weight-decay", 1, "--warmup", 0]
    longer = ["--batch-size", 2, "--epochs", 60]
    assert main(arguments(photos(), tmp_path / "models", *growing, *longer)) == 1
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED"]


def test_gone_on_with_the_new_run_has_the_earlier_epochs_too(
    photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    def fail(*_: object) -> None:
        raise FailedCheck("not today")

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    given = arguments(photos(), tmp_path / "models")
    with monkeypatch.context() as patch:
        patch.setattr("trainer.pipeline.publish", fail)
        assert main(given) == 1
    capsys.readouterr()
    assert main(given) == 0
    assert "Epoch " not in capsys.readouterr().out, "it was said before"
    client = tracking.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("shapes")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED"]
    for run in runs:
        history = client.get_metric_history(run.info.run_id, "loss/val")
        assert [metric.step for metric in history] == [0, 1, 2]


def test_each_trial_of_a_search_is_a_run_below_the_search(
    photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("optuna")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert main(arguments(photos(), tmp_path / "models", "--tune", 2)) == 0
    client = tracking.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("shapes")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"shapes", "shapes tuning", "Trial 1/2", "Trial 2/2"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for name in ("Trial 1/2", "Trial 2/2"):
        assert runs[name].data.tags["mlflow.parentRunId"] == runs["shapes tuning"].info.run_id
        assert [m.step for m in client.get_metric_history(runs[name].info.run_id, "loss/val")] == [
            0,
            1,
            2,
        ]
    assert {run.data.params["dropout"] for run in runs.values()} == {"0.2"}  # the net's own
    rates = [runs[f"Trial {i}/2"].data.params["learning_rate"] for i in (1, 2)]
    assert rates[0] != rates[1]


def test_a_server_that_cannot_be_reached_costs_one_line(
    photos: MakePhotos,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    assert main(arguments(photos(), tmp_path / "models")) == 0
    said = capsys.readouterr().out
    assert said.count("Nothing more goes to MLflow at http://127.0.0.1:9: ") == 1
    assert "secret" not in said
    assert Repository(tmp_path / "models").versions("shapes") == [1]
    started = time.monotonic()
    with mlflow_run(TrainConfig(data="x", name="x"), Console(to_stderr=False), "x"):
        waited = time.monotonic() - started
    assert waited < 60, "MLflow alone would try for minutes"


def test_without_mlflow_it_says_what_to_install(
    photos: MakePhotos,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    assert main(arguments(photos(), tmp_path / "models")) == 0
    assert capsys.readouterr().out.count("pip install '.[mlflow]'") == 1
