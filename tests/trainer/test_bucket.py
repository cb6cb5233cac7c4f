"""The whole way in a bucket: photos from shards there, the version published there, its report."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from serving.bucket import Bucket
from serving.models import main as models
from serving.remote_repository import RemoteRepository
from tests.object_store import BUCKET, running_store
from tests.serving.cut_proxy import cut_proxy
from tests.trainer.conftest import MakePhotos
from trainer.analysis.analyze import main as analyze
from trainer.make_shards import main as make_shards
from trainer.train import main as train


def test_train_and_analyze_in_a_bucket(
    photos: MakePhotos,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from serving.storage import open_repository

    place = f"s3://{BUCKET}/trained"
    with running_store(tmp_path) as store, cut_proxy(store.port) as proxy:
        for key, value in store.environment_at(proxy.port).items():
            monkeypatch.setenv(key, value)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setenv("PAWPRINT_CACHE", str(tmp_path / "cache"))
        data = f"s3://{BUCKET}/photos"
        assert make_shards(["--data", str(photos(per_class=12)), "--out", data]) == 0
        capsys.readouterr()
        command = ["--data", data, "--name", "shapes", "--out", place, "--size", "32"]
        command += ["--backbone", "tiny", "--weights", "none", "--epochs", "2", "--json"]
        assert train(command) == 0
        assert json.loads(capsys.readouterr().out)["path"] == f"{place}/shapes/1"
        repository = open_repository(place)
        assert repository.verify("shapes", 1) == []
        command = ["shapes", "--data", data, "--models", place, "--budget", "quick"]
        command += ["--photos", "2", "--linf", "8/255", "--l2", "1", "--ideal", "none"]
        attach = RemoteRepository.attach_analysis

        def cut_off(repository: RemoteRepository, *what: Any) -> None:
            proxy.reset(limit=0)
            attach(repository, *what)

        with monkeypatch.context() as patch:
            patch.setattr(RemoteRepository, "attach_analysis", cut_off)
            assert analyze(command) == 75
        said = capsys.readouterr().err
        kept = re.search(r"can't be used: .*; what is finished is kept in (.*), from where", said)
        assert kept is not None and len(list(Path(kept[1]).glob("*.npz"))) > 30
        proxy.reset()
        assert analyze(command) == 0
        assert not Path(kept[1]).exists()
        assert f"{place}/shapes/1/analysis/report.html" in capsys.readouterr().out
        summary = repository.read_analysis("shapes", 1, "summary.json")
        assert summary is not None and json.loads(summary)["photos"] == 2
        assert repository.verify("shapes", 1) == []


def test_a_version_that_a_store_does_not_take_is_kept_and_published_later(
    photos: MakePhotos,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from serving.storage import open_repository

    place = f"s3://{BUCKET}/cut"
    with running_store(tmp_path) as store, cut_proxy(store.port) as proxy:
        for key, value in store.environment_at(proxy.port).items():
            monkeypatch.setenv(key, value)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setenv("PAWPRINT_CACHE", str(tmp_path / "the cache"))
        command = ["--data", str(photos(per_class=8)), "--name", "shapes", "--out", place]
        command += ["--size", "32", "--backbone", "tiny", "--weights", "none", "--epochs", "1"]
        proxy.reset(limit=0)
        assert train(command) == 75  # before the training
        assert "is kept" not in capsys.readouterr().err
        proxy.reset(limit=64 * 1024)  # less than the version
        assert train(command) == 75
        said = capsys.readouterr().err
        assert said.startswith(f"error: {place} can't be used: ") and said.count("\n") == 1
        proxy.reset()
        later = re.search(r"shapes/1 is kept in .*: publish it with models (copy .*)", said)
        assert later is not None and open_repository(place).names() == []
        models(shlex.split(later[1]))
        repository = open_repository(place)
        (version,) = repository.versions("shapes")
        assert repository.verify("shapes", version) == []

        write = Bucket.write

        def taken_unheard(bucket: Bucket, key: str, data: bytes) -> None:
            write(bucket, key, data)
            if key.endswith("/manifest.json"):
                proxy.reset(limit=0)  # as if the answer to that had not come
                write(bucket, key, data)

        with monkeypatch.context() as patch:
            patch.setattr(Bucket, "write", taken_unheard)
            assert train([*command, "--seed", "1"]) == 75
        proxy.reset()
        later = re.search(r"publish it with models (copy .*)", capsys.readouterr().err)
        there = repository.versions("shapes")
        assert later is not None and len(there) == 2
        models(shlex.split(later[1]))
        assert repository.versions("shapes") == there
