"""Several processes learn what one would, and one that dies costs no more than its epoch."""

import csv
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from serving.errors import InvalidRequest
from serving.repository import Repository
from tests.commands import run_python
from tests.conftest import ROOT
from tests.trainer.conftest import MakePhotos, write_photos
from tests.trainer.processes import together
from trainer.backbones import build, version_state
from trainer.distributed import SyncedBatchNorm2d, World, require_same_devices
from trainer.errors import FailedCheck
from trainer.train import main

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(*arguments: object, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return run_python(*arguments, env=environment, timeout=timeout)


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
        assert "find_unused_parameters" not in done.stderr  # what is to thaw is looked for by none
    return folder / "one", folder / "two"


def read(trained: tuple[Path, Path], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    alone, together = (torch.load(folder / f"{name}.pth") for folder in trained)
    assert (alone["size"], together["size"]) == (1, 2)
    return alone, together


@pytest.mark.parametrize("name", ["tiny", "timm", "parts", "normed parts", "gradual"])
def test_two_processes_learn_what_one_does(trained: tuple[Path, Path], name: str):
    """Batch norm, clipping, metrics and weights: all as in one process with the same batches."""
    alone, together = read(trained, name)
    assert (alone["val"], together["val"]) == ((4, 4), (2, 4))
    assert np.array(together["history"]) == pytest.approx(np.array(alone["history"]), rel=2e-3)
    for key, value in alone["weights"].items():
        assert torch.allclose(together["weights"][key], value, rtol=0.02, atol=2e-3), key
    assert together["modules"] == alone["modules"]  # those of other classes aren't folded


def test_two_processes_learn_in_half_precision(trained: tuple[Path, Path]):
    alone, together = read(trained, "bf16")
    first, other = (np.array(each["history"])[0, 0] for each in (alone, together))
    assert other == pytest.approx(first, rel=0.05)
    assert np.isfinite(together["history"]).all()


def test_features_of_all_processes_are_kept_even_where_one_has_no_photo(
    trained: tuple[Path, Path],
):
    alone, together = (torch.load(folder / "features.pth") for folder in trained)
    assert alone["kept"] == together["kept"] == [1, 6]
    assert torch.allclose(together["features"], alone["features"], rtol=1e-4, atol=1e-5)


def test_a_batch_norm_that_can_not_be_synced_is_refused():
    with pytest.raises(InvalidRequest, match="has a BatchNorm1d, whose statistics can't be"):
        World(0, 2).wrap(torch.nn.Sequential(torch.nn.BatchNorm1d(3)))


@pytest.mark.parametrize(
    "kind", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}]
)
def test_a_channel_that_hardly_varies_is_normalised_as_by_one_process(kind: dict[str, Any]):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        generator = torch.Generator().manual_seed(0)
        inputs = 100 + 0.01 * torch.randn(8, 3, 16, 16, generator=generator)
        one, synced = torch.nn.BatchNorm2d(3, **kind), SyncedBatchNorm2d(3, **kind)
        for parameter in one.parameters():
            torch.nn.init.normal_(parameter, generator=generator)
        synced.load_state_dict(one.state_dict())
        for shifted in (inputs, inputs + 1):
            assert torch.allclose(synced(shifted), one(shifted), atol=5e-3)
        for name, value in one.state_dict().items():
            assert torch.allclose(synced.state_dict()[name], value, rtol=1e-4), name
        assert torch.allclose(synced.eval()(inputs), one.eval()(inputs), atol=5e-3)
    finally:
        dist.destroy_process_group()


def test_all_go_on_from_the_checkpoint_of_the_first(trained: tuple[Path, Path]):
    """Each process has a folder of its own, and only that of the first holds a checkpoint."""
    assert not list(trained[1].glob("of-1/*.ckpt"))
    for folder in trained:
        whole, resumed = (torch.load(folder / f"{name}.pth") for name in ("whole", "stopped"))
        assert resumed["reported"] == [2, 3]
        assert resumed["history"] == whole["history"]
        for key, value in whole["weights"].items():
            assert torch.equal(resumed["weights"][key], value), key


