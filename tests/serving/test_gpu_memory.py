"""Memory of GPUs in the metrics: where there is a GPU, and nowhere else."""

import shutil
import subprocess

import pytest
from prometheus_client import generate_latest

from serving.edge import Edge, EdgeLimits
from serving.gpu_memory import gpu_memory
from serving.metrics import Metrics
from serving.troubles import Troubles

LIMITS = EdgeLimits(max_message_bytes=1, max_calls=1, max_streams=1, max_stream_in_flight=1)


async def test_the_metrics_have_it_exactly_where_there_is_a_gpu() -> None:
    metrics = Metrics()
    metrics.watch(Edge(LIMITS), {}, Troubles())
    text = generate_latest(metrics.registry).decode()
    memory = gpu_memory()
    assert text.count('pawprint_gpu_memory_bytes{gpu="') == 2 * len(memory or [])
    assert ("pawprint_gpu_memory_bytes" in text) == (memory is not None)


def test_it_is_what_nvidia_smi_says() -> None:
    memory = gpu_memory()
    if memory is None or shutil.which("nvidia-smi") is None:
        pytest.skip("no GPU, or no nvidia-ml-py, here")
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    totals = [int(line) for line in done.stdout.split()]
    assert [round(total / 2**20) for _, total in memory] == pytest.approx(totals, abs=2)
    assert all(0 < used < total for used, total in memory)
