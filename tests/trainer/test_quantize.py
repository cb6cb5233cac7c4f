"""Other precisions: what is in integers, what it costs, and what is chosen."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torchvision.models import mobilenet_v2

from serving.modelspec import Metrics, Normalisation
from serving.repository import Repository
from tests.commands import run_python
from tests.tiny import in_fp16_as_vits_are, tiny_model
from tests.trainer.conftest import MakePhotos
from trainer.backbones import Calibrated, Classifier, build
from trainer.config import TrainConfig
from trainer.errors import FailedCheck
from trainer.export import Served, to_onnx
from trainer.half import to_half
from trainer.hard_sigmoids import integer_hard_sigmoids
from trainer.int8 import Attempt, by_sensitivity, loses_too_much, quantize_within
from trainer.metrics import divergence
from trainer.onnx_runner import OnnxRunner
from trainer.quantize import METHODS, calibrate, layers, prepare, quantize
from trainer.train import main
from trainer.variants import _require_accuracy

SIZE, CLASSES = 32, 4


def pixels(n: int, seed: int = 0, size: int = SIZE) -> np.ndarray:
    """Blotches of many sizes and colours: uint8 [n, S, S, 3]."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (n, 4, 4, 3)).repeat(size // 4, 1).repeat(size // 4, 2)
    fine = generator.integers(-40, 41, (n, size, size, 3))
    return np.clip(coarse + fine, 0, 255).astype(np.uint8)


def exported(classifier: Classifier, path: Path, size: int = SIZE) -> Path:
    onnx.save(to_onnx(Served(Calibrated(classifier.eval(), 1.0)).eval(), size), path)
    return path


def settled(classifier: Classifier, size: int = SIZE) -> Classifier:
    """With running statistics of real activations, and logits that spread."""
    classifier.train()
    images = torch.from_numpy(pixels(32, 9, size)).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        for _ in range(20):
            classifier(images)
        classifier.head.weight.mul_(20)
    return classifier.eval()


def outlier(classifier: Classifier) -> Classifier:
    """The same function, but one channel between two layers is 3000 times larger than the rest."""
    first, second = classifier.backbone.features[1][4], classifier.backbone.features[2][0]
    assert isinstance(first, nn.BatchNorm2d) and isinstance(second, nn.Conv2d)
    with torch.no_grad():
        first.weight[0] *= 3000
        first.bias[0] *= 3000
        second.weight[:, 0] /= 3000
    return classifier


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny") / "model.onnx"
    return exported(settled(build("tiny", CLASSES, SIZE)), path)


@pytest.fixture(scope="module")
def skewed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("skewed") / "model.onnx"
    return exported(outlier(settled(build("tiny", CLASSES, SIZE))), path)


