"""A training that was stopped goes on to the same end, and says clearly where it can't."""

import dataclasses
import errno
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from serving.errors import InvalidRequest, Unavailable
from serving.repository import Repository
from tests.conftest import ROOT
from tests.trainer.conftest import MakePhotos
from tests.trainer.test_training import Run
from tests.warm import run_warm
from trainer.averaging import MovingAverage
from trainer.backbones import build
from trainer.checkpoint import Checkpoint, Checkpoints
from trainer.errors import FailedCheck
from trainer.tracking import tracked
from trainer.train import main
from trainer.training import Epoch


def checkpoints(folder: Path, **settings: object) -> Checkpoints:
    return Checkpoints(folder, "x", {"seed": 0, "learning_rate": 0.01, **settings})


class Stop(Exception):
    """Ends a training as a signal would, at the end of an epoch."""


def take_room(run: Run, room: int) -> None:
    """As on a GPU whose memory runs out at the net's end with more than `room` photos: batch norms
    before it have seen them."""

    def end(head: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if head.training and len(inputs[0]) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    run.classifier.head.register_forward_pre_hook(end)


@pytest.mark.parametrize(
    ("settings", "room"),
    [
        ({}, 8),
        ({"dropout": 0.5}, 4),
        ({"dropout": 0.5, "mixup": 0.4, "ema": 0.9, "optimizer": "momentum", "gradual": True}, 8),
        ({"amp": "fp16", "wise_ft": True}, 8),
        ({"adversarial": "fast@4/255"}, 8),
    ],
)
def test_resumed_it_ends_in_the_same_weights(
    photos: MakePhotos, tmp_path: Path, settings: dict[str, object], room: int
):
    settings = {"epochs": 4, "batch_size": 8, "learning_rate": 3e-3, **settings}
    whole = Run(photos, "tiny", **settings)
    take_room(whole, room)
    expected = whole()

    stopped = Run(photos, "tiny", **settings)
    take_room(stopped, room)
    stopped.checkpoints = checkpoints(tmp_path)

    class Reported(list[Epoch]):
        def append(self, epoch: Epoch) -> None:
            super().append(epoch)
            if epoch.epoch == 3:  # the checkpoint is that of epoch 2
                raise Stop

    stopped.reported = Reported()
    with pytest.raises(Stop):
        stopped()
    resumed = Run(photos, "tiny", **settings)
    take_room(resumed, room)
    resumed.checkpoints = checkpoints(tmp_path)
    result = resumed()
    assert [epoch.epoch for epoch in resumed.reported] == [3, 4]
    assert result.history[1:] == expected.history[1:] and result.best.epoch == expected.best.epoch
    before, after = whole.classifier.state_dict(), resumed.classifier.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert np.array_equal(result.first_logits, expected.first_logits)


def trained_once(photos: MakePhotos, folder: Path, **settings: object) -> Run:
    run = Run(photos, "tiny", epochs=1, batch_size=8, **settings)
    run.checkpoints = checkpoints(folder)
    run()
    return run


def test_other_settings_are_refused_by_name(photos: MakePhotos, tmp_path: Path):
    trained_once(photos, tmp_path)
    with pytest.raises(InvalidRequest, match=r"learning_rate is 0.5, there 0.01; go on with"):
        checkpoints(tmp_path, learning_rate=0.5).load()
    with pytest.raises(InvalidRequest, match="ema is 0.9, there None"):
        checkpoints(tmp_path, ema=0.9).load()
    assert checkpoints(tmp_path).load() is not None


def test_that_of_another_pawprint_is_refused_whatever_its_parts(tmp_path: Path):
    other = checkpoints(tmp_path, pawprint="0.1.0, code 1", removed=1)
    other.save(state(1))
    content = torch.load(other.path) | {"accumulated": 3}
    del content["parts"]
    torch.save(content, other.path)
    with pytest.raises(InvalidRequest) as raised:
        checkpoints(tmp_path, pawprint="0.2.0, code 2", added=1).load()
    assert str(raised.value).endswith(
        "x.ckpt is of a training with other settings: pawprint is '0.2.0, code 2', there '0.1.0, "
        "code 1'; go on with those, or delete it to start anew"
    )


def test_what_is_trained_depends_on_the_code(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
):
    arguments = command(photos(per_class=10), tmp_path / "out")
    killed_in_epoch_4(arguments)
    (tmp_path / "training.py").write_text("# of another release")
    monkeypatch.setattr("trainer.software.__file__", str(tmp_path / "software.py"))
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "Starting anew: the checkpoint" in said and ": pawprint is '" in said
    assert "Epoch 1/6" in said


def test_a_damaged_checkpoint_is_named(photos: MakePhotos, tmp_path: Path):
    trained_once(photos, tmp_path)
    (path,) = tmp_path.glob("*.ckpt")
    whole = path.read_bytes()
    found = checkpoints(tmp_path).load()
    assert found is not None
    at = whole.index(found.logits["first"].numpy().tobytes())
    flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    for damaged in (whole[:-2000], flipped):
        path.write_bytes(damaged)
        with pytest.raises(InvalidRequest, match="x.ckpt can't be read; delete it to start anew"):
            checkpoints(tmp_path).load()


def test_where_there_is_no_room_the_last_checkpoint_stays(photos: MakePhotos, tmp_path: Path):
    trained_once(photos, tmp_path)
    found = checkpoints(tmp_path).load()
    assert found is not None
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # no file may be larger
    try:
        why = r"epoch 2 can't be written to .* \(File too large\)"
        with pytest.raises(Unavailable, match=rf"{why}\. .* on from the one before"):
            checkpoints(tmp_path).save(dataclasses.replace(found, epoch=2))
        told: list[str] = []  # where nobody has asked for them
        Checkpoints(tmp_path, "y", {}, tell=told.append).save(dataclasses.replace(found, epoch=2))
        assert len(told) == 1 and re.search(rf"^Warning: .*{why}; the training goes on$", told[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    again = checkpoints(tmp_path).load()
    assert again is not None and again.epoch == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["x.ckpt"]


def test_a_loss_that_is_no_number_leaves_the_best_weights(photos: MakePhotos, tmp_path: Path):
    run = Run(photos, "tiny", epochs=4, batch_size=8, learning_rate=10.0, optimizer="sgd")
    run.checkpoints = checkpoints(tmp_path)
    with torch.no_grad():
        run.classifier.head.weight *= 1e36
    with pytest.raises(FailedCheck, match=r"the loss is (nan|inf) in .* best weights so far are"):
        run()
    path = tmp_path / "x.best.safetensors"
    assert all(value.isfinite().all() for value in load_file(path).values())
    build("tiny", 2, 48, str(path))  # --weights takes them


def test_a_folder_for_checkpoints_that_is_none_is_refused_before_training(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    taken = tmp_path / "taken"
    taken.touch()
    assert main(command(photos(), tmp_path / "out", "--checkpoints", str(taken))) == 2
    said = capsys.readouterr()
    assert f"checkpoints can't be written to {taken} (File exists); give a folder" in said.err
    assert "Epoch" not in said.out


def test_a_state_from_the_cpu_goes_on_where_the_net_is():
    average = MovingAverage(nn.Linear(3, 2, device="meta"), 0.9)
    average.resume(nn.Linear(3, 2).state_dict(), 5)
    average.update()  # fails where both are not on one device
    assert average.steps == 6
    assert {value.device.type for value in average.state.values()} == {"meta"}


def command(data: Path, out: Path, *more: str) -> list[str]:
    return [
        *("--data", str(data), "--name", "shapes", "--out", str(out), "--backbone", "tiny"),
        *("--weights", "none", "--size", "32", "--epochs", "6", "--batch-size", "8", *more),
    ]


# At its end, when the checkpoint of the third is whole; the first call is of the start.
KILLED_IN_EPOCH_4 = """
import itertools, os, signal, sys
from trainer.learner import Learner
from trainer.train import main
evaluate, calls = Learner.evaluate, itertools.count()
def killed(self):
    if next(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return evaluate(self)
Learner.evaluate = killed
main(sys.argv[1:])
"""


def killed_in_epoch_4(arguments: list[str]) -> None:
    done = run_warm("-c", KILLED_IN_EPOCH_4, *arguments)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "Epoch 3/" in done.stdout and "Epoch 4/" not in done.stdout


@pytest.mark.parametrize("asked", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_killed_with_9_the_same_command_goes_on_to_the_same_version(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str], *, asked: bool
):
    data, out = photos(per_class=10), tmp_path / "killed"
    kept = tmp_path / "kept" if asked else out / ".checkpoints"
    assert main(command(data, tmp_path / "whole")) == 0
    arguments = command(data, out, *(["--checkpoints", str(kept)] if asked else []))
    killed_in_epoch_4(arguments)
    (left,) = kept.glob("shapes*.ckpt")
    content = torch.load(left, weights_only=True)
    assert content["seconds"] > 0
    torch.save({**content, "seconds": content["seconds"] + 1000}, left)
    assert Repository(out).names() == []
    capsys.readouterr()

    if asked:
        assert main([*arguments, "--learning-rate", "0.5"]) == 2
        assert "learning_rate is 0.5, there 0.003" in capsys.readouterr().err

    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "Epoch 6/6" in said and "Epoch 2/6" not in said
    whole, killed = (Repository(place).manifest("shapes", 1) for place in (tmp_path / "whole", out))
    assert killed.files["weights.safetensors"] == whole.files["weights.safetensors"]
    assert killed.training_seconds > 1000 > whole.training_seconds
    last = max((out / ".logs/shapes").iterdir())
    curves = EventAccumulator(str(last)).Reload()
    assert [scalar.step for scalar in curves.Scalars("loss/val")] == [0, 1, 2, 3, 4, 5, 6]
    assert not left.exists()


def test_trainings_that_begin_in_one_second_have_figures_of_their_own(tmp_path: Path):
    with ExitStack() as stack:
        for number in range(4):
            track = stack.enter_context(tracked(tmp_path, "shapes", pytest.fail))
            track({"loss/val": float(number)}, 0)
    found = [EventAccumulator(str(run)).Reload() for run in sorted((tmp_path / "shapes").iterdir())]
    assert sorted(run.Scalars("loss/val")[0].value for run in found) == [0, 1, 2, 3]


def test_logs_that_lead_nowhere_are_said_and_the_training_goes_on(tmp_path: Path):
    (tmp_path / "logs").symlink_to(tmp_path / "not mounted")
    said: list[str] = []
    with tracked(tmp_path / "logs", "shapes", said.append) as track:
        track({"loss/val": 1.0}, 0)
    assert len(said) == 1 and said[0].startswith("Warning: no more figures for TensorBoard")


def test_a_full_disk_ends_the_figures_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    said: list[str] = []
    of_threads: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", of_threads.append)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # no file may be larger
    try:
        with tracked(tmp_path, "shapes", said.append) as track:
            for epoch in range(3):
                track({"loss/val": 1.0}, epoch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(said) == 1 and said[0].startswith("Warning: no more figures for TensorBoard")
    assert not of_threads, "TensorBoard's own would print a traceback"


def test_a_queue_that_ctrl_c_has_broken_prints_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    of_threads: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", of_threads.append)
    with pytest.raises(KeyboardInterrupt), tracked(tmp_path, "shapes", pytest.fail) as track:
        track({"loss/val": 1.0}, 0)
        (own,) = (t for t in threading.enumerate() if type(t).__module__.startswith("tensorboard."))
        own._queue.put(0)  # no bytes, which ends it with a TypeError
        own.join(10)
        raise KeyboardInterrupt
    assert not own.is_alive() and not of_threads


def test_a_checkpoint_that_can_not_be_removed_costs_no_published_version(
    photos: MakePhotos,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    def refused(self: Checkpoints) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self.path))

    monkeypatch.setattr(Checkpoints, "delete", refused)
    assert main(command(photos(per_class=10), tmp_path / "out")) == 0
    said = capsys.readouterr().out
    assert "can't be removed (Read-only file system); delete it, or the same training" in said
    assert "test accuracy" in said and Repository(tmp_path / "out").versions("shapes") == [1]


KILLED = """
import os, signal, sys
from trainer.checkpoint import Checkpoints
from trainer.train import main

def killed(self, *published):
    noted(self, *published)
    os.kill(os.getpid(), signal.SIGKILL)

noted = {"note": Checkpoints.note, "delete": lambda self: None}[sys.argv[1]]
setattr(Checkpoints, sys.argv[1], killed)
main(sys.argv[2:])
"""


def killed_once_it_is_to(do: str, arguments: list[str]) -> None:
    """`do`: note, the last thing before the version is there, or delete, the first one after."""
    done = run_warm("-c", KILLED, do, *arguments)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("asked", [pytest.param(True, marks=pytest.mark.slow), False])
def test_killed_once_it_is_published_the_same_command_publishes_it_no_second_time(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str], *, asked: bool
):
    kept = tmp_path / "kept" if asked else tmp_path / "out/.checkpoints"
    more = ["--epochs", "1", *(["--checkpoints", str(kept)] if asked else [])]
    arguments = command(photos(), tmp_path / "out", *more)
    repository = Repository(tmp_path / "out")
    killed_once_it_is_to("note", arguments)
    assert repository.versions("shapes") == []
    killed_once_it_is_to("delete", arguments)
    published = repository.manifest("shapes", 1)
    (tmp_path / "out/shapes/config.pbtxt").unlink()  # as a kill a moment earlier would leave it
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert f"This has been published before it was stopped: {tmp_path}/out/shapes/1" in said
    assert "test accuracy" in said and "Epoch" not in said
    assert repository.versions("shapes") == [1]
    assert repository.manifest("shapes", 1) == published
    assert "with version 1" in (tmp_path / "out/shapes/config.pbtxt").read_text()
    assert list(kept.iterdir()) == []
    if asked:  # a second training, as the first one's end is known; and other things of that
        killed_once_it_is_to("delete", arguments)
        assert main([*arguments, "--max-accuracy-loss", "0.5"]) == 0
        assert repository.versions("shapes") == [1, 2, 3]


def test_what_was_noted_of_another_training_is_not_of_this_one(tmp_path: Path):
    for epoch in (1, 2):
        one = checkpoints(tmp_path)
        one.save(state(epoch))
        if epoch == 1:
            one.note(7, "digest")
            assert (again := checkpoints(tmp_path)).load() is not None
            assert again.noted() == (7, "digest")
    assert (other := checkpoints(tmp_path)).load() is not None
    assert other.noted() is None and checkpoints(tmp_path).noted() is None


def test_interrupted_once_it_is_published_it_says_so(
    photos: MakePhotos,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    def interrupted(metrics: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.pipeline.figures_on_test", interrupted)
    assert main(command(photos(), tmp_path / "out", "--epochs", "1")) == 0
    said = capsys.readouterr()
    assert "test accuracy" in said.out and said.err == ""


def test_not_asked_for_a_checkpoint_of_other_settings_is_left_and_told_of(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = command(photos(per_class=10), tmp_path / "out")
    killed_in_epoch_4(arguments)
    (left,) = (tmp_path / "out/.checkpoints").iterdir()
    assert main([*arguments, "--learning-rate", "0.001"]) == 0
    said = capsys.readouterr().out
    assert "Starting anew: the checkpoint" in said and "learning_rate is 0.001, there 0.003" in said
    assert "Epoch 1/6" in said
    assert list((tmp_path / "out/.checkpoints").iterdir()) == [left]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "Starting anew" not in said and "Epoch 2/6" not in said and "Epoch 6/6" in said


def state(epoch: int) -> Checkpoint:
    nothing: dict[str, torch.Tensor] = {}
    return Checkpoint(
        **{"epoch": epoch, "model": nothing, "optimizer": {}, "scaler": {}, "best": nothing},
        **{"average": nothing, "average_steps": 0, "parts": 1, "logits": nothing, "history": []},
    )


def test_the_seconds_of_all_processes_are_added(tmp_path: Path):
    for earlier in (0, 100, 200):
        now = Checkpoints(tmp_path, "x", {}, started=time.monotonic() - 100)
        assert (now.load() is None) == (earlier == 0)
        assert earlier <= now.earlier_s < earlier + 50
        now.save(state(1))


def test_trainings_of_one_name_have_a_file_each(tmp_path: Path):
    first, other, longer = (
        Checkpoints(tmp_path, name, {"seed": n}, tell=print)
        for name, n in (("x", 0), ("x", 1), ("x-full", 0))
    )
    for each, epoch in ((first, 6), (other, 2), (longer, 3)):
        each.save(state(epoch))
    first.delete()
    assert (found := other.load()) is not None and found.epoch == 2
    assert first.load() is None
    assert {other.path, longer.path} == set(tmp_path.iterdir())


def test_of_abandoned_trainings_the_last_one_is_kept(tmp_path: Path):
    told: list[str] = []
    each = [Checkpoints(tmp_path, "x", {"seed": n}, tell=told.append) for n in range(4)]
    for n in range(3):
        each[n].save(state(1))
        days = 86400 * (8 + n)
        os.utime(each[n].path, times=(time.time() - days,) * 2)
    each[1].save(state(2))  # still runs
    assert each[3].load() is None
    assert told == [
        f"Starting anew: the checkpoint {each[1].path} is of a training with other settings: "
        "seed is 3, there 1"
    ]
    assert {path for path in tmp_path.iterdir()} == {each[1].path}
    os.utime(each[1].path, times=(0, 0))  # of those that are as old, it is the last
    assert each[3].load() is None and each[1].path.exists()


def test_what_a_process_killed_while_it_wrote_has_left_is_removed(tmp_path: Path):
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from serving.whole_file import replaced\n"
        "with replaced(Path(sys.argv[1])) as file:\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for name in ("x.ckpt", "x-full.ckpt"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], cwd=ROOT, check=False)
    left = sorted(tmp_path.iterdir())
    assert checkpoints(tmp_path).load() is None
    assert sorted(tmp_path.iterdir()) == left, "it may be written still"
    for path in left:
        os.utime(path, (0, 0))
    assert checkpoints(tmp_path).load() is None
    assert [path.name.startswith(".x-full.ckpt-") for path in tmp_path.iterdir()] == [True]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_what_another_user_has_left_keeps_no_training_from_beginning():
    """In a folder like /tmp, where nobody can remove the files of others."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o1777)
        left = [folder / name for name in (".x.ckpt-a.tmp", *(f"x-{n:012}.ckpt" for n in range(3)))]
        for path in left:
            path.touch()
            os.utime(path, (0, 0))
        own = folder / ".x.ckpt-b.tmp"
        own.touch()
        os.utime(own, (0, 0))
        os.chown(own, 65534, 65534)
        os.seteuid(65534)
        try:
            assert checkpoints(folder).load() is None
            told: list[str] = []
            assert Checkpoints(folder, "x", {}, tell=told.append).load() is None
        finally:
            os.seteuid(0)
        assert {*folder.iterdir()} == {*left} and "Starting anew" in told[0]


def test_not_asked_for_a_damaged_checkpoint_costs_no_training(photos: MakePhotos, tmp_path: Path):
    told: list[str] = []
    damaged = Checkpoints(tmp_path, "x", {}, tell=told.append)
    damaged.path.write_bytes(b"no zip")
    assert damaged.load() is None
    assert told == [f"Starting anew: the checkpoint {damaged.path} can't be read"]


def test_not_asked_for_a_full_disk_costs_no_training(photos: MakePhotos, tmp_path: Path):
    run, told = Run(photos, "tiny", epochs=2, batch_size=8), list[str]()
    run.checkpoints = Checkpoints(tmp_path / "file" / "folder", "x", {}, tell=told.append)
    (tmp_path / "file").touch()
    run()
    assert [epoch.epoch for epoch in run.reported] == [0, 1, 2]
    assert len(told) == 2 and told[0].startswith("Warning: the checkpoint of epoch 1 can't be")


def test_none_keeps_none(photos: MakePhotos, tmp_path: Path):
    data, out = photos(per_class=10), tmp_path / "out"
    killed_in_epoch_4(command(data, out, "--checkpoints", "none"))
    assert not (out / ".checkpoints").exists() and not (ROOT / "none").exists()