class Watched(dist.HashStore):
    """A store that says when it was first asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()

    def check(self, keys: list[str]) -> bool:
        self.asked.set()
        return super().check(keys)


def test_the_others_wait_for_the_first_and_it_for_their_having_seen_it():
    store, order = Watched(), []

    def wait() -> None:
        World(1, 2, store).after_leader("all")
        order.append("other")

    other = threading.Thread(target=wait, daemon=True)
    other.start()
    assert store.asked.wait(60)
    order.append("first")
    World(0, 2, store).after_leader("all")
    assert store.check(["pawprint/after/all/1"])
    other.join()
    assert order == ["first", "other"]


def test_who_waits_for_a_first_process_that_has_gone_says_so():
    class Gone(dist.HashStore):
        def check(self, keys: list[str]) -> bool:
            raise dist.DistNetworkError("Connection reset by peer")

    with pytest.raises(FailedCheck, match="the first process has ended"):
        World(1, 2, Gone()).after_leader("all")


@pytest.mark.parametrize(("other", "refused"), [("GPU", 0), ("CPU", 2)])
def test_processes_of_which_some_have_a_gpu_end_before_they_wait(other: str, refused: int):
    store, said = dist.HashStore(), []

    def ask(rank: int, device: str) -> None:
        try:
            require_same_devices(World(rank, 2, store), store, device)
        except InvalidRequest as error:
            said.append(str(error))

    asking = threading.Thread(target=ask, args=(1, other), daemon=True)
    asking.start()
    ask(0, "GPU")
    asking.join(60)
    assert len(said) == refused
    assert all(each.startswith("process 1 has no GPU that torch can use") for each in said)


def test_a_later_attempt_is_told_what_the_earlier_one_has_done():
    job = dist.HashStore()
    assert World(of_job=job).told("published") is None
    World(of_job=job).tell_later("published", "models/x/1")
    assert World(of_job=job).told("published") == "models/x/1"
    assert World(of_job=job).told("other") is None


def test_processes_that_a_scheduler_starts_need_no_torchrun():
    """RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are all that deploy/training gives them."""
    code = "from trainer.distributed import joined\nwith joined() as w: print(w.rank, w.sum(1, 2))"
    both = together(*2 * [["-c", code]])
    assert [one.communicate(timeout=120)[0] for one in both] == ["0 [2.0, 4.0]\n", "1 [2.0, 4.0]\n"]


def test_processes_with_other_photos_end_before_they_train(photos: MakePhotos, tmp_path: Path):
    """One would learn from what the first tests on."""
    folders = [photos(name, per_class=6) for name in ("here", "there")]
    (folders[1] / "discs" / "003.jpg").unlink()
    settings = ["--name", "shapes", "--out", str(tmp_path / "models"), "--epochs", "1"]
    net = ["--backbone", "tiny", "--weights", "none", "--size", "32", "--checkpoints", "none"]
    train = [["-m", "trainer.train", "--data", folder, *settings, *net] for folder in folders]
    for process in together(*train):
        _, said = process.communicate(timeout=120)
        assert process.returncode == 2
        assert "error: the photos of process 1 are not those of process 0" in said


def test_processes_with_other_settings_end_before_they_open_a_photo(
    photos: MakePhotos, tmp_path: Path
):
    train = [
        *("-m", "trainer.train", "--data", photos(per_class=6), "--name", "shapes"),
        *("--out", tmp_path / "models", "--backbone", "tiny", "--size", 32, "--epochs", 1),
        *("--learning-rate", 0.001, "--weight-decay", 0.01, "--thaw", 1, "--weights", "none"),
    ]
    own = ["--name", "forms", "--weights", "tiny.pth"]
    own += ["--learning-rate", "0.003"]  # none would see
    own += ["--checkpoints", "none"]  # and wait for ever
    differ = (
        "checkpoints is '', there 'none'; learning_rate is 0.001, there 0.003; "
        "name is 'shapes', there 'forms'; weights is 'none', there 'pre-trained';"
    )
    for process in together(train, [*train, *own]):
        out, said = process.communicate(timeout=120)
        assert process.returncode == 2 and "Opening photos" not in out
        assert f"error: the settings of process 1 are not those of process 0: {differ}" in said


def test_processes_with_other_weights_end_before_they_train(photos: MakePhotos, tmp_path: Path):
    train = ["-m", "trainer.train", "--data", photos(per_class=6), "--out", tmp_path / "models"]
    nets = [tmp_path / "here.pth", tmp_path / "there.pth"]
    for net in nets:
        torch.save(version_state(build("tiny", 2, 32)), net)
    both = together(
        *([*train, "--backbone", "tiny", "--size", 32, "--weights", net] for net in nets)
    )
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 2 and ") of process 1 are not those of process 0" in said


@pytest.mark.slow
def test_the_teacher_is_the_version_that_the_first_process_finds(
    photos: MakePhotos, tmp_path: Path
):
    """Between the processes' questions a version may be published. This second one finds only the
    later: it must not learn from that, and the first must not wait for it."""
    train = [
        *("-m", "trainer.train", "--data", photos(per_class=6), "--backbone", "tiny"),
        *("--size", "32", "--weights", "none", "--epochs", "1"),
    ]
    first, other = tmp_path / "first", tmp_path / "other"
    assert main([*map(str, train[2:]), "--name", "large", "--out", str(first)]) == 0
    shutil.copytree(first, other)
    assert main([*map(str, train[2:]), "--name", "large", "--out", str(other)]) == 0
    shutil.rmtree(other / "large/1")
    taught = [*train, "--name", "small", "--teacher", "large", "--out"]
    both = together([*taught, first], [*taught, other])
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [1, 2]
    assert "error: another process has ended or can't be reached: see what it said" in said[0]
    assert "Traceback" not in said[0] and "model 'large' has no version 1" in said[1]


def test_processes_with_other_teachers_of_one_number_end_before_they_train(
    photos: MakePhotos, tmp_path: Path
):
    """As where each machine has a repository of its own: each would learn from another net."""
    train = [
        *("-m", "trainer.train", "--data", photos(per_class=6), "--backbone", "tiny"),
        *("--size", "32", "--weights", "none", "--epochs", "1"),
    ]
    places = [tmp_path / "first", tmp_path / "other"]
    for seed, out in enumerate(places):
        large = ["--name", "large", "--seed", seed, "--out", out]
        assert main([*map(str, train[2:]), *map(str, large)]) == 0
    taught = [*train, "--name", "small", "--teacher", "large", "--out"]
    both = together(*([*taught, out] for out in places))
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 2
        assert "error: the teacher large/1 of process 1 is not that of process 0" in said


def test_the_first_process_alone_exports_writes_and_has_a_cache(photos: MakePhotos, tmp_path: Path):
    torch.manual_seed(0)  # of one net in 30 all logits are so small that rounding is no small part
    torch.save(version_state(build("tiny", 2, 32)), tmp_path / "tiny.pth")
    train = [
        *("-m", "trainer.train", "--data", photos(per_class=6), "--name", "shapes"),
        *("--backbone", "tiny", "--weights", tmp_path / "tiny.pth", "--size", 32, "--epochs", 0),
    ]
    first, other = tmp_path / "first", tmp_path / "other"
    places = (["--out", place / "models", "--cache", place / "cache"] for place in (first, other))
    both = together(*([*train, *own] for own in places))
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    kept = sorted(file.name.partition("-")[0] for file in (first / "cache").iterdir())
    assert kept == ["features", "graph"] and not other.exists()
    assert Repository(first / "models").versions("shapes") == [1]


@pytest.mark.slow
def test_two_processes_doubt_and_drop_the_labels_that_one_does(tmp_path: Path):
    generator = np.random.default_rng(0)
    for number in range(48):
        red = number % 2 == 0
        label = "red" if red != (number in (10, 11, 30, 31)) else "blue"
        blocks = generator.integers(0, 80, (6, 6, 3), np.uint8)
        blocks[:, :, 0 if red else 2] += 170
        picture = Image.fromarray(blocks).resize((48, 48), Image.Resampling.BICUBIC)
        (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "photos" / label / f"{number:02}.png")
    torch.manual_seed(0)
    torch.save(version_state(build("tiny", 2, 32)), tmp_path / "tiny.pth")
    train = [
        *("--data", tmp_path / "photos", "--name", "shades", "--backbone", "tiny", "--size", 32),
        *("--weights", tmp_path / "tiny.pth", "--epochs", 1, "--batch-size", 8),
        *("--drop-label-errors", "--out"),
    ]
    assert main([*map(str, train), str(tmp_path / "one")]) == 0
    done = run(*TORCHRUN, "-m", "trainer.train", *train, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    alone, together = (
        [
            Repository(tmp_path / name).versions("shades"),
            sorted(named_wrong(tmp_path / name / "shades/1")),
            (tmp_path / name / "shades/1/split.json").read_text(),
        ]
        for name in ("one", "two")
    )
    assert together == alone
    versions, named, split = alone
    assert versions == [1]
    paths = [path for path, *_ in named]
    assert paths == ["blue/10.png", "blue/30.png", "red/11.png", "red/31.png"]
    dropped = [path for path, _, dropped in named if dropped == "yes"]
    assert dropped and not any(path in split for path in dropped)


def named_wrong(version: Path) -> list[tuple[str, str, str]]:
    """Path, split, and whether it was dropped, of each whose label is probably wrong."""
    with (version / "label_errors.csv").open(newline="") as file:
        return [(row["path"], row["split"], row["dropped"]) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_a_first_process_that_dies_while_it_publishes_is_started_again_with_the_others(
    photos: MakePhotos, tmp_path: Path
):
    """As pods of an indexed Job: one that has ended well is never started again."""
    train = [
        *("-m", "trainer.train", "--data", photos(per_class=12), "--name", "shapes"),
        *("--out", tmp_path / "models", "--backbone", "tiny", "--weights", "none", "--size", 32),
        *("--epochs", 1, "--batch-size", 8, "--checkpoints", tmp_path / "c"),
    ]
    first, other = together(train, train)
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith("Exporting"):
            first.kill()
            break
    first.communicate()
    _, said = other.communicate(timeout=60)
    assert other.returncode == 1 and "error: the first process has ended" in said
    again = together(train, train)
    assert [one.communicate(timeout=120)[1] for one in again] == ["", ""]
    assert [one.returncode for one in again] == [0, 0]
    assert Repository(tmp_path / "models").versions("shapes") == [1]


MORTAL = """
import os, signal, sys
from pathlib import Path
from trainer.train import main