def logits(model: Path | onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    data = model if isinstance(model, Path) else model.SerializeToString()
    return OnnxRunner(data).run(images, 16)[1]


def contract(model: onnx.ModelProto) -> tuple[list[tuple], list[tuple]]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return (
        [(i.name, i.type, i.shape) for i in session.get_inputs()],
        [(o.name, o.type, o.shape) for o in session.get_outputs()],
    )


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_int8_answers_nearly_as_fp32(tiny: Path, method: str):
    prepared = prepare(tiny)
    model = quantize(prepared, calibrate(prepared, pixels(24), method))
    images = pixels(32, 1)
    expected, got = logits(tiny, images), logits(model, images)
    assert 0 < np.abs(got - expected).max() < 0.15 * np.abs(expected).max()
    assert np.mean(got.argmax(1) == expected.argmax(1)) > 0.9


def test_every_layer_is_in_integers_behind_the_same_contract(tiny: Path):
    prepared = prepare(tiny)
    model = quantize(prepared, calibrate(prepared, pixels(8), "minmax"))
    assert contract(model) == contract(onnx.load(tiny))
    names = set(layers(prepared))
    assert len(names) == 9  # eight convolutions and the head
    makers = {output: n.op_type for n in model.graph.node for output in n.output}
    for node in model.graph.node:
        if node.name in names:
            assert {makers[name] for name in node.input} == {"DequantizeLinear"}
    (softmax,) = (n for n in model.graph.node if n.op_type == "Softmax")
    assert makers[softmax.input[0]] != "DequantizeLinear"


def test_weights_are_as_fine_as_8_bits_allow_and_neighbours_fit_into_16(tmp_path: Path):
    """Neighbours in the sum: channels of a pixel, then the next pixel of the kernel."""
    torch.manual_seed(0)
    net = mobilenet_v2(weights=None).features[:3]
    classifier = Classifier(nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
                            nn.Linear(24, 3), "head")  # fmt: skip
    prepared = prepare(exported(settled(classifier), tmp_path / "model.onnx"))
    model = quantize(prepared, calibrate(prepared, pixels(8), "minmax"))
    tensors = {t.name: numpy_helper.to_array(t).astype(int) for t in model.graph.initializer
               if t.name.endswith("_quantized") and t.data_type == onnx.TensorProto.INT8
               and len(t.dims) > 1}  # fmt: skip
    assert len(tensors) == len(layers(prepared))
    fine = []
    for name, tensor in tensors.items():
        if tensor.ndim == 4 and tensor.shape[1] == 1:  # depthwise
            assert np.all(np.abs(tensor).max(axis=(1, 2, 3)) == 127), name
            continue
        rows = np.moveaxis(np.abs(tensor), 1, -1).reshape(len(tensor), -1)
        pairs = (rows[:, :-1] + rows[:, 1:]).max(axis=1)
        assert pairs.max() <= 128, name
        assert np.all((pairs >= 126) | (rows.max(axis=1) == 127)), name
        fine.append(rows.max() > 64)
    assert any(fine)


@pytest.mark.slow
def test_hard_swish_and_means_are_in_integers_too(tmp_path: Path):
    torch.manual_seed(0)
    net = settled(build("mobilenet_v3_small", CLASSES, 64), 64)
    path = exported(net, tmp_path / "model.onnx", 64)
    prepared, images = prepare(path), pixels(32, 1, 64)
    ranges = calibrate(prepared, pixels(24, size=64), "minmax")
    model = quantize(prepared, ranges)
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"HardSigmoid", "ReduceMean"} and "GlobalAveragePool" in operators
    expected, got = logits(path, images), logits(model, images)
    assert np.abs(got - expected).max() < 0.15 * np.abs(expected).max()
    assert contract(model) == contract(onnx.load(path))
    half = quantize(prepared, ranges, in_float=layers(prepared)[:20])
    assert np.abs(logits(half, images) - expected).max() < 0.15 * np.abs(expected).max()


@pytest.mark.parametrize("mirror", [False, True])
def test_onnx_runtime_leaves_in_float_what_is_to_be(tmp_path: Path, mirror: bool):
    """It would make integers of a layer between integers itself; with `mirror` the first is one."""
    path = exported(build("tiny", CLASSES, 64, mirror=mirror), tmp_path / "model.onnx", 64)
    prepared = prepare(path)
    ranges = calibrate(prepared, pixels(8, size=64), "minmax")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "as_run.onnx")
    for i, layer in enumerate(layers(prepared)[:3]):
        model = quantize(prepared, ranges, in_float=[layer])
        onnxruntime.InferenceSession(model.SerializeToString(), options)
        as_run = onnx.load(options.optimized_model_filepath)
        in_float = [n for n in as_run.graph.node if n.op_type in ("Conv", "FusedConv")]
        assert len(in_float) == 1, layer
        joined = [n.op_type for n in as_run.graph.node if "Concat" in n.op_type]
        assert joined == ["Concat" if i == 0 else "QLinearConcat"] * mirror  # both ways


