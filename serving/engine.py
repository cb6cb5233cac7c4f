"""One version of a model in ONNX Runtime, proven against its golden answers before it is used."""

import functools
import logging
from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime

from serving.device import cuda_problem
from serving.errors import BrokenVersion, Unavailable
from serving.golden import OUTPUTS, Floats, Images, check_golden
from serving.modelspec import Manifest
from serving.precision import choose_precision
from serving.repository import Repository
from serving.session import open_session

log = logging.getLogger(__name__)

# A larger file has one session, whose runs share its threads: each holds the weights anew.
_TWICE_IN_MEMORY = 256 * 2**20


class Engine:
    """`run` may be called from any thread."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        manifest: Manifest,
        device: str,
        precision: str,
        narrow: onnxruntime.InferenceSession | None = None,
    ) -> None:
        """narrow: the same on one core, for runs that share the cores with others."""
        self._session = session
        self._narrow = narrow or session
        self.manifest = manifest
        self.device = device  # "cpu" or "cuda"
        self.precision = precision  # a key of manifest.variants

    def run(self, images: Images, *, alone: bool = True) -> tuple[Floats, Floats]:
        """uint8 [n, S, S, 3] -> (probabilities, logits), each float32 [n, K].

        alone: no other run shares the cores.
        """
        session = self._session if alone else self._narrow
        probabilities, logits = session.run(OUTPUTS, {"image": images})
        return probabilities, logits


def load_engine(
    repository: Repository,
    name: str,
    version: int,
    *,
    device: str = "auto",
    cores: int,
    precision: str = "auto",
    warm_sizes: Callable[[str], Sequence[int]] = lambda device: (1,),
) -> Engine:
    """Check the whole version, create its session, prove its golden answers and warm it up.

    cores: those that a run which is alone may use (CPU). warm_sizes: device -> batch sizes to run
    once.
    Raises NotFound, BrokenVersion; Unavailable if `cuda` is asked for and can't be had.
    """
    problems = repository.verify_to_load(name, version)
    if problems:
        raise BrokenVersion(f"{name}/{version} is refused: {'; '.join(problems)}")
    manifest = repository.manifest(name, version)
    engine = _open(repository, manifest, device, cores, precision)
    for alone in (True, False):
        run = functools.partial(engine.run, alone=alone)
        check_golden(repository, manifest, run, engine.precision, engine.device)
    side = manifest.preprocessing.size
    for size in warm_sizes(engine.device):
        try:
            for alone in (True, False):
                engine.run(np.zeros((size, side, side, 3), np.uint8), alone=alone)
        except Exception as error:  # ONNX Runtime's own types have no common base
            reason = str(error).strip().splitlines()[0]
            raise BrokenVersion(
                f"{name}/{version} can't run a batch of {size} ({reason}); use a smaller max_batch"
            ) from error
    return engine


def _open(
    repository: Repository, manifest: Manifest, device: str, cores: int, precision: str
) -> Engine:
    if device != "cpu":
        problem = cuda_problem()
        if problem is None:
            # ONNX Runtime answers a failure of CUDA with a session on the CPU: ask what it did.
            engine = _engine(repository, manifest, "cuda", cores, precision)
            if engine.device == "cuda":
                return engine
            problem = "ONNX Runtime can't start its CUDA provider"
            if device == "auto":
                where = f"{manifest.name}/{manifest.version}"
                log.warning("%s runs on the CPU: %s", where, problem)
        if device == "cuda":
            raise Unavailable(f"CUDA is asked for, but {problem}; use --device cpu or auto")
    return _engine(repository, manifest, "cpu", cores, precision)


def _engine(
    repository: Repository, manifest: Manifest, device: str, cores: int, precision: str
) -> Engine:
    chosen = choose_precision(manifest, precision, device)
    file = manifest.variants[chosen].file
    data = repository.read_file(manifest, file)
    where = f"{manifest.name}/{manifest.version}/{file}"
    session = open_session(data, where, cores, cuda=device == "cuda")
    _check_contract(session, manifest)
    used = "cuda" if session.get_providers()[0] == "CUDAExecutionProvider" else "cpu"
    narrow = None
    if used == "cpu" and cores > 1 and len(data) <= _TWICE_IN_MEMORY:
        narrow = open_session(data, where, 1, cuda=False)
    return Engine(session, manifest, used, chosen, narrow)


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
