import pytest
import torch

from tests.analysis.nets import convnet, pictures
from trainer.analysis.differentiable import input_gradient, logits_of
from trainer.backbones import Calibrated, build
from trainer.folding import folded


def test_the_prepared_model_is_the_same_function_without_batch_norm():
    model, images = convnet(4), pictures(5, 16)
    ready = folded(model.train())
    assert model.training and torch.allclose(ready(images), model.eval()(images), atol=1e-4)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in ready.modules())
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())  # as it was


def test_no_weight_of_the_prepared_model_takes_a_gradient():
    ready = folded(convnet(3).requires_grad_(True))
    assert not any(p.requires_grad for p in ready.parameters()) and not ready.training


class Branching(torch.nn.Module):
    def forward(self, images):
        if images.mean() > 2:
            return images.flatten(1)[:, :2] * 0
        return images.flatten(1)[:, :2]


def test_a_model_that_can_not_be_traced_is_left_as_it_is():
    images = pictures(2, 16)
    assert torch.equal(folded(Branching())(images), Branching()(images))


class Masked(torch.nn.Module):
    """As timm's Swin: a mask that tracing makes a constant of five dimensions."""

    def __init__(self):
        super().__init__()
        self.net = convnet(3)
        self.register_buffer("mask", torch.arange(2.0).reshape(1, 2, 1, 1))

    def forward(self, images):
        masked = self.mask[None] * images[:, None, :2]
        return self.net(images) + masked.mean((1, 2, 3, 4))[:, None]


def test_a_model_with_constants_of_five_dimensions():
    model, images = Masked().eval(), pictures(2, 16)
    assert torch.allclose(folded(model)(images), model(images), atol=1e-4)


def test_the_gradient_is_that_of_finite_differences_image_by_image():
    model, images = convnet(3).double(), pictures(2, 16).double()
    logits, values, gradient = input_gradient(model, images, lambda z: z[:, 0] * z[:, 1])
    assert torch.equal(values, logits[:, 0] * logits[:, 1])
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).double()
    up, down = (model(images + s * 1e-5 * direction) for s in (1, -1))
    slope = (up[:, 0] * up[:, 1] - down[:, 0] * down[:, 1]) / 2e-5
    assert torch.allclose((gradient * direction).sum(dim=(1, 2, 3)), slope, rtol=1e-4)


def test_the_gradient_is_there_even_where_gradients_are_off():
    model, images = convnet(3), pictures(2, 16)
    with torch.no_grad():
        _, _, gradient = input_gradient(model, images, lambda z: z[:, 0])
    assert gradient.abs().max() > 0 and not images.requires_grad
    assert not logits_of(model, images).requires_grad


@pytest.mark.parametrize("backbone", ["tiny", "mobilenet_v2", "squeezenet1_1"])
def test_what_is_analysed_can_be_traced_and_folded(backbone):
    net = Calibrated(build(backbone, 3, 64), temperature=1.5).eval()
    ready, images = folded(net), torch.rand(2, 3, 64, 64)
    assert isinstance(ready, torch.fx.GraphModule)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in ready.modules())
    with torch.no_grad():
        assert torch.allclose(ready(images), net(images), atol=1e-4)