class Shuffled(nn.Module):
    """Convolutions with what only moves numbers between them, as in ShuffleNet."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.last = nn.Conv2d(8, 8, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = nn.functional.max_pool2d(self.before(images).relu(), 2)
        shuffled = nn.functional.channel_shuffle(pooled, 2)
        return self.last(self.after(shuffled).relu()).mean((2, 3))


def test_a_layer_behind_what_moves_integers_about_is_left_in_float_too(tmp_path: Path):
    net = Classifier(Shuffled(), nn.Linear(8, CLASSES), "head")
    path = exported(net, tmp_path / "model.onnx")
    prepared = prepare(path)
    _, after, *_ = layers(prepared)
    model = quantize(prepared, calibrate(prepared, pixels(8), "minmax"), in_float=[after])
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "as_run.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options)
    as_run = onnx.load(options.optimized_model_filepath)
    kinds = [n.op_type for n in as_run.graph.node if "Conv" in n.op_type]
    assert sorted(kinds) == ["Conv", "QLinearConv", "QLinearConv"]


@pytest.mark.parametrize(("width", "zero"), [(16.0, 128), (7.0, 120), (6.2, 140), (2.0, 100)])
def test_an_integer_hard_sigmoid_is_the_hard_sigmoid_to_half_a_step(width: float, zero: int):
    """By itself, over all that 8 bits can say of its input."""
    model = between_integers(width, zero, swish=False)
    integer_hard_sigmoids(model)
    real = np.linspace(-zero * width / 255, (255 - zero) * width / 255, 3000, dtype=np.float32)
    y = floats_through(model, real)
    step = 1 / 255 + width / 255 / 6 * 1.25
    assert np.abs(y - np.clip(real / 6 + 0.5, 0, 1)).max() < step / 2 + 0.002
    assert np.all(y[real > 3.1] == 1) and not np.any(y[real < -3.1])


@pytest.mark.parametrize(("width", "zero"), [(16.0, 128), (7.0, 120), (6.2, 140), (40.0, 20)])
def test_an_integer_hard_swish_is_a_product_of_one_tensor_with_itself_cut_off(
    width: float, zero: int
):
    model = between_integers(width, zero, swish=True)
    integer_hard_sigmoids(model)
    assert [node.op_type for node in model.graph.node].count("Mul") == 1  # the swish's own
    real = np.linspace(-zero * width / 255, (255 - zero) * width / 255, 3000, dtype=np.float32)
    y = floats_through(model, real)
    off = np.abs(y - real * np.clip(real / 6 + 0.5, 0, 1))
    assert off.max() < 1.5 * 0.5 * 1.25 * width / 255  # it rises by no more than 1.5
    assert not np.any(y[real < -3.1])


def test_a_hard_swish_of_small_numbers_keeps_their_fine_steps():
    model = between_integers(0.5, 128, swish=True)
    integer_hard_sigmoids(model)
    real = np.linspace(-0.25, 0.24, 1000, dtype=np.float32)
    assert np.abs(floats_through(model, real) - real * (real / 6 + 0.5)).max() < 0.002


def test_what_adds_its_hard_sigmoid_to_x_still_tells_x_below_minus_three():
    model = between_integers(16.0, 128, swish=True)
    model.graph.node[-1].op_type = "Add"
    integer_hard_sigmoids(model)
    real = np.linspace(-8, 7.9, 1000, dtype=np.float32)
    expected = real + np.clip(real / 6 + 0.5, 0, 1)
    assert np.abs(floats_through(model, real) - expected).max() < 0.05


def between_integers(width: float, zero: int, *, swish: bool) -> onnx.ModelProto:
    """From `x` in 256 steps over `width`, 0 at `zero`, to its hard sigmoid or `swish`, `y` [n]."""
    names = {"scale": np.float32(width / 255), "zero": np.uint8(zero),
             "out": np.float32(1 / 255), "none": np.uint8(0)}  # fmt: skip
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in names.items()]
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    hard = "hard_float" if swish else "y"
    nodes = [
        make("QuantizeLinear", ["x", "scale", "zero"], ["stored"]),
        make("DequantizeLinear", ["stored", "scale", "zero"], ["float"]),
        make("HardSigmoid", ["float"], ["hard"], alpha=1 / 6, beta=0.5),
        make("QuantizeLinear", ["hard", "out", "none"], ["q"]),
        make("DequantizeLinear", ["q", "out", "none"], [hard]),
    ]
    if swish:
        nodes.append(make("Mul", ["float", hard], ["y"]))
    floats = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes, "one", [value("x", floats, ["n"])], [value("y", floats, ["n"])], constants
    )
    opset = [onnx.helper.make_opsetid("", 20)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)


def floats_through(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    assert "HardSigmoid" not in {node.op_type for node in model.graph.node}
    (y,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    return y


def test_the_picture_is_normalised_by_rows_and_to_the_same_numbers(tiny: Path):
    """Three numbers at a time, as the channels come last, is slow."""
    prepared = prepare(tiny)
    (mean,) = (t for t in prepared.graph.initializer if t.name.endswith(".mean"))
    assert list(mean.dims) == [1, 3, 1, SIZE]
    images = pixels(4)
    assert logits(prepared, images) == pytest.approx(logits(onnx.load(tiny), images), abs=1e-5)


def test_integer_kernels_saturate_nowhere(tmp_path: Path):
    """Weights all at their end and inputs all bright: pairs of products that 16 bits can't hold."""
    conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    other = nn.Conv2d(8, 16, 3, padding=1)
    with torch.no_grad():
        for layer in (conv, other):
            layer.weight.fill_(0.1)
            layer.weight[::2] *= -1
            layer.bias.fill_(0.5)
    backbone = nn.Sequential(conv, nn.ReLU(), other, nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                             nn.Flatten())  # fmt: skip
    classifier = Classifier(backbone, nn.Linear(16, 3), "head")
    prepared = prepare(exported(classifier, tmp_path / "model.onnx"))
    images = np.maximum(pixels(8), 200)
    model = quantize(prepared, calibrate(prepared, images, "minmax"))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    in_float = onnxruntime.InferenceSession(model.SerializeToString(), options)
    (expected,) = in_float.run(["logits"], {"image": images})  # the same integers, as floats
    step = 0.02 * float(np.abs(expected).max())
    assert logits(model, images) == pytest.approx(expected, abs=step)


