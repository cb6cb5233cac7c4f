"""A teacher: what the loss is, and that a net learns from one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from serving.repository import Repository
from tests.tiny import build_version, golden_of, softmax
from tests.trainer.conftest import MakePhotos
from tests.trainer.test_training import Run
from trainer.backbones import build, version_state
from trainer.console import Console
from trainer.defaults import with_defaults
from trainer.distributed import ALONE
from trainer.features import plain
from trainer.losses import make_distillation, make_loss
from trainer.preparing import prepare
from trainer.teacher import Teacher
from trainer.train import main

SCRATCH = ("--backbone", "tiny", "--weights", "none", "--size", "32", "--epochs", "1")

LABELS = ("discs", "squares")


@pytest.mark.parametrize("weights", [None, (0.5, 3.0, 1.0, 2.0)])
def test_the_loss_is_that_of_hinton(weights: tuple[float, ...] | None):
    generator = np.random.default_rng(0)
    ours, theirs = generator.normal(0, 3, (2, 5, 4))
    labels = np.array([0, 1, 2, 3, 0])
    share, t = 0.7, 3.0
    p, q = softmax(theirs / t), softmax(ours / t)
    counts = np.ones(5) if weights is None else np.array(weights)[labels]
    soft = np.sum(p * (np.log(p) - np.log(q)), axis=1) @ counts
    hard = -np.log(softmax(ours)[np.arange(5), labels]) @ counts
    each = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    loss = make_distillation(make_loss(each, 0.0), each, share, t)
    got = loss(torch.from_numpy(ours), torch.from_numpy(labels), torch.from_numpy(theirs))
    assert float(got) == pytest.approx(share * t * t * soft + (1 - share) * hard)


def test_at_the_ends_it_is_one_of_the_two():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    weights = torch.tensor([1.0, 2.0, 3.0])
    hard = make_loss(weights, 0.1)
    untaught = make_distillation(hard, weights, 0.0, 4.0)(logits, labels, torch.randn(6, 3))
    assert torch.allclose(untaught, hard(logits, labels, None))
    of_itself = make_distillation(hard, weights, 1.0, 4.0)(logits, labels, logits + 5)
    assert float(of_itself) == pytest.approx(0.0, abs=1e-5)


class Brightness(nn.Module):
    """Says class 0 of what is brighter than half, by how much; has seen no label."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(images.shape[-1])
        bright = images.mean(dim=(1, 2, 3)) - 0.5
        return torch.stack([30 * bright, -30 * bright], dim=1)


def test_a_net_learns_what_its_teacher_says_and_not_the_labels(photos: MakePhotos):
    run = Run(photos, "tiny", per_class=20, thaw=1.0, teacher_share=1.0, teacher_temperature=1.0)
    run.teacher = Teacher(name="bright/1", net=Brightness(), size=40, split={}, digest="")
    learner = run.learner()
    everything = list(range(len(run.data.splits["train"])))
    losses = [
        learner.learn(everything, view=i % 2, rate=3e-3, step=i, progress=0.0)[0] for i in range(30)
    ]
    assert losses[-1] < losses[0] / 3
    seen = [photo for split in run.data.splits.values() for photo in split]
    images, labels = plain(run.data.squares, seen), torch.tensor([photo.label for photo in seen])
    said = Brightness()(images).argmax(dim=1)
    learnt = run.classifier.eval()(images).argmax(dim=1)
    agreed, right = (float((said == other).float().mean()) for other in (learnt, labels))
    assert agreed >= 0.75 and agreed > right + 0.2
    assert run.teacher.net.sizes[0] == 40, "a teacher sees pictures of the size it knows"
    assert len(run.teacher.net.sizes) == 2, "each view of a photo is looked at once"


def publish_teacher(models: Path) -> None:
    """large/1, whose weights are drawn."""
    net = build("tiny", 2, 32)
    weights, images = save(version_state(net)), golden_of()["images"]
    with torch.no_grad():
        said = net.eval()(torch.from_numpy(images).permute(0, 3, 1, 2) / 255).numpy()
    golden = {"images": images, "logits": said, "probabilities": softmax(said)}
    known = {label: [f"train/{label}/{i:03}.jpg" for i in range(6)] for label in LABELS}
    split = json.dumps({"train": known, "val": {}, "test": {}}).encode()
    extra = {"weights.safetensors": weights, "split.json": split}
    build_version(models, "large", LABELS, golden=golden, extra_files=extra)


def test_a_published_version_teaches_and_the_manifest_says_so(photos: MakePhotos, tmp_path, capsys):
    folder, models = photos(per_class=6), tmp_path / "models"
    publish_teacher(models)
    out = ("--out", str(models), *SCRATCH)
    assert main(["--data", str(folder), "--name", "small", "--teacher", "large", *out]) == 0
    assert (
        "2 of 2 test photos have the content or the names of photos that the teacher large/1 learnt"
        in " ".join(capsys.readouterr().out.split())
    )
    configuration = Repository(models).manifest("small", 1).configuration
    assert configuration["teacher"] == "large/1" and configuration["teacher_share"] == 0.9

    other = photos("other", labels=("discs", "stars"))
    capsys.readouterr()
    assert main(["--data", str(other), "--name", "x", "--teacher", "large/1", *out]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: the teacher large/1 knows other labels") and "'stars'" in said
    assert main(["--data", str(folder), "--name", "x", "--teacher", "huge", *out]) == 2
    assert "huge" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [("--mixup", "0.2"), ("--cutmix", "1"), ("--adversarial", "fast@2/255")]
)
def test_what_a_teacher_can_not_see_is_refused(photos: MakePhotos, capsys, flags):
    arguments = ("--data", str(photos(per_class=4)), "--teacher", "large", *SCRATCH, *flags)
    assert main(arguments) == 2
    assert "a teacher says what it sees" in capsys.readouterr().err


def test_the_checkpoint_of_a_training_by_another_teacher_is_another(photos: MakePhotos, tmp_path):
    """One of the same name and number, in another repository."""
    data, found = str(photos(per_class=6)), []
    for seed, place in ((1, "one"), (2, "other"), (1, "copy")):
        torch.manual_seed(seed)
        publish_teacher(tmp_path / place)
        flags = {"data": data, "name": "small", "teacher": "large", "out": str(tmp_path / place)}
        config = with_defaults({**flags, "backbone": "tiny", "weights": "none", "size": 32})
        run = prepare(config, Console(to_stderr=True, silent=True), ALONE)
        assert run.checkpoints is not None
        found.append(run.checkpoints.path.name)
    one, other, copy = found
    assert one == copy != other
