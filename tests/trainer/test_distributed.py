"""Several processes learn what one would, and one that dies costs no more than its epoch."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from serving.repository import Repository
from tests.trainer.conftest import MakePhotos, write_photos
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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Where one process, and where two, left what they learnt."""
    folder = tmp_path_factory.mktemp("many")
    photos = write_photos(folder / "photos", 11, ("discs", "squares"))  # 16 in 2 batches, 4 val
    for name, launcher in (("one", []), ("two", TORCHRUN)):
        (folder / name).mkdir()
        done = run(*launcher, ROOT / "tests" / "trainer" / "one_of_many.py", photos, folder / name)
        assert done.returncode == 0, done.stderr
    return folder / "one", folder / "two"


def read(trained: tuple[Path, Path], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    alone, together = (torch.load(folder / f"{name}.pth") for folder in trained)
    assert (alone["size"], together["size"]) == (1, 2)
    return alone, together


@pytest.mark.parametrize("name", ["tiny", "timm"])
def test_two_processes_learn_what_one_does(trained: tuple[Path, Path], name: str):
    """Batch norm, clipping, metrics and weights: all as in one process with the same batches."""
    alone, together = read(trained, name)
    assert (alone["val"], together["val"]) == ((4, 4), (2, 4))
    assert np.array(together["history"]) == pytest.approx(np.array(alone["history"]), rel=2e-3)
    for key, value in alone["weights"].items():
        assert torch.allclose(together["weights"][key], value, rtol=0.02, atol=2e-3), key


def test_two_processes_learn_in_half_precision(trained: tuple[Path, Path]):
    alone, together = read(trained, "bf16")
    first, other = (np.array(each["history"])[0, 0] for each in (alone, together))
    assert other == pytest.approx(first, rel=0.05)
    assert np.isfinite(together["history"]).all()


def test_more_parts_than_a_process_has_photos_are_as_many_as_it_can_fill(
    trained: tuple[Path, Path],
):
    for each in read(trained, "parts"):
        assert np.isfinite(each["history"]).all()
    alone, together = read(trained, "parts")  # 4 parts of 2 photos, in all, and 2 of 2 in each
    assert together["history"] != alone["history"]


def test_all_go_on_from_the_checkpoint_of_the_first(trained: tuple[Path, Path]):
    """Each process has a folder of its own, and only that of the first holds a checkpoint."""
    assert not list(trained[1].glob("of-1/*.ckpt"))
    for folder in trained:
        whole, resumed = (torch.load(folder / f"{name}.pth") for name in ("whole", "stopped"))
        assert resumed["reported"] == [2, 3]
        assert resumed["history"] == whole["history"]
        for key, value in whole["weights"].items():
            assert torch.equal(resumed["weights"][key], value), key


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