class Attention(nn.Module):
    """Of the pixels of a picture to each other: [n, C, h, w] -> [n, C]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(2).transpose(1, 2)
        return (torch.softmax(rows @ rows.transpose(1, 2), dim=2) @ rows).mean(1)


def test_products_of_attention_stay_in_float(tmp_path: Path):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), Attention())
    classifier = Classifier(backbone, nn.Linear(8, 3), "head")
    prepared = prepare(exported(classifier, tmp_path / "model.onnx"))
    model = quantize(prepared, calibrate(prepared, pixels(8), "minmax"))
    products = {n.output[0] for n in model.graph.node if n.op_type == "MatMul"}
    readers = {n.op_type for n in model.graph.node if products & set(n.input)}
    assert len(products) == 2 and readers == {"Softmax", "ReduceMean"}


def test_a_layer_by_itself_has_the_weights_that_it_has_among_all(skewed: Path):
    """Else its harm is that of others."""
    prepared = prepare(skewed)
    ranges = calibrate(prepared, pixels(8), "minmax")
    whole, alone = (
        {t.name: numpy_helper.to_array(t) for t in model.graph.initializer
         if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1}
        for model in (quantize(prepared, ranges),
                      quantize(prepared, ranges, only=[layers(prepared)[4]]))
    )  # fmt: skip
    ((name, weights),) = alone.items()
    assert np.array_equal(weights, whole[name])


def test_layers_are_ordered_by_the_harm_they_do(skewed: Path):
    prepared = prepare(skewed)
    order = by_sensitivity(prepared, calibrate(prepared, pixels(16), "minmax"), pixels(16, 1))
    assert sorted(order) == sorted(layers(prepared))
    assert set(order[:2]) == set(layers(prepared)[3:5])  # on both sides of the large channel


def test_what_hurts_is_left_in_float_and_no_more(skewed: Path):
    images = pixels(48, 1)
    targets = logits(skewed, images).argmax(axis=1)
    result = quantize_within(skewed, pixels(16), images, targets, 0.05)
    whole = [attempt for attempt in result.attempts if not attempt.in_float]
    assert {attempt.method for attempt in whole} == {"minmax", "entropy", "percentile"}
    assert all(attempt.accuracy_loss > 0.05 for attempt in whole)
    assert result.chosen.accuracy_loss <= 0.05
    assert 1 <= len(result.chosen.in_float) <= 2
    got = logits(result.model, images)
    assert 1 - np.mean(got.argmax(axis=1) == targets) == pytest.approx(result.chosen.accuracy_loss)
    assert divergence(logits(skewed, images), got) == pytest.approx(result.chosen.divergence)


def test_where_classes_are_balanced_a_rare_one_is_not_lost_unseen(skewed: Path):
    """One photo of a class that int8 has wrong, among so many that it has right."""
    images = pixels(48, 1)
    said, model = logits(skewed, images).argmax(axis=1), prepare(skewed)
    got = [
        logits(quantize(model, calibrate(model, pixels(16), method)), images).argmax(axis=1)
        for method in METHODS
    ]
    kept = np.all([one == said for one in got], axis=0)
    rare = next(i for i in np.flatnonzero(np.all([one != said for one in got], axis=0))
                if (kept & (said != said[i])).any())  # fmt: skip
    usual = np.resize(np.flatnonzero(kept & (said != said[rare])), 60)
    rows = np.append(usual, rare)
    val, targets = images[rows], said[rows]
    unseen = quantize_within(skewed, pixels(16), val, targets, 0.05).chosen
    assert unseen.in_float == () and unseen.recall_loss is None
    assert unseen.accuracy_loss == pytest.approx(1 / 61)
    seen = quantize_within(skewed, pixels(16), val, targets, 0.05, balanced=True)
    assert all(attempt.loss > 0.1 for attempt in seen.attempts[: len(METHODS)])
    assert seen.chosen.in_float and seen.chosen.loss <= 0.05
    assert seen.chosen.mean_recall is not None and seen.chosen.mean_recall >= 0.95


def test_of_two_that_gain_accuracy_the_more_accurate_is_better():
    more, less = (
        Attempt(
            method="entropy", in_float=(), accuracy=0.9 - loss, accuracy_loss=loss,
            mean_recall=None, recall_loss=None, divergence=divergence,
        )
        for loss, divergence in ((-0.02, 0.2), (-0.01, 0.1))
    )  # fmt: skip
    assert more.rank() < less.rank()


def test_what_loses_a_rare_class_on_the_test_photos_is_left_out_where_classes_are_balanced():
    def metrics(rare: int) -> Metrics:
        right = 200 + rare
        return Metrics(
            photos=202, correct=right, accuracy=right / 202, accuracy_low=0.9, accuracy_high=1,
            nll=0.1, ece=0.0, per_class={"usual": (200, 200), "rare": (rare, 2), "none": (0, 0)},
        )  # fmt: skip

    def check(balance: str) -> None:
        _require_accuracy(metrics(1), metrics(2), TrainConfig(data="d", name="n", balance=balance))

    check("none")
    with pytest.raises(FailedCheck, match="loses 0.2500 of mean recall on the test photos"):
        check("weights")


@pytest.mark.parametrize(("before", "after"), [(0.95, 0.94), (190 / 200, 188 / 200)])
def test_a_loss_of_just_what_is_allowed_is_allowed(before: float, after: float):
    assert before - after > 0.01  # as floats
    assert not loses_too_much(before - after, 0.01)
    assert loses_too_much(before - after + 1e-6, 0.01)  # one photo of a million more


def test_where_nothing_is_lost_the_best_calibration_is_taken(tiny: Path):
    images = pixels(16, 1)
    result = quantize_within(tiny, pixels(16), images, logits(tiny, images).argmax(axis=1), 0.5)
    assert len(result.attempts) == 3 and result.chosen.in_float == ()
    best = min(result.attempts, key=lambda a: (-a.accuracy, a.divergence))
    assert result.chosen == best


def test_fp16_answers_nearly_as_fp32_behind_the_same_contract(tiny: Path):
    model = to_half(tiny)
    assert contract(model) == contract(onnx.load(tiny))
    images = pixels(16, 1)
    expected, got = logits(tiny, images), logits(model, images)
    assert 0 < np.abs(got - expected).max() < 0.01 * np.abs(expected).max()
    kinds = {t.data_type for t in model.graph.initializer if len(t.dims) == 4 and t.dims[2] == 3}
    assert kinds == {onnx.TensorProto.FLOAT16}


def test_a_vit_in_fp16_is_run(tmp_path: Path):
    onnx.save(in_fp16_as_vits_are(tiny_model()), tmp_path / "model.onnx")
    opened = f"OnnxRunner(Path({str(tmp_path)!r}, 'model.onnx'), precision='fp16')"
    imports = "from pathlib import Path\nfrom trainer.onnx_runner import OnnxRunner\n"
    done = run_python("-c", f"{imports}{opened}")  # it ended the process
    assert done.returncode == 0, done.stderr


def test_fp16_keeps_probabilities_that_float16_would_round_to_nothing(tmp_path: Path):
    torch.manual_seed(0)
    classifier = settled(build("tiny", CLASSES, SIZE))
    with torch.no_grad():
        classifier.head.bias.copy_(torch.tensor([0.0, -20.0, -30.0, -40.0]))
        classifier.head.weight.zero_()
    path = exported(classifier, tmp_path / "model.onnx")
    probabilities, _ = OnnxRunner(to_half(path).SerializeToString()).run(pixels(1), 1)
    assert probabilities[0] == pytest.approx(np.exp([0.0, -20, -30, -40]), rel=0.02)


def test_fp16_where_mean_and_std_are_one_constant(tmp_path: Path):
    torch.manual_seed(0)
    normalisation = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    net = settled(build("tiny", CLASSES, SIZE, normalisation=normalisation))
    path = exported(net, tmp_path / "model.onnx")
    images = pixels(16, 1)
    expected, got = logits(path, images), logits(to_half(path), images)
    assert 0 < np.abs(got - expected).max() < 0.01 * np.abs(expected).max()


def test_a_precision_that_cannot_be_made_is_left_out_and_costs_no_training(
    photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    def fail(*_: object, **__: object) -> onnx.ModelProto:
        raise ValueError("no such operator\nand more")

    monkeypatch.setattr("trainer.variants.to_half", fail)
    monkeypatch.setattr("trainer.variants.quantize_within", fail)
    given = ["--data", photos(per_class=10), "--name", "shapes", "--out", tmp_path / "models",
             "--backbone", "tiny", "--weights", "none", "--size", 32, "--epochs", 1,
             "--int8", "--fp16"]  # fmt: skip
    assert main([str(argument) for argument in given]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    for precision in ("int8", "fp16"):
        assert f"{precision} is left out: no such operator\n" in said
    repository = Repository(tmp_path / "models")
    assert set(repository.manifest("shapes", 1).variants) == {"fp32"}
