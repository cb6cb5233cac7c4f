"""Nets of timm as backbones: the same features, names, and normalisation of their own."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from serving.errors import BrokenVersion, InvalidRequest, Unavailable
from serving.repository import Repository
from tests.trainer.conftest import MakePhotos
from trainer.analysis.analyze import main as analyze
from trainer.analysis.attribution import grad_cam
from trainer.backbones import build, load_version, trained_input, version_state
from trainer.onnx_runner import OnnxRunner
from trainer.stages import frozen_stages, split_frozen
from trainer.train import main

timm = pytest.importorskip("timm")

CNN, VIT = "timm/test_resnet", "timm/test_vit"
HALF = (0.5, 0.5, 0.5)


def images(size: int = 64) -> torch.Tensor:
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "size"),
    [(CNN, 64), (VIT, 64), (VIT, 160), ("timm/test_convnext", 64), ("timm/test_efficientnet", 64)],
)
def test_same_outputs_as_timm_with_the_same_weights(name: str, size: int, tmp_path: Path):
    torch.manual_seed(1)
    plain = name.removeprefix("timm/")
    options = {"img_size": size} if name == VIT else {}
    theirs = timm.create_model(plain, num_classes=5, **options).eval()
    settings = theirs.pretrained_cfg
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = build(name, 5, size, str(tmp_path / "weights.pth"))
    head = theirs.get_classifier()
    with torch.no_grad():
        ours.head.weight.copy_(head.weight)
        ours.head.bias.copy_(head.bias)
        mean, std = (torch.tensor(settings[k]).view(3, 1, 1) for k in ("mean", "std"))
        expected, got = theirs((images(size) - mean) / std), ours(images(size))
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5)
        ours.head.weight.mul_(2)  # what is saved is our head
        theirs.load_state_dict(version_state(ours), strict=True)
        assert torch.allclose(ours(images(size)), theirs((images(size) - mean) / std), atol=1e-5)


def test_size_interpolation_and_normalisation_are_the_nets_own():
    resnet, vit = trained_input(CNN), trained_input(VIT)
    assert (resnet.size, resnet.interpolation, vit.interpolation) == (160, "bilinear", "bicubic")
    assert resnet.normalisation.mean == resnet.normalisation.std == HALF
    other = trained_input("timm/mobilenetv3_small_100").normalisation
    assert other.mean == (0.485, 0.456, 0.406)


def test_a_cnn_is_cut_where_its_frozen_stages_end_and_a_vit_is_left_whole():
    cnn, vit = build(CNN, 3, 64), build(VIT, 3, 64)
    prefix, suffix = split_frozen(cnn.backbone, frozen_stages(cnn.backbone, 0.25), 64)
    seen = prefix(images())
    assert seen.shape[1] > 3, "the prefix does a part"
    assert torch.allclose(suffix(seen), cnn.backbone(images()), atol=1e-5)
    vit.freeze(frozen_stages(vit.backbone, 0.25))
    assert any(p.requires_grad for p in vit.backbone.blocks[-1].parameters())
    assert not any(p.requires_grad for p in vit.backbone.blocks[0].parameters())
    prefix, suffix = split_frozen(vit.backbone, vit.frozen, 64)
    assert torch.allclose(suffix(prefix(images())), vit.backbone(images()), atol=1e-5)


@pytest.mark.parametrize("name", [CNN, VIT])
def test_grad_cam_sees_into_it(name: str):
    torch.manual_seed(0)
    heat = grad_cam(build(name, 3, 64), images(), torch.tensor([0, 1, 2]))
    assert heat.shape == (3, 64, 64) and torch.isfinite(heat).all() and heat.max() <= 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/mobilenetv3_smal_100", "did you mean timm/mobilenetv3_small_100"),
        ("timm/?", "no backbone 'timm/\\?'; timm.list_models"),
        ("timm/test_vit.mine", "no weights 'mine' of timm/test_vit; there are timm/test_vit.r160_"),
        ("timm/deit_tiny_distilled_patch16_224", "its head is several layers, not a linear layer"),
    ],
)
def test_nets_that_cannot_be_backbones_say_why_in_one_line(name: str, message: str):
    with pytest.raises(InvalidRequest, match=message) as said:
        build(name, 3, 224)
    assert "\n" not in str(said.value)


class Strange(torch.nn.Module):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + torch.linalg.eigvalsh(features[..., :4, :4]).mean()  # ONNX has no such


def test_a_net_that_cannot_be_exported_says_so_before_it_learns(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    @timm.models.register_model
    def inexportable(pretrained: bool = False, **options: object) -> torch.nn.Module:
        net = timm.create_model("test_resnet", **options)
        net.act1 = Strange()
        return net

    arguments = ["--data", str(photos()), "--name", "x", "--out", str(tmp_path / "models")]
    arguments += ["--backbone", "timm/inexportable", "--weights", "none", "--size", "64"]
    assert main([*arguments, "--epochs", "1"]) == 1
    said = capsys.readouterr()
    assert "error: the net can't be exported to ONNX" in said.err and "Epoch" not in said.out


def test_a_size_that_the_net_cannot_take():
    with pytest.raises(InvalidRequest, match=r"timm/maxvit_pico_rw_256 can't take 50 x 50 px: "):
        build("timm/maxvit_pico_rw_256", 3, 50)


def test_weights_that_cannot_be_downloaded_are_one_line_and_soon(monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(
        Unavailable, match=r"can't be downloaded \(http://127.0.0.1:9 .*give --weights FILE"
    ) as said:
        build("timm/test_byobnet", 3, 160, "imagenet")
    assert "\n" not in str(said.value) and time.monotonic() - started < 15
    assert not constants.HF_HUB_OFFLINE, "what another part of the program asks for is tried"


def test_without_timm_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, photos: MakePhotos, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert main(["--data", str(photos()), "--backbone", CNN, "--weights", "none"]) == 2
    assert "pip install '.[timm]'" in capsys.readouterr().err


def test_trained_published_rebuilt_and_analysed(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out, data = tmp_path / "models", photos(per_class=12)
    arguments = ["--data", data, "--name", "shapes", "--out", out, "--backbone", CNN, "--size", 64,
                 "--weights", "none", "--epochs", 2, "--json"]  # fmt: skip
    assert main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    repository = Repository(out)
    net, manifest = load_version(repository, "shapes", 1)
    assert manifest.normalisation.mean == manifest.normalisation.std == HALF
    assert "timm" in manifest.software
    folder = out / "shapes/1"
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    with torch.inference_mode():
        rebuilt = net(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255).numpy()
    _, served = OnnxRunner(folder / "model.onnx").run(pixels, 5)
    assert np.allclose(rebuilt, served, atol=1e-4)
    theirs = timm.create_model("test_resnet", num_classes=2).eval()
    theirs.load_state_dict(load_file(folder / "weights.safetensors"), strict=True)
    with torch.inference_mode():
        normal = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        assert np.allclose(theirs(normal).numpy() / manifest.temperature, served, atol=1e-4)

    capsys.readouterr()
    options = ["shapes", "--models", out, "--data", data, "--budget", "quick", "--photos", 2,
               "--linf", "8/255", "--l2", "1", "--ideal", "none"]  # fmt: skip
    assert analyze([str(option) for option in options]) == 0, capsys.readouterr().err
    report = json.loads((folder / "analysis/report.json").read_text())
    assert report["model"]["backbone"] == CNN


@pytest.mark.slow
def test_a_version_of_timm_where_timm_is_missing(
    monkeypatch: pytest.MonkeyPatch, photos: MakePhotos, tmp_path: Path
):
    out = tmp_path / "models"
    arguments = ["--data", photos(), "--name", "shapes", "--out", out, "--backbone", VIT, "--size",
                 32, "--weights", "none", "--epochs", 1]  # fmt: skip
    assert main([str(argument) for argument in arguments]) == 0
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BrokenVersion, match="can't be rebuilt: .* needs the package timm"):
        load_version(Repository(out), "shapes", 1)
