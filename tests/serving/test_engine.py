import _ctypes
import dataclasses
import json
import mmap
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from serving.bound_runs import BoundRuns
from serving.engine import Engine, load_engine
from serving.errors import BrokenVersion, NotFound, Unavailable
from serving.gpu_settings import GpuSettings
from serving.modelspec import OUTPUTS
from serving.providers import CUDA, TENSORRT, gpu_providers
from serving.repository import Repository
from serving.session import open_session
from tests.commands import run_python
from tests.conftest import ROOT
from tests.tiny import (
    FAMILIARITY_OF_TINY,
    build_version,
    familiarity_of,
    golden_of,
    in_fp16_as_vits_are,
    logits_of,
    softmax,
    tiny_model,
)


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


def test_a_vit_in_fp16_is_opened_on_the_cpu(tmp_path: Path) -> None:
    half = in_fp16_as_vits_are(tiny_model()).SerializeToString()
    build_version(tmp_path, "pets", extra_files={"model.fp16.onnx": half})
    load = f"load_engine(Repository(Path({str(tmp_path)!r})), 'pets', 1, device='cpu', "
    imports = "from pathlib import Path\nfrom serving.engine import load_engine, Repository\n"
    done = run_python("-c", f"{imports}{load}cores=2, precision='fp16')")  # it ended the process
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_beside_others_has_one_core_and_large_weights_are_held_once(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def open_seen(*told: Any, alone: bool = False, precision: str) -> onnxruntime.InferenceSession:
        opened.append((told[2], alone))
        return open_session(*told, alone=alone, precision=precision)

    monkeypatch.setattr("serving.engine.open_session", open_seen)
    file = (models / "pets/1/model.onnx").stat().st_size
    for cores, twice, threads in (
        (2, file, [(2, True), (1, False)]),
        (1, file, [(1, False)]),
        (2, file - 1, [(2, False)]),
    ):
        monkeypatch.setattr("serving.engine._TWICE_IN_MEMORY", twice)
        load_engine(Repository(models), "pets", 1, device="cpu", cores=cores)
        assert opened == threads
        opened.clear()


def test_a_version_that_knows_says_how_familiar_a_picture_is(tmp_path: Path) -> None:
    build_version(tmp_path, "pets", familiar=True)
    engine = load(tmp_path)
    images = np.random.default_rng(9).integers(0, 256, (7, 32, 32, 3), np.uint8)
    images[3] = 0
    probabilities, logits, familiarity = engine.run(images)
    expected = familiarity_of(images)
    assert familiarity.dtype == np.float32
    np.testing.assert_allclose(familiarity, expected, atol=1e-6)
    np.testing.assert_allclose(logits, logits_of(images), atol=1e-4)
    assert engine.familiarity is not None
    unfamiliar = [engine.familiarity.tells(float(value)) for value in familiarity[:, 0]]
    assert unfamiliar == [i == 3 for i in range(7)]

    widths = {"probabilities": 2, "logits": 2, "familiarity": 1}
    file = Repository(tmp_path).read_file(engine.manifest, "model.onnx")
    bound = BoundRuns(open_session(file, "pets", 1), (7,), side=32, outputs=widths, device="cpu")
    np.testing.assert_allclose(bound.run(images)[2], expected, atol=1e-6)


def test_a_familiarity_that_is_not_as_promised_is_refused(tmp_path: Path) -> None:
    build_version(tmp_path, "none", familiar=True, model=tiny_model())
    with pytest.raises(BrokenVersion, match="must take .*'familiarity': .'tensor.float.', 1"):
        load(tmp_path, "none")
    build_version(tmp_path, "unsaid", model=tiny_model(familiar=True))
    with pytest.raises(BrokenVersion, match="it takes .*'familiarity'"):
        load(tmp_path, "unsaid")
    for number, (good, bad, said) in enumerate(
        [
            ('"threshold": 0.01', '"threshold": NaN', "threshold must be between 0 and 1, got nan"),
            ('"threshold": 0.01', '"threshold": 2', "threshold must be between 0 and 1, got 2.0"),
            ('"photos": 99', '"photos": 0', "photos must be 1 or more, got 0"),
            ('"fp32": 0.0', '"fp32": 7', "unfamiliar.fp32 must be from 0 to 1, got 7.0"),
        ],
        start=1,
    ):
        told = json.dumps(dataclasses.asdict(FAMILIARITY_OF_TINY)).replace(good, bad).encode()
        build_version(tmp_path, "bad", familiar=True, extra_files={"familiarity.json": told})
        (problem,) = Repository(tmp_path).verify("bad", number)
        assert problem == f"familiarity.json is malformed: familiarity: {said}"
        with pytest.raises(BrokenVersion, match="familiarity.json is malformed"):
            load(tmp_path, "bad", number)

    other = golden_of() | {"familiarity": 1 - golden_of()["familiarity"]}
    build_version(tmp_path, "other", familiar=True, golden=other)
    with pytest.raises(BrokenVersion, match="its familiarities differ from the golden ones by 0.8"):
        load(tmp_path, "other")
    near = golden_of() | {"familiarity": golden_of()["familiarity"] - 0.02}  # two of 99 photos
    build_version(tmp_path, "near", familiar=True, golden=near)
    load(tmp_path, "near")
    build_version(tmp_path, "odd", familiar=True, extra_files={"familiarity.json": b"{}"})
    with pytest.raises(BrokenVersion, match=r"familiarity.json is malformed: .*missing"):
        load(tmp_path, "odd")


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
        {"logits": np.full((4, 2), "a")},
    ],
    ids=["nan", "other classes", "other size", "none", "other type", "pickle", "text"],
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
        (with_fixed_batch, "free batch dimension"),
        (with_float_input, "the graph must"),
        (lambda: tiny_model(classes=3), "the graph must"),
        (lambda: tiny_model(size=64), "the graph must"),
        (with_unknown_operator, "ONNX Runtime refuses"),
        (with_wrong_weights, "the graph must|ONNX Runtime refuses"),
        (lambda: b"", "the graph must|ONNX Runtime refuses"),
        (lambda: b"not a model", "not an ONNX file"),
    ],
)
def test_a_graph_that_breaks_the_contract_is_refused(tmp_path: Path, model, reason: str) -> None:
    build_version(tmp_path, "pets", model=model())
    with pytest.raises(BrokenVersion, match=reason):
        load(tmp_path)


