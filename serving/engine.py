"""One version of a model in ONNX Runtime, proven against its golden answers before it is used."""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from serving.bound_runs import BoundRuns
from serving.device import cuda_problem, tensorrt_problem
from serving.errors import BrokenVersion, Unavailable, first_line, listed
from serving.golden import Floats, Images, Run, check_golden
from serving.gpu_settings import GpuSettings
from serving.modelspec import INPUT, Familiarity, Manifest, outputs_of, widths_of
from serving.precision import choose_precision
from serving.providers import CUDA, TENSORRT, engine_folder, gpu_providers
from serving.repository import Repository
from serving.runtime import onnxruntime
from serving.session import open_session

log = logging.getLogger(__name__)

# A larger file has one session, whose runs share its threads: each holds the weights anew.
_TWICE_IN_MEMORY = 256 * 2**20
_ANY_GPU = GpuSettings()


class Engine:
    """`run` may be called from any thread."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        manifest: Manifest,
        device: str,
        precision: str,
        narrow: onnxruntime.InferenceSession | None = None,
        bound: BoundRuns | None = None,
        familiarity: Familiarity | None = None,
    ) -> None:
        """narrow: the same on one core, for runs that share the cores with others. bound: of the
        session, used for all runs."""
        self._session = session
        self._narrow = narrow or session
        self._bound = bound
        self.manifest = manifest
        self.device = device  # "cpu" or "cuda"
        self.precision = precision  # a key of manifest.variants
        self.familiarity = familiarity  # None: the version gives none
        self.outputs = outputs_of(familiarity is not None)

    def run(self, images: Images, *, alone: bool = True) -> tuple[Floats, ...]:
        """uint8 [n, S, S, 3] -> `outputs`: probabilities and logits, each float32 [n, K], and of a
        version that gives it the familiarity [n, 1].

        alone: no other run shares the cores.
        """
        if self._bound is not None:
            return self._bound.run(images)
        session = self._session if alone else self._narrow
        return tuple(session.run(self.outputs, {INPUT: images}))


def load_engine(
    repository: Repository,
    name: str,
    version: int,
    *,
    device: str = "auto",
    cores: int,
    precision: str = "auto",
    gpu: GpuSettings = _ANY_GPU,
    warm_sizes: Callable[[str], Sequence[int]] = lambda device: (1,),
) -> Engine:
    """Check the whole version, create its session, prove its golden answers and warm it up.

    cores: those that a run which is alone may use (CPU). warm_sizes: device -> batch sizes to run
    once, ascending.
    Raises NotFound, BrokenVersion; Unavailable if `cuda` or TensorRT is asked for and can't be had.
    """
    problems = repository.verify_to_load(name, version)
    if problems:
        raise BrokenVersion(f"{name}/{version} is refused: {listed(problems, between='; ')}")
    manifest = repository.manifest(name, version)
    opening = _Opening(
        repository=repository,
        manifest=manifest,
        familiarity=repository.familiarity(manifest),
        cores=cores,
        precision=precision,
        gpu=gpu,
        sizes=warm_sizes,
    )
    engine = _open(opening, device)
    for run in _ways(engine):
        check_golden(repository, manifest, run, engine.precision, engine.device, engine.familiarity)
    _warm(engine, warm_sizes(engine.device))
    return engine


def _ways(engine: Engine) -> list[Run]:
    """All that runs may take: on all cores and on one, or of any size and of a fixed one."""
    if engine.device == "cpu":
        return [functools.partial(engine.run, alone=alone) for alone in (True, False)]

    def one_by_one(images: Images) -> tuple[Floats, ...]:
        answers = zip(*(engine.run(image[None]) for image in images), strict=True)
        return tuple(np.concatenate(rows) for rows in answers)

    return [engine.run, one_by_one]


@dataclass(frozen=True, kw_only=True)
class _Opening:
    """What makes an engine, but for the device."""

    repository: Repository
    manifest: Manifest
    familiarity: Familiarity | None
    cores: int
    precision: str
    gpu: GpuSettings
    sizes: Callable[[str], Sequence[int]]


def _open(opening: _Opening, device: str) -> Engine:
    if device != "cpu":
        problem = cuda_problem()
        if problem is None:
            if opening.gpu.tensorrt and (missing := tensorrt_problem()):
                raise Unavailable(
                    f"TensorRT is asked for, but {missing}; leave out --tensorrt, or install it"
                )
            # ONNX Runtime answers a failure of CUDA with a session on the CPU: ask what it did.
            engine = _on_gpu(opening)
            if engine is not None:
                return engine
            problem = "ONNX Runtime can't start its CUDA provider"
            if device == "auto":
                where = f"{opening.manifest.name}/{opening.manifest.version}"
                log.warning("%s runs on the CPU: %s", where, problem)
        if device == "cuda":
            raise Unavailable(f"CUDA is asked for, but {problem}; use --device cpu or auto")
    return _on_cpu(opening)


def _make_folder(folder: Path) -> None:
    """Where ONNX Runtime can't, it looks like a fault of the version."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(f"the folder of --tensorrt can't be made: {error}") from error


