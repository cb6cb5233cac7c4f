"""Threads are as many as cores that may be used."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from serving import cores
from tests.tiny import tiny_model
from trainer.onnx_runner import OnnxRunner, batch_for
from trainer.threads import keep_to_cores, onnx_threads


@pytest.fixture
def quota_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a container with `cpu: 1`: the machine's cores are all there to see."""
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "self").write_text("0::/\n")
    monkeypatch.setattr(cores, "CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(cores, "CGROUP_OF_SELF", tmp_path / "self")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_quota_of_cores_counts(quota_of_one: None) -> None:
    torch.set_num_threads(4)
    keep_to_cores()
    assert torch.get_num_threads() == 1
    assert onnx_threads() == (1 if (os.cpu_count() or 1) > 1 else 0)


def test_fewer_threads_that_were_asked_for_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.threads.usable_cores", lambda: 8)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # as torchrun does
        keep_to_cores()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_processes_that_torchrun_starts_here_share_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At most as many batches run at once in all of them as there are cores; where the first runs
    alone, as it publishes, it has them all."""
    running, most, lock = [0], [0], threading.Lock()

    class Session(onnxruntime.InferenceSession):
        def run(self, *given: object) -> object:
            with lock:
                running[0] += 1
                most[0] = max(most[0], running[0])
            try:
                everyone.wait()
                return super().run(*given)
            finally:
                with lock:
                    running[0] -= 1

    for place in ("trainer.threads", "trainer.onnx_runner"):
        monkeypatch.setattr(f"{place}.usable_cores", lambda: 8)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    model = tiny_model().SerializeToString()
    images = np.zeros((64, 32, 32, 3), np.uint8)
    for processes, share in ((1, 8), (2, 4), (16, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        for beside_others, expected in ((True, share), (False, 8)):
            everyone = threading.Barrier(expected)  # so many do run at once
            most[0] = 0
            OnnxRunner(model, beside_others=beside_others).run(images)
            assert most[0] == expected


def test_each_core_has_a_share_of_the_pictures_and_many_cores_need_no_more_memory() -> None:
    """32 are decoded at a time."""
    cores = (1, 2, 8, 11, 16, 32, 64)
    assert [batch_for(32, each) for each in cores] == [4, 4, 4, 3, 2, 1, 1]
    assert [batch_for(1000, each) for each in cores] == [4, 4, 4, 3, 2, 1, 1]
    assert [batch_for(5, each) for each in cores] == [4, 3, 1, 1, 1, 1, 1]