def test_a_batch_that_has_no_room_is_found_before_calls_are(tmp_path: Path) -> None:
    model = tiny_model()
    nodes, constants = model.graph.node, model.graph.initializer
    for name, value in (("room", np.zeros(9, np.float32)), ("first", np.int64(0))):
        constants.append(numpy_helper.from_array(np.asarray(value), name))
    nodes[0].output[0] = "pixels"
    for node in (
        helper.make_node("Add", ["pixels", "zero"], ["float"]),
        helper.make_node("Gather", ["room", "batch"], ["zero"]),  # an error from a batch of 9 on
        helper.make_node("Gather", ["shape", "first"], ["batch"]),
        helper.make_node("Shape", ["image"], ["shape"]),
    ):
        nodes.insert(1, node)
    build_version(tmp_path, "pets", model=model)

    def load(*sizes: int) -> None:
        load_engine(
            Repository(tmp_path), "pets", 1, device="cpu", cores=1, warm_sizes=lambda device: sizes
        )

    load(1, 8)
    with pytest.raises(BrokenVersion, match=r"^pets/1 can't run a batch of 9 \(.+\); use"):
        load(1, 8, 9)


def has_gpu() -> bool:
    return os.path.exists("/dev/nvidiactl")


@pytest.mark.skipif(has_gpu(), reason="there is a GPU here")
def test_cuda_is_not_silently_replaced(models: Path) -> None:
    with pytest.raises(Unavailable, match="CUDA is asked for, but"):
        load(models, device="cuda")
    assert load(models, device="auto").device == "cpu"


