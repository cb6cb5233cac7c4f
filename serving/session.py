"""Sessions of ONNX Runtime: from bytes that were checked, on the device asked for."""

import contextlib
import os
from collections.abc import Iterator, Sequence

from serving.errors import BrokenVersion, first_line
from serving.modelspec import SKIPPED_OPTIMIZERS
from serving.onnxfile import refuse_external_data
from serving.providers import CPU, Provider
from serving.runtime import onnxruntime

_SILENT, _ERROR, _WARNING = 4, 3, 2  # ONNX Runtime's log severities


def open_session(
    data: bytes,
    where: str,
    threads: int,
    providers: Sequence[Provider] = (),
    *,
    alone: bool = False,
    precision: str = "fp32",
) -> onnxruntime.InferenceSession:
    """where: what the data is, for messages. threads: cores that one run may use (CPU).

    alone: it runs where there is nothing else to do. providers: those to try before the CPU; the
    session may still be on the CPU: ask it. Raises BrokenVersion.
    """
    refuse_external_data(data, where)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERROR
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Bytes that look like ONNX Runtime's own format would be taken for it, past our check.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Threads that spin take the cores on which the next photos are decoded. Alone, they may within
    # a run, whose many layers would each wake them.
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(alone)))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if providers:
        onnxruntime.set_default_logger_severity(_SILENT)
    try:
        with _as_file(data) as model:
            session = onnxruntime.InferenceSession(
                model,
                options,
                [*providers, CPU],
                enable_fallback=0,
                disabled_optimizers=SKIPPED_OPTIMIZERS.get(precision),
            )
    except Exception as error:  # ONNX Runtime's own types have no common base
        raise BrokenVersion(f"ONNX Runtime refuses {where}: {first_line(error)}") from error
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)
    session._model_bytes = None  # kept only for set_providers, which we never call; VGG: 550 MB
    return session


@contextlib.contextmanager
def _as_file(data: bytes) -> Iterator[str | bytes]:
    """The very bytes that were checked, as a file in memory where the system has such (Linux).

    From bytes ONNX Runtime parses with the interpreter locked, from a file it does not: measured
    with the 538 MB of VGG-16, the event loop stood still for 0.45 s, and now for 0.01 to 0.12 s.
    """
    if not hasattr(os, "memfd_create"):
        yield data
        return
    descriptor = os.memfd_create("model.onnx")
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
