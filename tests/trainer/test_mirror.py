"""Nets that see each picture and its mirror image: the same in training's judgement, in the file
that is served, and in what is analysed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from serving.models import main as models
from serving.modelspec import Preprocessing
from serving.repository import Repository
from tests.trainer.conftest import MakePhotos
from tests.trainer.test_training import Run
from trainer.analysis.attribution import grad_cam
from trainer.analysis.differentiable import input_gradient
from trainer.backbones import Classifier, build, load_version
from trainer.config import TrainConfig
from trainer.console import Console, unshown
from trainer.data import load_data
from trainer.exporter import Exporter
from trainer.feature_cache import FeatureCache
from trainer.features import extract, in_torch
from trainer.folding import folded
from trainer.onnx_runner import OnnxRunner
from trainer.train import main
from trainer.tree import find_files

SIZE = 48
PIXELS = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)


def two_nets() -> tuple[Classifier, Classifier]:
    """With the same weights: one that sees both ways, and one that does not."""
    torch.manual_seed(0)
    single = build("tiny", 2, SIZE)
    both = build("tiny", 2, SIZE, mirror=True)
    both.load_state_dict(single.state_dict())
    return both, single


def test_the_head_gets_the_mean_of_both_features():
    both, single = two_nets()
    images = torch.rand(3, 3, SIZE, SIZE)
    with torch.inference_mode():
        ways = [single.features(seen) for seen in (images, images.flip(3))]
        assert not torch.allclose(*ways, rtol=1e-3)
        assert torch.allclose(both.features(images), (ways[0] + ways[1]) / 2, atol=1e-6)
        assert torch.allclose(both(images), both(images.flip(3)), atol=1e-6)
        assert torch.allclose(folded(both)(images), both(images), atol=1e-5)
        both.train()
        single.train()
        assert torch.equal(both.features(images), single.features(images))


def test_features_of_both_runtimes_are_one_view_that_is_the_mean_of_two(photos: MakePhotos):
    config = TrainConfig(data=str(photos()), name="x", size=SIZE)
    spec = Preprocessing(size=SIZE, interpolation="bilinear")
    data = load_data(config, find_files(Path(config.data)), spec, unshown)
    both, single = two_nets()
    members = data.splits["train"]

    def found(net: Classifier, open_net=in_torch) -> np.ndarray:
        nothing = FeatureCache(None, {}, print)
        return extract(net, members, data.squares, nothing, lambda *_: None, open_net)

    expected = found(single).mean(axis=1, keepdims=True)
    exporter = Exporter(SIZE, Console(to_stderr=False))
    for features in (found(both), found(both, exporter.features)):
        assert features == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("thaw", [0.25, 1.0])
def test_training_judges_by_both_ways(photos: MakePhotos, thaw: float):
    run = Run(photos, "resnet18", thaw=thaw, mirror=True)
    one_way = run.val_logits()
    run.classifier.mirror = True
    both = run.learner().evaluate()
    assert both == pytest.approx(run.val_logits(), rel=1e-3, abs=1e-4)
    assert both != pytest.approx(one_way, rel=1e-3, abs=1e-4)


def test_a_version_is_published_proven_and_loaded_as_one_that_sees_both_ways(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = ["--backbone", "tiny", "--weights", "none", "--epochs", "2", "--mirror", "--int8"]
    command = ["--data", photos(per_class=10), "--name", "m", "--out", tmp_path, "--size", SIZE]
    assert main([str(word) for word in [*command, *flags, "--max-accuracy-loss", 1]]) == 0
    repository = Repository(tmp_path)
    net, manifest = load_version(repository, "m", 1)
    assert manifest.configuration["mirror"] is True
    capsys.readouterr()
    models(["show", "m", "--models", str(tmp_path)])
    assert "48 x 48 pixels, bilinear, seen both ways\n" in capsys.readouterr().out
    models(["page", "--models", str(tmp_path)])
    assert "<td>tiny, seen both ways</td>" in (tmp_path / "index.html").read_text()
    turned = np.ascontiguousarray(PIXELS[:, :, ::-1])
    for variant in manifest.variants.values():
        served = OnnxRunner(repository.read_file(manifest, variant.file))
        assert served.run(PIXELS)[0] == pytest.approx(served.run(turned)[0], abs=1e-5)
    images = torch.rand(2, 3, SIZE, SIZE)
    labels = torch.tensor([0, 1])
    seen, mirrored = (
        input_gradient(net, each, lambda logits: logits[torch.arange(2), labels])[2]
        for each in (images, images.flip(3))
    )
    assert seen.abs().max() > 0
    assert torch.allclose(seen, mirrored.flip(3), atol=1e-6)


class Rows(nn.Module):
    """[n, 2]: how much red there is in the left half, and how much in the right one."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Conv2d(3, 2, 1, bias=False)
        self.map.weight.data = torch.tensor([[1.0, 0, 0], [1.0, 0, 0]]).view(2, 3, 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        left, right = self.map(images)[:, 0].chunk(2, dim=2)
        return torch.stack([left.mean(dim=(1, 2)), right.mean(dim=(1, 2))], dim=1)


def test_where_it_looks_is_told_for_the_picture_as_it_is():
    """Red in the right half counts for the left one by way of the mirror image."""
    net = Classifier(Rows(), nn.Linear(2, 2), "head", mirror=True).eval()
    with torch.no_grad():
        net.head.weight.copy_(torch.eye(2))
        net.head.bias.zero_()
    image = torch.full((1, 3, 16, 16), float(net.mean[0, 0, 0, 0]))
    image[:, 0, :, 12:] = 1.0
    (heat,) = grad_cam(net, image, torch.tensor([0]))
    assert heat[:, 12:].min() > 0.5 and heat[:, :12].max() < 0.1
