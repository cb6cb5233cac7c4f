import pytest
import torch
from torch import nn

from tests.analysis.nets import Linear, convnet, pictures
from trainer.analysis.attribution import activation_maps, grad_cam, spatial_layers

SIDE = 16


class TwoLooks(nn.Module):
    """Class 0 is the mean of red over the picture, class 1 the mean of green."""

    def __init__(self):
        super().__init__()
        self.map = nn.Conv2d(3, 2, 1, bias=False)
        self.map.weight.data = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]).view(2, 3, 1, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, images):
        return self.pool(self.map(images)).flatten(1)


def red_left_green_right():
    image = torch.zeros(1, 3, SIDE, SIDE)
    image[:, 0, :, : SIDE // 2] = 1.0
    image[:, 1, :, SIDE // 2 :] = 0.5
    return image


def test_grad_cam_looks_where_the_class_is():
    model, image = TwoLooks(), red_left_green_right()
    red, green = grad_cam(model, image.repeat(2, 1, 1, 1), torch.tensor([0, 1]))
    assert red.shape == (SIDE, SIDE)
    expected = torch.zeros(SIDE, SIDE)
    expected[:, : SIDE // 2] = 1.0
    assert torch.allclose(red, expected) and torch.allclose(green, 1 - expected)


class Attentive(TwoLooks):
    """The same, its last map in the order of Swin's; beside it what attention's heads put out."""

    def __init__(self):
        super().__init__()
        self.last, self.keys = nn.Identity(), nn.Identity()

    def forward(self, images):
        rows = self.last(self.map(images).permute(0, 2, 3, 1))
        return self.keys(rows.flatten(1, 2).unsqueeze(1)).mean(dim=(1, 2))


def test_maps_are_found_with_channels_last_and_beside_attention():
    model, image = Attentive(), red_left_green_right()
    assert spatial_layers(model, image) == ["map", "last"]
    assert torch.equal(activation_maps(model, image, ["last"])["last"], image[:, :2])
    heat = grad_cam(model, image, torch.tensor([0]))
    assert torch.equal(heat, grad_cam(TwoLooks(), image, torch.tensor([0])))


def test_grad_cam_of_evidence_against_is_zero():
    model = TwoLooks()
    model.map.weight.data *= -1
    heat = grad_cam(model, red_left_green_right(), torch.tensor([0]))
    assert torch.equal(heat, torch.zeros(1, SIDE, SIDE))


def test_spatial_layers_come_in_order_and_end_with_the_last_map():
    assert spatial_layers(convnet(3), pictures(1, SIDE)) == ["0", "1", "2", "3", "4", "5"]
    assert spatial_layers(TwoLooks(), pictures(1, SIDE)) == ["map"]


def test_activation_maps_are_what_the_layers_put_out():
    model, images = TwoLooks(), pictures(2, SIDE)
    maps = activation_maps(model, images, ["map"])
    assert torch.allclose(maps["map"], images[:, :2])


def test_a_layer_that_works_in_place_does_not_change_the_map_before_it():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten()).eval()
    maps = activation_maps(model, pictures(1, SIDE), ["0", "1"])
    assert maps["0"].min() < 0 and torch.equal(maps["1"], maps["0"].relu())


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def test_no_hook_stays_behind_even_if_the_model_fails():
    model, images = convnet(3), pictures(1, SIDE)
    grad_cam(model, images, torch.tensor([0]))
    activation_maps(model, images, ["0", "3"])
    assert hooks(model) == 0
    with pytest.raises(RuntimeError):
        activation_maps(model, torch.zeros(1, 5, SIDE, SIDE), ["0"])
    assert hooks(model) == 0


def test_unknown_layers_and_nets_without_maps_are_refused():
    with pytest.raises(ValueError, match="no such layer: 9"):
        activation_maps(convnet(3), pictures(1, SIDE), ["9"])
    flat = Linear(torch.zeros(2, 3 * SIDE * SIDE), torch.zeros(2))
    with pytest.raises(ValueError, match="no layer with a spatial"):
        grad_cam(flat, pictures(1, SIDE), torch.tensor([0]))
