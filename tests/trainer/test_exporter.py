"""One export for a backbone: its features, and any head on it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests.trainer.conftest import MakePhotos
from trainer.backbones import Calibrated, Classifier, build
from trainer.cached_file import NOTHING_KEPT, CachedFile
from trainer.config import TrainConfig
from trainer.console import Console
from trainer.export import Served
from trainer.exporter import Exporter
from trainer.features import in_torch
from trainer.graph_cache import graph_cache_of, save_graph
from trainer.onnx_runner import OnnxRunner
from trainer.parity import measure_parity, require_parity
from trainer.tiny import Tiny
from trainer.train import main

SIZE = 48
PIXELS = np.random.default_rng(0).integers(0, 256, (9, SIZE, SIZE, 3), dtype=np.uint8)


def new_exporter() -> Exporter:
    return Exporter(SIZE, Console(to_stderr=False))


def classifier(seed: int, labels: int = 3) -> Classifier:
    torch.manual_seed(seed)
    return build("tiny", labels, SIZE)


def require_same(calibrated: Calibrated, path: Path) -> None:
    parity, differ = measure_parity(Served(calibrated).eval(), OnnxRunner(path), PIXELS)
    require_parity(parity, differ, [""] * len(PIXELS), lambda: 0.0)


def exports(capsys: pytest.CaptureFixture[str]) -> int:
    return capsys.readouterr().out.count("Exporting to ONNX")


def test_its_features_are_those_of_pytorch():
    net = classifier(0)
    expected = in_torch(net)(PIXELS)
    assert expected.shape == (9, 160) and expected.std() > 0.1 * expected.max()
    features = new_exporter().features(net)(PIXELS)
    assert features == pytest.approx(expected, rel=0, abs=1e-5 * float(expected.max()))


def test_another_head_and_temperature_need_no_other_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    exporter = new_exporter()
    net = classifier(0)
    exporter.features(net)
    onnx.save(exporter.export(Calibrated(net, 0.6)), tmp_path / "a.onnx")
    first = (tmp_path / "a.onnx").read_bytes()
    require_same(Calibrated(net, 0.6), tmp_path / "a.onnx")
    torch.nn.init.normal_(net.head.weight)
    torch.nn.init.normal_(net.head.bias)
    onnx.save(exporter.export(Calibrated(net, 2.5)), tmp_path / "b.onnx")
    require_same(Calibrated(net, 2.5), tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == first
    assert exports(capsys) == 1


def test_a_new_head_of_zeros_is_exported_too(tmp_path: Path):
    exporter, net = new_exporter(), classifier(0)
    torch.nn.init.zeros_(net.head.bias)
    onnx.save(exporter.export(Calibrated(net, 1.0)), tmp_path / "a.onnx")
    torch.nn.init.ones_(net.head.bias)
    onnx.save(exporter.export(Calibrated(net, 1.0)), tmp_path / "b.onnx")
    require_same(Calibrated(net, 1.0), tmp_path / "b.onnx")


def test_another_backbone_is_exported_anew_another_number_of_labels_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    exporter = new_exporter()
    nets = classifier(0), classifier(1), classifier(1, labels=5)
    for number, net in enumerate(nets):
        onnx.save(exporter.export(Calibrated(net, 1.0)), tmp_path / f"{number}.onnx")
        require_same(Calibrated(net, 1.0), tmp_path / f"{number}.onnx")
        onnx.checker.check_model(onnx.load(tmp_path / f"{number}.onnx"), full_check=True)
    assert exports(capsys) == 2
    statistics = nets[2].backbone.state_dict()
    name = next(key for key in statistics if key.endswith("running_mean"))
    statistics[name] += 0.1
    onnx.save(exporter.export(Calibrated(nets[2], 1.0)), tmp_path / "3.onnx")
    require_same(Calibrated(nets[2], 1.0), tmp_path / "3.onnx")
    assert exports(capsys) == 1


def test_what_the_cache_keeps_is_not_exported_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cache = CachedFile(tmp_path / "cache", "graph.bin", {"net": 0}, pytest.fail)
    net = classifier(0)
    for number in range(2):
        exporter = new_exporter()
        exporter.prepare(net, cache)
        onnx.save(exporter.export(Calibrated(net, 1.3)), tmp_path / f"{number}.onnx")
    assert exports(capsys) == 1
    assert (tmp_path / "0.onnx").read_bytes() == (tmp_path / "1.onnx").read_bytes()
    require_same(Calibrated(net, 1.3), tmp_path / "1.onnx")


def test_what_other_code_has_exported_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From a checkout: the version of the package is the same all along."""
    config = TrainConfig(data="x", name="x", backbone="tiny", cache=str(tmp_path / "cache"))
    net = classifier(0)
    before = graph_cache_of(config, net, net.backbone_digest, pytest.fail).path
    assert before == graph_cache_of(config, net, net.backbone_digest, pytest.fail).path
    (tmp_path / "export.py").write_text("OPSET = 21\n")
    monkeypatch.setattr("trainer.software.__file__", str(tmp_path / "software.py"))
    assert before != graph_cache_of(config, net, net.backbone_digest, pytest.fail).path


def test_without_a_cache_no_copy_of_the_graph_is_made():
    """Of VGG's it would be half a gigabyte; here there is not even one to copy."""
    save_graph(NOTHING_KEPT, None)  # type: ignore[arg-type]


def test_with_a_cache_the_weights_are_digested_once_and_once_more_to_publish(
    photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of VGG's, half a gigabyte, that takes a second each time."""
    digest, digested = Classifier.backbone_digest, []

    def counted(self: Classifier) -> str:
        digested.append(self)
        return digest(self)

    monkeypatch.setattr(Classifier, "backbone_digest", counted)
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pth")
    arguments = [
        *("--data", photos(), "--name", "x", "--out", tmp_path, "--backbone", "tiny", "--size", 32),
        *("--weights", tmp_path / "tiny.pth", "--epochs", 0, "--cache", tmp_path / "cache"),
    ]
    for opened in (1, 0):  # a net for its features; all lie in the cache
        digested.clear()
        assert main([str(argument) for argument in arguments]) == 0
        assert len(digested) == 2 + opened


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_graph_is_exported_again(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    said: list[str] = []
    cache = CachedFile(tmp_path / "cache", "graph.bin", {}, said.append)
    net = classifier(0)
    new_exporter().prepare(net, cache)
    assert cache.path is not None
    whole = cache.path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    cache.path.write_bytes({"flipped": flipped, "cut": whole[:middle], "empty": b""}[damage])
    new_exporter().prepare(net, cache)
    assert exports(capsys) == 2
    assert cache.path.read_bytes() == whole
    (line,) = said
    assert str(cache.path) in line and "damaged" in line
