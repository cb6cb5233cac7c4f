import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from serving.engine import Engine, load_engine
from serving.errors import BrokenVersion, NotFound, Unavailable
from serving.repository import Repository
from tests.conftest import ROOT
from tests.tiny import build_version, golden_of, logits_of, softmax, tiny_model


def load(root: Path, name: str = "pets", version: int = 1, device: str = "cpu") -> Engine:
    return load_engine(Repository(root), name, version, device=device, cores=2)


def test_answers_are_those_of_numpy(models: Path) -> None:
    images = np.random.default_rng(9).integers(0, 256, (7, 32, 32, 3), np.uint8)
    probabilities, logits = load(models).run(images)
    expected = logits_of(images)
    assert probabilities.dtype == logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    np.testing.assert_allclose(probabilities, softmax(expected), atol=1e-4)


def test_a_row_is_the_same_alone_and_in_a_batch(models: Path) -> None:
    engine = load(models)
    images = np.random.default_rng(9).integers(0, 256, (33, 32, 32, 3), np.uint8)
    _, together = engine.run(images)
    alone = np.concatenate([engine.run(images[i : i + 1])[1] for i in range(len(images))])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_unknown_version(models: Path) -> None:
    with pytest.raises(NotFound):
        load(models, version=2)


def test_altered_bytes_are_refused(models: Path) -> None:
    path = models / "pets/1/model.onnx"
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    with pytest.raises(BrokenVersion, match="model.onnx is altered"):
        load(models)


def test_another_models_answers_are_refused(tmp_path: Path) -> None:
    build_version(tmp_path, "pets", golden=golden_of(seed=5))
    with pytest.raises(BrokenVersion, match="differ from the golden ones"):
        load(tmp_path)


def test_golden_answers_within_the_tolerance_pass_and_beyond_fail(tmp_path: Path) -> None:
    golden = golden_of()
    scale = np.abs(golden["logits"]).max()
    for version, (share, sound) in enumerate([(0.5e-3, True), (2e-3, False)], 1):
        shifted = golden | {"logits": golden["logits"] + np.float32(share * scale)}
        build_version(tmp_path, "pets", golden=shifted)
        if sound:
            load(tmp_path, version=version)
        else:
            with pytest.raises(BrokenVersion, match="its logits differ"):
                load(tmp_path, version=version)


@pytest.mark.parametrize(
    "change",
    [
        {"logits": np.full((4, 2), np.nan, np.float32)},
        {"logits": np.zeros((4, 3), np.float32)},
        {"images": np.zeros((4, 16, 16, 3), np.uint8)},
        {"images": np.zeros((0, 32, 32, 3), np.uint8), "logits": np.zeros((0, 2), np.float32)},
        {"images": np.zeros((4, 32, 32, 3), np.float32)},
        {"logits": np.array([["a", None]], dtype=object)},
    ],
    ids=["nan", "other classes", "other size", "none", "other type", "pickle"],
)
def test_unusable_golden_answers_are_refused(tmp_path: Path, change: dict) -> None:
    build_version(tmp_path, "pets", golden=golden_of() | change)
    with pytest.raises(BrokenVersion, match="golden"):
        load(tmp_path)


def test_a_version_without_golden_answers_is_refused(tmp_path: Path) -> None:
    golden = golden_of()
    del golden["logits"]
    build_version(tmp_path, "pets", golden=golden)
    with pytest.raises(BrokenVersion, match="golden.npz can't be used"):
        load(tmp_path)


def test_external_data_is_refused_even_where_the_file_is_there(tmp_path: Path) -> None:
    """The same model, its weights beside it: sound for ONNX Runtime, and refused by us."""
    model = tiny_model()
    folder = tmp_path / "export"
    folder.mkdir()
    onnx.save_model(
        model,
        folder / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    files = {"weights.bin": (folder / "weights.bin").read_bytes()}
    data = (folder / "model.onnx").read_bytes()
    build_version(tmp_path, "pets", model=data, extra_files=files)
    assert Repository(tmp_path).verify("pets", 1) == []
    with pytest.raises(BrokenVersion, match="external files"):
        load(tmp_path)


def without_logits() -> onnx.ModelProto:
    model = tiny_model()
    del model.graph.output[1]
    return model


def with_fixed_batch() -> onnx.ModelProto:
    model = tiny_model()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    return model


def with_float_input() -> onnx.ModelProto:
    model = tiny_model()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return model


def with_unknown_operator() -> onnx.ModelProto:
    model = tiny_model()
    model.graph.node.append(helper.make_node("Nonesuch", ["logits"], ["x"]))
    return model


def with_wrong_weights() -> onnx.ModelProto:
    model = tiny_model()
    weights = next(t for t in model.graph.initializer if t.name == "weights")
    weights.CopyFrom(numpy_helper.from_array(np.zeros((3, 5), np.float32), "weights"))
    return model


@pytest.mark.parametrize(
    "model, reason",
    [
        (without_logits, "the graph must"),
        (with_fixed_batch, "free batch dimension|golden"),
        (with_float_input, "the graph must"),
        (lambda: tiny_model(classes=3), "the graph must"),
        (lambda: tiny_model(size=64), "the graph must"),
        (with_unknown_operator, "ONNX Runtime refuses"),
        (with_wrong_weights, "ONNX Runtime refuses"),
        (lambda: b"", "the graph must|ONNX Runtime refuses"),
        (lambda: b"not a model", "not an ONNX file"),
    ],
)
def test_a_graph_that_breaks_the_contract_is_refused(tmp_path: Path, model, reason: str) -> None:
    build_version(tmp_path, "pets", model=model())
    with pytest.raises(BrokenVersion, match=reason):
        load(tmp_path)


def has_gpu() -> bool:
    return os.path.exists("/dev/nvidiactl")


@pytest.mark.skipif(has_gpu(), reason="there is a GPU here")
def test_cuda_is_not_silently_replaced(models: Path) -> None:
    with pytest.raises(Unavailable, match="CUDA is asked for, but"):
        load(models, device="cuda")
    assert load(models, device="auto").device == "cpu"


def test_nothing_is_written_to_stderr_on_the_way(models: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from serving.engine import load_engine; "
        "from serving.repository import Repository; "
        "load_engine(Repository(Path(sys.argv[1])), 'pets', 1, device='auto', cores=1); "
        "assert not {'torch', 'onnx'} & sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(models)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
