"""How batches are sized and warmed, by device."""

import pytest

from serving.cores import usable_cores
from serving.device import cuda_problem
from serving.settings import ServerSettings
from serving.wiring import batch_settings, runs_at_once, warm_sizes


@pytest.mark.parametrize(
    "pad, device, padded",
    [
        ("auto", "cpu", False),
        ("auto", "cuda", True),
        ("on", "cpu", True),
        ("off", "cuda", False),
    ],
)
def test_what_is_padded_to_is_warmed(pad: str, device: str, padded: bool) -> None:
    settings = ServerSettings(max_batch=12, pad=pad)
    sizes = (1, 2, 4, 8, 12)
    assert batch_settings(settings, device).sizes == (sizes if padded else ())
    assert warm_sizes(settings, device) == (sizes if padded else (1, 12))


def test_each_size_is_warmed_once() -> None:
    assert warm_sizes(ServerSettings(max_batch=8), "cuda") == (1, 2, 4, 8)


def test_a_gpu_runs_one_large_batch_and_a_cpu_a_small_one_on_each_core() -> None:
    settings = ServerSettings()
    assert batch_settings(settings, "cpu").max_batch == 2
    assert batch_settings(settings, "cuda").max_batch == 16
    short = ServerSettings(max_queue=1, max_photos=1)
    assert [batch_settings(short, device).max_batch for device in ("cpu", "cuda")] == [1, 1]
    assert runs_at_once(ServerSettings(device="cpu")) == usable_cores()
    assert runs_at_once(settings) == (usable_cores() if cuda_problem() else 1)