@pytest.mark.skipif(has_gpu(), reason="there is a GPU here")
def test_a_gpu_that_onnx_runtime_does_not_start_is_not_silently_replaced(
    models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It answers with a session on the CPU."""
    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime is built without CUDA")
    monkeypatch.setattr("serving.engine.cuda_problem", lambda: None)
    problem = "ONNX Runtime can't start its CUDA provider"
    with pytest.raises(Unavailable, match=f"CUDA is asked for, but {problem}"):
        load(models, device="cuda")
    assert not caplog.messages
    assert load(models, device="auto").device == "cpu"
    assert caplog.messages == [f"pets/1 runs on the CPU: {problem}"]


def test_nothing_is_written_to_stderr_on_the_way(models: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from serving.engine import load_engine; "
        "from serving.repository import Repository; "
        "load_engine(Repository(Path(sys.argv[1])), 'pets', 1, device='auto', cores=1); "
        "assert not {'torch', 'onnx'} & sys.modules.keys()"
    )
    done = run_python("-c", code, models)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_bound_runs_answer_as_plain_ones_do(models: Path) -> None:
    """On the CPU, whose places are bound in the same way as those of a GPU."""
    repository = Repository(models)
    manifest = repository.manifest("pets", 1)
    session = open_session(repository.read_file(manifest, "model.onnx"), "pets/1", 1)
    widths = dict.fromkeys(OUTPUTS, len(manifest.labels))
    bound = BoundRuns(session, (1, 4), side=32, outputs=widths, device="cpu")
    images = np.random.default_rng(9).integers(0, 256, (4, 32, 32, 3), np.uint8)
    kept = bound.run(images)
    for count in (1, 2, 3, 4):  # 2 and 3 are not bound
        other = 255 - images[:count, ::-1]  # not contiguous
        for answer, expected in zip(
            bound.run(other), session.run(OUTPUTS, {"image": other}), strict=True
        ):
            np.testing.assert_allclose(answer, expected, atol=1e-5)
    for answer, expected in zip(kept, session.run(OUTPUTS, {"image": images}), strict=True):
        np.testing.assert_allclose(answer, expected, atol=1e-5)  # no later run has changed it


def test_bound_runs_of_two_threads_do_not_mix(models: Path) -> None:
    repository = Repository(models)
    manifest = repository.manifest("pets", 1)
    session = open_session(repository.read_file(manifest, "model.onnx"), "pets/1", 1)
    widths = dict.fromkeys(OUTPUTS, len(manifest.labels))
    bound = BoundRuns(session, (1,), side=32, outputs=widths, device="cpu")
    images = np.random.default_rng(9).integers(0, 256, (64, 32, 32, 3), np.uint8)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda image: bound.run(image[None])[1][0], images))
    np.testing.assert_allclose(answers, logits_of(images), atol=1e-4)


def test_what_a_gpu_is_told(models: Path) -> None:
    manifest = Repository(models).manifest("pets", 1)

    def told(**settings: Any) -> dict[str, dict[str, str]]:
        return dict(gpu_providers(GpuSettings(**settings), manifest, "fp32", (1, 2, 16)))

    plain = told()[CUDA]
    assert plain["use_tf32"] == "0" and plain["cudnn_conv_algo_search"] == "HEURISTIC"
    assert plain["enable_cuda_graph"] == "0" and "gpu_mem_limit" not in plain
    assert told(gpu_memory_mib=512)[CUDA]["gpu_mem_limit"] == str(512 * 2**20)
    assert told(cuda_graphs="on")[CUDA]["enable_cuda_graph"] == "1"
    both = told(tensorrt="engines", cuda_graphs="on")
    assert list(both) == [TENSORRT, CUDA]  # the most wanted first
    assert both[TENSORRT]["trt_profile_max_shapes"] == "image:16x32x32x3"
    assert both[TENSORRT]["trt_engine_cache_path"].startswith("engines/")
    assert (both[TENSORRT]["trt_cuda_graph_enable"], both[CUDA]["enable_cuda_graph"]) == ("1", "0")


def test_onnx_runtime_knows_all_that_a_gpu_is_told(models: Path) -> None:
    """Without a GPU no provider reads its options; their names are in its library all the same."""
    gpu = GpuSettings(cuda_graphs="on", gpu_memory_mib=512, tensorrt="engines")
    for provider, options in gpu_providers(
        gpu, Repository(models).manifest("pets", 1), "fp32", (1,)
    ):
        kind = provider.removesuffix("ExecutionProvider").lower()
        library = Path(onnxruntime.__file__).parent / f"capi/libonnxruntime_providers_{kind}.so"
        if not library.exists():
            pytest.skip(f"this onnxruntime is built without {kind}")
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as code:
            assert [name for name in options if code.find(name.encode()) < 0] == []


def test_the_folder_of_tensorrt_is_made_where_it_is_missing(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine that has all libraries: what ONNX Runtime then says is not looked at."""
    for asked in ("cuda_problem", "tensorrt_problem"):
        monkeypatch.setattr(f"serving.engine.{asked}", lambda: None)

    def load(folder: Path) -> None:
        gpu = GpuSettings(tensorrt=str(folder))
        load_engine(Repository(models), "pets", 1, device="cuda", cores=1, gpu=gpu)

    with pytest.raises((Unavailable, BrokenVersion)):
        load(tmp_path / "kept" / "engines")
    assert (tmp_path / "kept" / "engines").is_dir()
    (tmp_path / "file").touch()
    # Nor does /proc take new folders, not root's either: that is no fault of the version.
    for folder in (tmp_path / "file" / "engines", Path("/proc")):
        with pytest.raises(Unavailable, match=f"--tensorrt can't be made: .*{folder}"):
            load(folder)


def test_a_missing_cudnn_is_named(tmp_path: Path) -> None:
    """All of CUDA is there, as far as the loader sees: copies of a small library, by its names.
    A link to ONNX Runtime, as that looks for NVIDIA's packages beside itself."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime is built without CUDA")
    folder = tmp_path / "libraries"
    folder.mkdir()
    libraries = onnxruntime._get_nvidia_dll_paths(False, cuda=True, cudnn=True)
    *cuda, cudnn = [path[-1] for path in libraries]
    assert cudnn == "libcudnn.so.9"
    for name in cuda:
        shutil.copy(_ctypes.__file__, folder / name)
    (folder / "onnxruntime").symlink_to(Path(onnxruntime.__file__).parent)
    paths = {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    done = run_python(
        "-c",
        "from serving.device import library_problem; print(library_problem())",
        env=os.environ | paths,
    )
    assert done.stdout.startswith("Failed to load libcudnn.so.9: "), done
