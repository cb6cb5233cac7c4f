"""The analysis on a real net and real photos, where these lie beside the checkout."""

import os
from pathlib import Path

import pytest
import torch

from serving.modelspec import Preprocessing
from serving.preprocess import preprocess
from trainer.analysis.attacks.ball import Ball
from trainer.analysis.attacks.goal import Goal
from trainer.analysis.attacks.gradient import fgsm, pgd
from trainer.analysis.attribution import grad_cam, spatial_layers
from trainer.analysis.differentiable import logits_of
from trainer.analysis.ideal import FourierRecipe, fourier
from trainer.analysis.lattice import from_uint8
from trainer.analysis.smallest import smallest_on_lattice
from trainer.folding import folded

SHARED = Path(
    os.environ.get("PAWPRINT_SHARED", Path(__file__).resolve().parents[2] / "../shared/data")
)
WEIGHTS = SHARED / "weights/mobilenet_v2.pth"
SIDE = 160

pytestmark = pytest.mark.skipif(
    not WEIGHTS.is_file(), reason=f"no weights at {WEIGHTS}; set PAWPRINT_SHARED to their folder"
)


class Normalised(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, images):
        return self.net((images - self.mean) / self.std)


@pytest.fixture(scope="module")
def model():
    torchvision = pytest.importorskip("torchvision")
    net = torchvision.models.mobilenet_v2(weights=None)
    net.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return Normalised(net).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def ready(model):
    return folded(model)


@pytest.fixture(scope="module")
def images():
    spec = Preprocessing(size=SIDE, interpolation="bilinear")
    paths = sorted((SHARED / "photos").iterdir())[:4]
    pixels = [torch.from_numpy(preprocess(path.read_bytes(), spec).copy()) for path in paths]
    return from_uint8(torch.stack(pixels))


@pytest.fixture(scope="module")
def labels(ready, images):
    return logits_of(ready, images).argmax(dim=1).clone()


def test_folding_the_batch_norms_changes_nothing(model, ready, images):
    plain, folded = logits_of(model, images), logits_of(ready, images)
    assert torch.allclose(folded, plain, atol=1e-3 * plain.abs().max().item())
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in ready.modules())


def test_an_undefended_net_falls_at_4_of_255_and_pgd_is_not_weaker_than_fgsm(ready, images, labels):
    goal, ball = Goal(labels=labels), Ball(norm="linf", epsilon=4 / 255)
    generator = torch.Generator().manual_seed(0)
    iterated = pgd(ready, images, goal, ball, steps=10, generator=generator)
    assert iterated.success.all()
    assert (logits_of(ready, iterated.adversarial).argmax(dim=1) != labels).all()
    assert fgsm(ready, images, goal, ball).success.sum() <= iterated.success.sum()


def test_the_smallest_perturbation_survives_8_bits(ready, images, labels):
    found = smallest_on_lattice(ready, images[:2], Goal(labels=labels[:2]), "l2", steps=20)
    assert found.success.all() and (found.distances < 3).all()
    says = logits_of(ready, found.adversarial).argmax(dim=1)
    assert (says != labels[:2]).all()


def test_grad_cam_finds_the_last_feature_map(model, images, labels):
    assert spatial_layers(model, images)[-1] == "net.features"
    heat = grad_cam(model, images[:1], labels[:1])
    assert heat.shape == (1, SIDE, SIDE) and heat.max() == pytest.approx(1)
    assert heat.mean() < 0.8  # somewhere, not everywhere


def test_an_ideal_image_is_taken_for_its_class(ready):
    classes = torch.tensor([281])  # tabby cat
    recipe = FourierRecipe(coarse_steps=24, steps=8, polish_steps=16)
    made = fourier(ready, classes, 128, recipe, torch.Generator().manual_seed(0))
    assert made.probabilities.item() >= 0.99