def _on_cpu(opening: _Opening) -> Engine:
    manifest, cores = opening.manifest, opening.cores
    precision, data, where = _read(opening, "cpu")
    two = cores > 1 and len(data) <= _TWICE_IN_MEMORY
    session = open_session(data, where, cores, alone=two, precision=precision)
    _check_contract(session, manifest)
    narrow = open_session(data, where, 1, precision=precision) if two else None
    return Engine(session, manifest, "cpu", precision, narrow, familiarity=opening.familiarity)


def _on_gpu(opening: _Opening) -> Engine | None:
    """None where the session is not on the GPU after all."""
    manifest, gpu, sizes = opening.manifest, opening.gpu, opening.sizes("cuda")
    precision, data, where = _read(opening, "cuda")
    if gpu.tensorrt:
        _make_folder(engine_folder(gpu, manifest, precision))
    session = open_session(
        data,
        where,
        opening.cores,
        gpu_providers(gpu, manifest, precision, sizes),
        precision=precision,
    )
    _check_contract(session, manifest)
    providers = session.get_providers()
    if CUDA not in providers:
        return None
    if gpu.tensorrt and TENSORRT not in providers:
        raise Unavailable(
            f"{where}: ONNX Runtime can't start its TensorRT provider; leave out --tensorrt"
        )
    try:
        bound = BoundRuns(
            session,
            sizes,
            side=manifest.preprocessing.size,
            outputs=widths_of(manifest),
            device="cuda",
        )
        engine = Engine(
            session, manifest, "cuda", precision, bound=bound, familiarity=opening.familiarity
        )
        if gpu.cuda_graphs == "on":
            _warm(engine, sizes)  # which captures
    except Exception as error:  # ONNX Runtime's own types have no common base
        reason = first_line(error)
        if gpu.cuda_graphs == "off":
            raise BrokenVersion(
                f"{where}: no room on the GPU for batches of {sizes[-1]} ({reason}); use a smaller "
                "max_batch"
            ) from error
        log.warning("%s runs without CUDA graphs: %s", where, reason)
        return _on_gpu(replace(opening, gpu=replace(gpu, cuda_graphs="off")))
    return engine


def _read(opening: _Opening, device: str) -> tuple[str, bytes, str]:
    """Precision, the bytes of its file, and what they are."""
    manifest = opening.manifest
    chosen = choose_precision(manifest, opening.precision, device)
    file = manifest.variants[chosen].file
    data = opening.repository.read_file(manifest, file)
    return chosen, data, f"{manifest.name}/{manifest.version}/{file}"


def _warm(engine: Engine, sizes: Sequence[int]) -> None:
    """Run each size once, on all cores and on one. Raises BrokenVersion."""
    manifest, side = engine.manifest, engine.manifest.preprocessing.size
    for size in sizes:
        try:
            for alone in (True, False):
                engine.run(np.zeros((size, side, side, 3), np.uint8), alone=alone)
        except Exception as error:  # ONNX Runtime's own types have no common base
            reason = first_line(error)
            raise BrokenVersion(
                f"{manifest.name}/{manifest.version} can't run a batch of {size} ({reason}); use a "
                "smaller max_batch"
            ) from error


def _check_contract(session: onnxruntime.InferenceSession, manifest: Manifest) -> None:
    """Raises BrokenVersion unless inputs and outputs are those that the manifest promises."""
    side = manifest.preprocessing.size
    inputs = {i.name: (i.type, *i.shape[1:]) for i in session.get_inputs()}
    outputs = {o.name: (o.type, *o.shape[1:]) for o in session.get_outputs()}
    wanted_inputs = {INPUT: ("tensor(uint8)", side, side, 3)}
    wanted_outputs = {name: ("tensor(float)", n) for name, n in widths_of(manifest).items()}
    fixed = [i.name for i in session.get_inputs() if i.shape and isinstance(i.shape[0], int)]
    if inputs != wanted_inputs or outputs != wanted_outputs or fixed:
        raise BrokenVersion(
            f"{manifest.name}/{manifest.version}: the graph must take {wanted_inputs} with a free "
            f"batch dimension and give {wanted_outputs}; it takes {inputs} and gives {outputs}"
        )
