"""The golden answers of a version: proof that this machine answers as the one that exported it."""

import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from serving.errors import BrokenVersion
from serving.modelspec import FAMILIARITY, Familiarity, Manifest, outputs_of
from serving.repository import Repository

GOLDEN = "golden.npz"
# Share of the largest golden value. Another processor or provider sums in another order (about
# 1e-6 of the scale); wrong weights or another reading of an operator are far beyond it. Within it
# the first label is the golden one wherever that leads by more than twice the tolerance. In fp16
# and int8 a sum that falls on the other side of a rounding shifts what comes after by a whole step.
TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "int8": 5e-2}
# A familiarity goes by steps, of which a rounding can take one: at least two may be taken.
FAMILIARITY_TOLERANCE = {"fp32": 0.02, "fp16": 0.3, "int8": 0.3}
# A variant without golden answers of its own must give fp32's first label where that leads by this.
CLEAR_LEAD = 0.2

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Run = Callable[[Images], tuple[Floats, ...]]


def check_golden(
    repository: Repository,
    manifest: Manifest,
    run: Run,
    precision: str,
    device: str,
    familiarity: Familiarity | None,
) -> None:
    """Raises BrokenVersion unless `run` gives the answers of the machine that exported.

    familiarity: that of the version.
    """
    names = outputs_of(familiarity is not None)
    where = f"{manifest.name}/{manifest.version}"
    own = GOLDEN if precision == "fp32" else f"golden.{precision}.npz"
    file = own if own in manifest.files else GOLDEN
    data = repository.read_file(manifest, file)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as golden:
            images = golden["images"]
            expected = {name: golden[name].astype(np.float32) for name in names}
        answers = dict(zip(names, run(images), strict=True))
    except Exception as error:  # zipfile, numpy and ONNX Runtime raise almost anything here
        raise BrokenVersion(f"{where}: {file} can't be used: {error}") from error
    for name, answer in answers.items():
        if answer.shape != expected[name].shape or len(images) == 0:
            raise BrokenVersion(
                f"{where}: {file} has {name} {expected[name].shape}, the model {answer.shape}"
            )
    if file == own:
        limits = {
            name: TOLERANCE[precision] * float(np.abs(values).max())
            for name, values in expected.items()
        }
        if familiarity is not None:
            steps = 2 / (familiarity.photos + 1)
            limits[FAMILIARITY] = max(FAMILIARITY_TOLERANCE[precision], steps)
        _compare(where, answers, expected, limits, device)
    else:
        _compare_labels(where, answers["probabilities"], expected["probabilities"], precision)


def _compare(
    where: str,
    answers: dict[str, Floats],
    expected: dict[str, Floats],
    limits: dict[str, float],
    device: str,
) -> None:
    for name, answer in answers.items():
        limit = limits[name]
        difference = float(np.abs(answer - expected[name]).max())
        if not difference <= limit:  # so that NaN fails
            raise BrokenVersion(
                f"{where}: its {_plural(name)} differ from the golden ones by {difference:.2g} on "
                f"this machine ({device}), more than {limit:.2g}; export it again or use another "
                "device"
            )


def _plural(name: str) -> str:
    return "familiarities" if name == FAMILIARITY else name


def _compare_labels(where: str, answers: Floats, expected: Floats, precision: str) -> None:
    second, first = np.sort(expected, axis=1)[:, -2:].T
    clear = first - second > CLEAR_LEAD
    other = int((answers.argmax(axis=1) != expected.argmax(axis=1))[clear].sum())
    if other or not np.isfinite(answers).all():
        raise BrokenVersion(
            f"{where}: in {precision} {other} of {int(clear.sum())} golden photos get another "
            "label; export it again or use --precision fp32"
        )
