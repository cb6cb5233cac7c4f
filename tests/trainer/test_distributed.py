"""Several processes learn what one would, and one that dies costs no more than its epoch."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from serving.repository import Repository
from tests.trainer.conftest import MakePhotos
from trainer.distributed import World

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(*arguments: object, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.mark.parametrize("count", [1, 7, 8])
def test_shares_are_disjoint_and_together_all(count: int):
    items = list(range(count))
    for size in (1, 2, 3):
        shares = [World(rank, size).share(items) for rank in range(size)]
        assert [item for share in shares for item in share] == items
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_two_processes_learn_what_one_does(photos: MakePhotos, tmp_path: Path):
    """Batch norm, clipping, metrics and weights: all as in one process with the same batches."""
    folder = photos(per_class=11)  # 16 train photos in 2 batches, 4 val photos
    script = ROOT / "tests" / "trainer" / "one_of_many.py"
    one = run(script, folder, tmp_path / "one.json", 1)
    assert one.returncode == 0, one.stderr
    two = run(*TORCHRUN, script, folder, tmp_path / "two.json", 1)
    assert two.returncode == 0, two.stderr
    alone, together = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "two"))
    assert (alone["size"], together["size"]) == (1, 2)
    assert alone["val"] == together["val"] == len(alone["mine"]) == 2 * len(together["mine"])
    assert np.array(together["history"]) == pytest.approx(np.array(alone["history"]), rel=2e-3)
    states = [torch.load(tmp_path / f"{n}.pth", weights_only=True) for n in ("one", "two")]
    for name, value in states[0].items():
        assert torch.allclose(states[1][name], value, rtol=0.02, atol=2e-3), name


def test_processes_that_a_scheduler_starts_need_no_torchrun():
    """RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are all that deploy/training gives them."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        free_port = one.getsockname()[1]
    code = "from trainer.distributed import joined\nwith joined() as w: print(w.rank, w.sum(1, 2))"
    given = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **given, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert [one.communicate(timeout=120)[0] for one in both] == ["0 [2.0, 4.0]\n", "1 [2.0, 4.0]\n"]


@pytest.mark.slow
def test_a_process_that_dies_is_started_again_and_one_version_is_published(
    photos: MakePhotos, tmp_path: Path
):
    """The second process kills itself once, in epoch 3; torchrun starts both again."""
    folder = photos(per_class=12)
    script = tmp_path / "mortal.py"
    script.write_text(
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "import trainer.training as training\n"
        "from trainer.train import main\n"
        "seed_epoch, died = training.seed_epoch, Path(sys.argv.pop(1))\n"
        "def mortal(seed, epoch, rank, adversary):\n"
        "    if epoch == 3 and rank == 1 and not died.exists():\n"
        "        died.touch()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    seed_epoch(seed, epoch, rank, adversary)\n"
        "training.seed_epoch = mortal\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = run(
        *(*TORCHRUN, "--max-restarts", 1, script, tmp_path / "died", "--data", folder),
        *("--name", "shapes", "--out", tmp_path / "models", "--backbone", "tiny", "--size", 32),
        *("--weights", "none", "--epochs", 5, "--batch-size", 8, "--checkpoints", tmp_path / "c"),
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died").exists()
    epochs = [int(n) for n in re.findall(r"^Epoch (\d+)/5", done.stdout, re.MULTILINE)]
    assert epochs == [0, 1, 2, 3, 4, 5]
    repository = Repository(tmp_path / "models")
    assert repository.versions("shapes") == [1] and repository.verify("shapes", 1) == []