died = Path(sys.argv.pop(1))
def die_once():
    if not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def started_again(
    script: str, tmp_path: Path, *arguments: object
) -> subprocess.CompletedProcess[str]:
    """Two processes that train the model `shapes` in tmp_path / "models" by a script, in which
    `die_once()` kills one of them, so that torchrun starts both again; they end well."""
    mortal = tmp_path / "mortal.py"
    mortal.write_text(MORTAL + script)
    done = run(
        *(*TORCHRUN, "--max-restarts", 1, mortal, tmp_path / "died", *arguments),
        *("--name", "shapes", "--out", tmp_path / "models", "--backbone", "tiny", "--size", 32),
        *("--weights", "none"),
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died").exists()
    return done


@pytest.mark.slow
def test_a_process_that_dies_is_started_again_and_one_version_is_published(
    photos: MakePhotos, tmp_path: Path
):
    """The second process kills itself once, in epoch 3; torchrun starts both again."""
    done = started_again(
        "import trainer.training as training\n"
        "seed_epoch = training.seed_epoch\n"
        "def mortal(seed, epoch, rank, adversary):\n"
        "    if epoch == 3 and rank == 1:\n"
        "        die_once()\n"
        "    seed_epoch(seed, epoch, rank, adversary)\n"
        "training.seed_epoch = mortal\n"
        "sys.exit(main(sys.argv[1:]))\n",
        tmp_path,
        *("--data", photos(per_class=12), "--epochs", 5),
        *("--batch-size", 8, "--checkpoints", tmp_path / "c"),
    )
    epochs = [int(n) for n in re.findall(r"^Epoch (\d+)/5", done.stdout, re.MULTILINE)]
    assert epochs == [0, 1, 2, 3, 4, 5]
    repository = Repository(tmp_path / "models")
    assert repository.versions("shapes") == [1] and repository.verify("shapes", 1) == []


@pytest.mark.slow
def test_a_first_process_that_dies_as_its_version_appears_publishes_no_second(
    photos: MakePhotos, tmp_path: Path
):
    """Without a checkpoint: the store of the job knows of the version before it is there."""
    done = started_again(
        "from serving.repository import Repository\n"
        "Repository.describe_to_triton = lambda *_: die_once()\n"
        "sys.exit(main(sys.argv[1:]))\n",
        tmp_path,
        *("--data", photos(per_class=12), "--epochs", 1, "--checkpoints", "none"),
    )
    assert "This has been published before it was started again" in done.stdout
    assert Repository(tmp_path / "models").versions("shapes") == [1]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_when_all_is_done_costs_no_second_version(
    photos: MakePhotos, tmp_path: Path, rank: int
):
    """torchrun starts all again, whose checkpoint is gone by then."""
    done = started_again(
        "status = main(sys.argv[1:])\n"
        f"if os.environ['RANK'] == '{rank}':\n"
        "    die_once()\n"
        "sys.exit(status)\n",
        tmp_path,
        *("--data", photos(per_class=12), "--epochs", 1),
    )
    assert "This has been published before it was started again" in done.stdout
    assert Repository(tmp_path / "models").versions("shapes") == [1]
