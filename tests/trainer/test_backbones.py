"""Nets of torchvision as classifiers of ours: the same features, another head."""

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model

from serving.errors import InvalidRequest
from trainer.backbones import IMAGENET, build, trained_input, version_state
from trainer.weights import load_state

SMALL = ["squeezenet1_1", "resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5"]


def images(size: int = 64) -> torch.Tensor:
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))


def normalised(x: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor(IMAGENET.mean), torch.tensor(IMAGENET.std)
    return (x - mean[:, None, None]) / std[:, None, None]


@pytest.mark.parametrize("name", SMALL)
def test_same_outputs_as_torchvision_with_the_same_weights(name: str, tmp_path: Path):
    torch.manual_seed(1)
    theirs = get_model(name, weights=None, num_classes=5).eval()
    if name == "squeezenet1_1":
        theirs.classifier[2] = torch.nn.Identity()  # its logits end in a ReLU; ours do not
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = build(name, 5, 64, str(tmp_path / "weights.pth"))
    weight = theirs.state_dict()[f"{ours.head_name}.weight"].flatten(1)
    with torch.no_grad():
        ours.head.weight.copy_(weight)
        ours.head.bias.copy_(theirs.state_dict()[f"{ours.head_name}.bias"])
        expected, got = theirs(normalised(images())), ours(images())
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_what_is_saved_loads_into_torchvision_by_name(name: str):
    torch.manual_seed(2)
    ours = build(name, 7, 64)
    theirs = get_model(name, weights=None, num_classes=7).eval()
    theirs.load_state_dict(version_state(ours), strict=True)
    with torch.no_grad():
        assert torch.allclose(ours(images()), theirs(normalised(images())), atol=1e-5)


def test_safetensors_and_pth_give_the_same_net(tmp_path: Path):
    torch.manual_seed(3)
    state = get_model("squeezenet1_1", weights=None).state_dict()
    torch.save(state, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    with torch.no_grad():
        one, other = (
            build("squeezenet1_1", 4, 64, str(tmp_path / file)).features(images())
            for file in ("a.pth", "a.safetensors")
        )
    assert torch.equal(one, other)


def refuse(message: str, backbone: str = "resnet18", size: int = 64, weights: str = "none") -> None:
    with pytest.raises(InvalidRequest, match=message):
        build(backbone, 3, size, weights)


def test_unknown_backbone_suggests_the_nearest():
    refuse("no backbone 'mobilenetv2'; did you mean .*mobilenet_v2", backbone="mobilenetv2")
    refuse(r"no backbone '\?\?\?'; there are tiny, alexnet", backbone="???")


def test_a_size_that_the_net_cannot_take():
    refuse("squeezenet1_1 can't take 16 x 16 px: ", backbone="squeezenet1_1", size=16)


def test_weights_of_another_net_are_named_by_key_and_shape(tmp_path: Path):
    state = get_model("resnet34", weights=None).state_dict()
    torch.save(state, tmp_path / "resnet34.pth")
    refuse(
        r"weights in .*resnet34.pth do not fit: not in the net layer1.2.bn1.bias, .* and \d+ more",
        weights=str(tmp_path / "resnet34.pth"),
    )
    state = get_model("resnet18", weights=None).state_dict()
    state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    del state["layer4.0.conv1.weight"]
    torch.save(state, tmp_path / "grey.pth")
    refuse(
        r"do not fit: missing layer4.0.conv1.weight; "
        r"of another shape conv1.weight is \(64, 1, 7, 7\), expected \(64, 3, 7, 7\)",
        weights=str(tmp_path / "grey.pth"),
    )


def test_weights_that_are_no_state_dict(tmp_path: Path):
    refuse("no weights file .*absent.pth; give a file", weights=str(tmp_path / "absent.pth"))
    for name, data in [("a.pth", b"text"), ("b.pth", b""), ("c.safetensors", b"\0" * 40)]:
        (tmp_path / name).write_bytes(data)
        refuse(f"{name} can't be read as a state dict", weights=str(tmp_path / name))
    torch.save([1, 2], tmp_path / "list.pth")
    refuse("is not a state dict: expected a dict", weights=str(tmp_path / "list.pth"))
    torch.save(get_model("squeezenet1_1", weights=None), tmp_path / "module.pth")
    refuse("can't be read as a state dict", weights=str(tmp_path / "module.pth"))


def in_checkpoint(state: dict[str, torch.Tensor], kind: str) -> dict[str, object]:
    """As the reference recipes of torchvision and timm save it."""
    rest = {"optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    return {kind: state, **rest}


@pytest.mark.parametrize("kind", ["model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize(
    "wrapper", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_a_state_dict_within_a_checkpoint_or_of_a_wrapped_net(
    tmp_path: Path, kind: str, wrapper: str
) -> None:
    state = get_model("squeezenet1_1", weights=None).state_dict()
    torch.save(state, tmp_path / "bare.pth")
    wrapped = {wrapper + name: tensor for name, tensor in state.items()}
    torch.save(in_checkpoint(wrapped, kind), tmp_path / "checkpoint.pth")
    with torch.inference_mode():
        one, other = (
            build("squeezenet1_1", 4, 64, str(tmp_path / file)).features(images())
            for file in ("bare.pth", "checkpoint.pth")
        )
    assert torch.equal(one, other)


def test_a_checkpoint_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save({"optimizer": {"state": {}}, "epoch": 3}, tmp_path / "other.pth")
    refuse("is not a state dict: expected a dict", weights=str(tmp_path / "other.pth"))


def test_tiny_has_no_imagenet_weights():
    refuse("tiny has no imagenet weights", backbone="tiny", weights="imagenet")


def test_trained_inputs():
    names = ("resnet18", "inception_v3", "tiny", "efficientnet_b0")
    assert [trained_input(name).size for name in names] == [224, 299, 64, 224]
    assert trained_input("efficientnet_b0").interpolation == "bicubic"


def test_old_files_without_batch_counters_load():
    net = get_model("resnet18", weights=None)
    state = {k: v for k, v in net.state_dict().items() if "num_batches_tracked" not in k}
    load_state(net, state, ignore="fc.", where="old")


@pytest.mark.parametrize(
    ("name", "own", "left"),
    [
        ("mobilenet_v2", 0.2, 0),
        ("squeezenet1_1", 0.5, 1),
        ("googlenet", 0.2, 0),
        ("resnet18", 0.0, 0),
        ("alexnet", 0.0, 2),
    ],
)
def test_the_dropout_directly_before_the_head_is_the_classifiers(name: str, own: float, left: int):
    """Those of alexnet, and of vgg, lie between linear layers of its own; that of squeezenet before
    its pooling."""
    net = build(name, 3, 64)
    assert sum(isinstance(m, nn.Dropout) for m in net.backbone.modules()) == left
    assert net.dropout.p == own
    if left < 2:
        images = torch.rand(4, 3, 64, 64)
        net.train()
        with torch.no_grad():
            assert torch.equal(net(images), net(images)) == (own == 0)
            net.dropout.p = 0.0
            assert torch.equal(net(images), net(images)), "nothing else is drawn"
