"""The exported file: its contract, its agreement with PyTorch, and what is refused."""

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from serving.modelspec import Parity
from trainer.backbones import IMAGENET, Calibrated, build
from trainer.errors import FailedCheck
from trainer.export import OPSET, Served, to_onnx
from trainer.onnx_runner import OnnxRunner
from trainer.parity import Disagreement, measure_parity, require_parity, rounding_of

SIZE, TEMPERATURE = 48, 1.7


@pytest.fixture(scope="module")
def served() -> Served:
    torch.manual_seed(0)
    return Served(Calibrated(build("tiny", 3, SIZE), TEMPERATURE)).eval()


@pytest.fixture(scope="module")
def path(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    onnx.save(to_onnx(served, SIZE), path)
    return path


def no_rounding() -> float:
    return 0.0


def pixels(n: int = 9) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8)


def test_one_file_with_the_names_types_and_shapes_of_the_contract(path: Path):
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    assert (image.name, image.type) == ("image", "tensor(uint8)")
    assert image.shape == ["batch", SIZE, SIZE, 3]
    outputs = {output.name: (output.type, output.shape) for output in session.get_outputs()}
    assert outputs == dict.fromkeys(("probabilities", "logits"), ("tensor(float)", ["batch", 3]))


def test_opset_is_pinned_and_no_path_of_this_machine_is_inside(path: Path):
    model = onnx.load(path)
    assert {o.domain: o.version for o in model.opset_import}[""] == OPSET
    assert not any(node.metadata_props for node in model.graph.node)
    assert b"/site-packages/" not in path.read_bytes()


def test_the_graph_does_all_that_a_caller_would_else_have_to(path: Path, served: Served):
    """Against the same in numpy: /255, normalise, backbone, temperature, softmax."""
    images = pixels(3)
    x = (images / 255 - np.array(IMAGENET.mean)) / np.array(IMAGENET.std)
    classifier = served.calibrated.classifier
    with torch.no_grad():
        planes = torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float32)
        features = classifier.backbone(planes).double().numpy()
    weight = classifier.head.weight.detach().double().numpy()
    bias = classifier.head.bias.detach().double().numpy()
    expected = (features @ weight.T + bias) / TEMPERATURE
    probabilities, logits = OnnxRunner(path).run(images, 3)
    assert logits == pytest.approx(expected, rel=1e-3, abs=1e-5)
    powers = np.exp(expected)
    assert probabilities == pytest.approx(powers / powers.sum(1, keepdims=True), abs=1e-5)


def test_onnx_agrees_with_pytorch_and_the_batch_does_not_matter(path: Path, served: Served):
    parity, differ = measure_parity(served, OnnxRunner(path), pixels())
    require_parity(parity, differ, [""] * 9, no_rounding)
    assert parity.photos == 9 and parity.batch_sizes == (1, 2, 7)
    assert 0 < parity.logit_scale and parity.top1_agreement == 1.0


def test_a_file_of_other_weights_is_refused_with_the_figures(path: Path, served: Served):
    torch.manual_seed(1)
    other = Served(Calibrated(build("tiny", 3, SIZE), TEMPERATURE)).eval()
    parity, differ = measure_parity(other, OnnxRunner(path), pixels())
    with pytest.raises(FailedCheck, match=r"differs from PyTorch by .* in logits; the limit is"):
        require_parity(parity, differ, [""] * 9, no_rounding)


def test_a_slight_change_of_one_weight_is_noticed(path: Path, served: Served):
    bias = served.calibrated.classifier.head.bias
    with torch.no_grad():
        bias[0] += 1e-3
    try:
        parity, differ = measure_parity(served, OnnxRunner(path), pixels())
    finally:
        with torch.no_grad():
            bias[0] -= 1e-3
    assert parity.max_logit_error == pytest.approx(1e-3 / TEMPERATURE, rel=0.01)
    with pytest.raises(FailedCheck):
        require_parity(parity, differ, [""] * 9, no_rounding)


