"""One version of a model in ONNX Runtime, proven against its golden answers before it is used."""

import io
import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime

from serving.device import cuda_problem
from serving.errors import BrokenVersion, Unavailable
from serving.modelspec import Manifest
from serving.onnxfile import refuse_external_data
from serving.repository import Repository

log = logging.getLogger(__name__)

PRECISION = "fp32"
GOLDEN = "golden.npz"
OUTPUTS = ("probabilities", "logits")
# Share of the largest golden value. Another processor or provider sums in another order (about
# 1e-6 of the scale); wrong weights or another reading of an operator are far beyond it. Within it
# the first label is the golden one wherever that leads by more than twice the tolerance.
GOLDEN_TOLERANCE = 1e-3

_SILENT, _ERROR, _WARNING = 4, 3, 2  # ONNX Runtime's log severities

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class Engine:
    """`run` may be called from any thread."""

    def __init__(
        self, session: onnxruntime.InferenceSession, manifest: Manifest, device: str
    ) -> None:
        self._session = session
        self.manifest = manifest
        self.device = device  # "cpu" or "cuda"
        self.precision = PRECISION

    def run(self, images: Images) -> tuple[Floats, Floats]:
        """uint8 [n, S, S, 3] -> (probabilities, logits), each float32 [n, K]."""
        probabilities, logits = self._session.run(OUTPUTS, {"image": images})
        return probabilities, logits


def load_engine(
    repository: Repository,
    name: str,
    version: int,
    *,
    device: str = "auto",
    threads: int,
    warm_sizes: Sequence[int] = (1,),
) -> Engine:
    """Check the whole version, create its session, prove its golden answers and warm it up.

    threads: cores that one run may use (CPU). warm_sizes: batch sizes to run once.
    Raises NotFound, BrokenVersion; Unavailable if `cuda` is asked for and can't be had.
    """
    problems = repository.verify_to_load(name, version)
    if problems:
        raise BrokenVersion(f"{name}/{version} is refused: {'; '.join(problems)}")
    manifest = repository.manifest(name, version)
    file = manifest.variants[PRECISION].file
    data = repository.read_file(manifest, file)
    refuse_external_data(data, f"{name}/{version}/{file}")
    session, used = _open(data, f"{name}/{version}/{file}", device, threads)
    _check_contract(session, manifest)
    engine = Engine(session, manifest, used)
    _check_golden(engine, repository.read_file(manifest, GOLDEN))
    for size in sorted(set(warm_sizes)):
        side = manifest.preprocessing.size
        engine.run(np.zeros((size, side, side, 3), np.uint8))
    return engine


def _open(
    data: bytes, where: str, device: str, threads: int
) -> tuple[onnxruntime.InferenceSession, str]:
    if device != "cpu":
        problem = cuda_problem()
        if problem is None:
            # ONNX Runtime answers a failure of CUDA with a session on the CPU: ask what it did.
            session = _session(data, where, threads, cuda=True)
            if session.get_providers()[0] == "CUDAExecutionProvider":
                return session, "cuda"
            problem = "ONNX Runtime can't start its CUDA provider"
            if device == "auto":
                log.warning("%s runs on the CPU: %s", where, problem)
        if device == "cuda":
            raise Unavailable(f"CUDA is asked for, but {problem}; use --device cpu or auto")
    return _session(data, where, threads, cuda=False), "cpu"


def _session(data: bytes, where: str, threads: int, *, cuda: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERROR
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Bytes that look like ONNX Runtime's own format would be taken for it, past our check.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Threads that spin between runs take the cores on which the next photos are decoded.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[str | tuple[str, dict[str, str]]] = ["CPUExecutionProvider"]
    if cuda:
        # TF32 keeps 10 bits of the mantissa: its logits are not those that the manifest vouches
        # for. The exhaustive search of convolutions would time every one for every batch size.
        settings = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
        providers.insert(0, ("CUDAExecutionProvider", settings))
        onnxruntime.set_default_logger_severity(_SILENT)
    try:
        session = onnxruntime.InferenceSession(data, options, providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's own types have no common base
        reason = str(error).strip().splitlines()[0]
        raise BrokenVersion(f"ONNX Runtime refuses {where}: {reason}") from error
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)
    session._model_bytes = None  # kept only for set_providers, which we never call; VGG: 550 MB
    return session


def _check_contract(session: onnxruntime.InferenceSession, manifest: Manifest) -> None:
    """Raises BrokenVersion unless inputs and outputs are those that the manifest promises."""
    side, classes = manifest.preprocessing.size, len(manifest.labels)
    inputs = {i.name: (i.type, *i.shape[1:]) for i in session.get_inputs()}
    outputs = {o.name: (o.type, *o.shape[1:]) for o in session.get_outputs()}
    wanted_inputs = {"image": ("tensor(uint8)", side, side, 3)}
    wanted_outputs = dict.fromkeys(OUTPUTS, ("tensor(float)", classes))
    fixed = [i.name for i in session.get_inputs() if isinstance(i.shape[0], int)]
    if inputs != wanted_inputs or outputs != wanted_outputs or fixed:
        raise BrokenVersion(
            f"{manifest.name}/{manifest.version}: the graph must take {wanted_inputs} with a free "
            f"batch dimension and give {wanted_outputs}; it takes {inputs} and gives {outputs}"
        )


def _check_golden(engine: Engine, archive: bytes) -> None:
    """Raises BrokenVersion unless this machine gives the answers of the machine that exported."""
    where = f"{engine.manifest.name}/{engine.manifest.version}"
    try:
        with np.load(io.BytesIO(archive), allow_pickle=False) as golden:
            images = golden["images"]
            expected = {name: golden[name] for name in OUTPUTS}
        answers = dict(zip(OUTPUTS, engine.run(images), strict=True))
    except Exception as error:  # zipfile, numpy and ONNX Runtime raise almost anything here
        raise BrokenVersion(f"{where}: {GOLDEN} can't be used: {error}") from error
    for name, answer in answers.items():
        if answer.shape != expected[name].shape or len(images) == 0:
            raise BrokenVersion(
                f"{where}: {GOLDEN} has {name} {expected[name].shape}, the model {answer.shape}"
            )
        limit = GOLDEN_TOLERANCE * float(np.abs(expected[name]).max())
        difference = float(np.abs(answer - expected[name]).max())
        if not difference <= limit:  # so that NaN fails
            raise BrokenVersion(
                f"{where}: its {name} differ from the golden ones by {difference:.2g} on this "
                f"machine ({engine.device}), more than {limit:.2g}; export it again or use another "
                "device"
            )
