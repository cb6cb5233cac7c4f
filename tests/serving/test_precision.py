"""Which variant of a version is run, and how it is proven."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from serving.client import AsyncClient
from serving.engine import Engine, load_engine
from serving.errors import BrokenVersion
from serving.precision import choose_precision
from serving.repository import Repository
from tests.conftest import running_server
from tests.tiny import build_version, golden_of, tiny_model

# /proc/cpuinfo, and what `auto` chooses. Arm's: a Neoverse N1 (AWS Graviton2, Ampere Altra) and the
# Cortex-A72 of a Raspberry Pi 4, which has no dot products.
PROCESSORS = {
    "vnni": ("processor : 0\nflags\t\t: fma avx2 avx512_vnni\n", "int8"),
    "avx2": ("processor : 0\nflags\t\t: fma avx2\n", "fp32"),
    "neoverse-n1": (
        "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 "
        "crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\n"
        "CPU revision\t: 1\n\n",
        "int8",
    ),
    "cortex-a72": (
        "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\n"
        "CPU revision\t: 3\n\n",
        "fp32",
    ),
}


def rounded_model(steps: int) -> onnx.ModelProto:
    """The tiny model with its weights rounded to so many steps, as int8 has 127."""
    model = tiny_model()
    weights = next(t for t in model.graph.initializer if t.name == "weights")
    values = numpy_helper.to_array(weights)
    scale = np.abs(values).max() / steps
    rounded = (np.round(values / scale) * scale).astype(np.float32)
    weights.CopyFrom(numpy_helper.from_array(rounded, "weights"))
    return model


def archive(golden: dict[str, np.ndarray]) -> bytes:
    data = io.BytesIO()
    np.savez(data, **golden)
    return data.getvalue()


def publish(root: Path, precision: str, model: onnx.ModelProto, **files: bytes) -> None:
    extra = {f"model.{precision}.onnx": model.SerializeToString()}
    extra |= {f"golden.{precision}.npz": data for data in files.values()}
    build_version(root, "pets", extra_files=extra)


def load(root: Path, precision: str = "int8") -> Engine:
    repository = Repository(root)
    return load_engine(repository, "pets", 1, device="cpu", cores=1, precision=precision)


def test_auto_prefers_what_the_device_gains_by(tmp_path: Path) -> None:
    publish(tmp_path, "int8", rounded_model(127))
    manifest = Repository(tmp_path).manifest("pets", 1)
    for name, (text, chosen) in PROCESSORS.items():
        cpuinfo = tmp_path / name
        cpuinfo.write_text(text)
        assert choose_precision(manifest, "auto", "cpu", cpuinfo=cpuinfo) == chosen, name
    assert choose_precision(manifest, "auto", "cpu", cpuinfo=tmp_path / "absent") == "fp32"
    assert choose_precision(manifest, "auto", "cuda") == "fp32"
    half = replace(manifest, variants=manifest.variants | {"fp16": manifest.variants["int8"]})
    assert choose_precision(half, "auto", "cuda") == "fp16"
    assert choose_precision(half, "auto", "cpu", cpuinfo=tmp_path / "absent") == "fp32"
    assert choose_precision(manifest, "fp32", "cpu") == "fp32"
    with pytest.raises(BrokenVersion, match="no fp16 variant, only fp32, int8"):
        choose_precision(manifest, "fp16", "cpu")


def test_the_variant_itself_is_run(tmp_path: Path) -> None:
    publish(tmp_path, "int8", rounded_model(127))
    images = golden_of()["images"]
    int8, fp32 = load(tmp_path), load(tmp_path, "fp32")
    assert (int8.precision, fp32.precision) == ("int8", "fp32")
    difference = np.abs(int8.run(images)[1] - fp32.run(images)[1]).max()
    assert 1e-5 < difference < 0.1


def test_own_golden_answers_are_held_against_it(tmp_path: Path) -> None:
    publish(tmp_path / "plain", "int8", rounded_model(127))
    images = golden_of()["images"]
    probabilities, logits = load(tmp_path / "plain").run(images)
    own = {"images": images, "probabilities": probabilities, "logits": logits}
    publish(tmp_path / "good", "int8", rounded_model(127), golden=archive(own))
    assert load(tmp_path / "good").precision == "int8"
    far = own | {"logits": logits + np.float32(0.1 * np.abs(logits).max())}
    publish(tmp_path / "bad", "int8", rounded_model(127), golden=archive(far))
    with pytest.raises(BrokenVersion, match="its logits differ from the golden ones"):
        load(tmp_path / "bad")


def test_without_its_own_the_clear_labels_must_be_those_of_fp32(tmp_path: Path) -> None:
    publish(tmp_path, "int8", tiny_model(seed=8))  # another model altogether
    golden = golden_of()
    lead = np.abs(np.diff(golden["probabilities"], axis=1)[:, 0])
    assert (lead > 0.2).any()
    with pytest.raises(BrokenVersion, match="in int8 .* of .* golden photos get another label"):
        load(tmp_path)


async def test_the_precision_is_in_get_model_and_its_own_accuracy(tmp_path: Path) -> None:
    publish(tmp_path, "int8", rounded_model(127))
    for wanted, served in (("int8", "int8"), ("fp32", "fp32")):
        async with (
            running_server(tmp_path, precision=wanted) as running,
            AsyncClient(running.address) as client,
        ):
            assert (await client.get_model("pets")).precision == served