def test_a_net_whose_large_terms_cancel_out_is_published(tmp_path: Path):
    """As where it has found nothing to go by: what rounding leaves is much of its small logits."""
    torch.manual_seed(0)
    net = build("tiny", 3, SIZE)
    images = pixels()
    with torch.no_grad():
        features = net.features(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
        nothing = torch.linalg.svd(features).Vh[len(images) :]  # these are 0 for all the photos
        net.head.weight.copy_(net.head.weight / 100 + 300 * nothing[0])
        net.head.bias.div_(100)
    served = Served(Calibrated(net, TEMPERATURE).eval()).eval()
    onnx.save(to_onnx(served, SIZE), tmp_path / "model.onnx")
    parity, _ = measure_parity(served, OnnxRunner(tmp_path / "model.onnx"), images)
    with pytest.raises(FailedCheck, match="differs from PyTorch by"):
        require_parity(parity, [], [], no_rounding)
    require_parity(parity, [], [], lambda: rounding_of(served, images))
    with pytest.raises(FailedCheck, match="differs from PyTorch by"):
        worse = replace(parity, max_logit_error=100 * parity.max_logit_error)
        require_parity(worse, [], [], lambda: rounding_of(served, images))


def test_an_answer_that_is_no_number_is_refused(path: Path, served: Served, tmp_path: Path):
    """Where the class without a number is the one expected, it is the highest of numpy's too."""
    _, logits = OnnxRunner(path).run(pixels())
    (label, *others) = set(logits.argmax(axis=1).tolist())
    images = pixels()[logits.argmax(axis=1) == label]
    model = onnx.load(path)
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name.endswith("head.bias")]
    values = onnx.numpy_helper.to_array(bias).copy()
    values[label] = np.nan
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(model, tmp_path / "nan.onnx")
    parity, differ = measure_parity(served, OnnxRunner(tmp_path / "nan.onnx"), images)
    with pytest.raises(FailedCheck, match="differs from PyTorch by nan"):
        require_parity(parity, differ, [""] * 9, no_rounding)


class _OddPairs:
    """The answers of a file; in batches of two, each class has that of the one before it."""

    def __init__(self, path: Path) -> None:
        self._runner = OnnxRunner(path)

    def run(self, images: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        probabilities, logits = self._runner.run(images, batch_size)
        return probabilities, np.roll(logits, batch_size == 2, axis=1)


def test_an_answer_that_depends_on_the_size_of_the_batch_is_refused(path: Path, served: Served):
    odd: Any = _OddPairs(path)
    parity, differ = measure_parity(served, odd, pixels())
    assert [each.photo for each in differ] == list(range(9)) and parity.top1_agreement == 0
    with pytest.raises(FailedCheck, match="differs from PyTorch by"):
        require_parity(parity, differ, [""] * 9, no_rounding)


def parity_of(error: float, agreement: float = 1.0) -> Parity:
    return Parity(
        photos=4,
        batch_sizes=(1,),
        logit_scale=10.0,
        max_logit_error=error,
        top1_agreement=agreement,
    )


def test_the_limit_is_a_share_of_the_logit_scale():
    require_parity(parity_of(0.99e-4), [], [], no_rounding)
    for error in (1.01e-4, float("nan")):
        with pytest.raises(FailedCheck, match="limit is 0.0001"):
            require_parity(parity_of(error), [], [], no_rounding)


def test_another_first_label_is_refused_and_its_margin_given():
    differ = [Disagreement(photo=1, margin=2e-6)]
    with pytest.raises(FailedCheck, match=r"1 of 4 photos another label .*b.jpg \(margin 2e-06\)"):
        require_parity(parity_of(1e-6, 0.75), differ, ["a.jpg", "b.jpg"], no_rounding)


class Inexportable(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvalsh(images[..., :4, :4]).flatten(1)  # ONNX has no such operator


def test_a_net_that_cannot_be_exported_says_so(tmp_path: Path):
    with pytest.raises(FailedCheck, match="can't be exported to ONNX"):
        onnx.save(to_onnx(Served(Inexportable()).eval(), 8), tmp_path / "model.onnx")


def test_the_exporter_is_quiet(served: Served, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    onnx.save(to_onnx(served, SIZE), tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")
    assert gc.get_freeze_count() == 0, "what it sets aside is collected again"


class Bounded(nn.Module):
    """Two ReLU6, whose bounds the pixels really pass on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.ReLU6(inplace=True), nn.ReLU6()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.mean((2, 3)) * 40 - 20
        return self.low(x.clone()) - self.high(-2 * x)


def test_relu6_is_exported_as_it_is_and_the_net_left_as_it_was(tmp_path: Path):
    net = Served(Bounded()).eval()
    modules = dict(net.named_modules())
    onnx.save(to_onnx(net, 8), tmp_path / "model.onnx")
    assert dict(net.named_modules()) == modules
    images = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (0, 110, 140, 150, 255)])
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (logits,) = session.run(["logits"], {"image": images})
    x = images.mean((1, 2)) / 255 * 40 - 20
    np.testing.assert_allclose(logits, x.clip(0, 6) - (-2 * x).clip(0, 6), atol=1e-4)
