"""Where inference runs: CUDA where it works, else the CPU, and never silently another."""

import contextlib
import ctypes
import io

from serving.runtime import onnxruntime

DEVICES = ("auto", "cpu", "cuda")


def cuda_problem() -> str | None:
    """Why CUDA can't be used here, as a phrase for a person; None if nothing stands against it.

    Asked before ONNX Runtime is, which would write several lines to stderr and use the CPU.
    """
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "the installed onnxruntime is built without CUDA"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver (libcuda.so.1)"
    status = driver.cuInit(0)
    if status != 0:
        return f"the NVIDIA driver does not start (cuInit returns {status})"
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the NVIDIA driver sees no GPU"
    return library_problem()


def library_problem() -> str | None:
    """As cuda_problem, of the libraries of CUDA and cuDNN alone; loads them."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        onnxruntime.preload_dlls(msvc=False)
    problem = said.getvalue().partition("\n")[0]
    if not problem:
        # Newer ONNX Runtimes do without cuDNN, say nothing, and leave the CPU the convolutions.
        try:
            ctypes.CDLL("libcudnn.so.9")
        except OSError as error:
            problem = f"Failed to load libcudnn.so.9: {error}"
    if problem:
        return f"{problem} (pip install 'onnxruntime-gpu[cuda,cudnn]' brings the libraries)"
    return None


def tensorrt_problem() -> str | None:
    """As cuda_problem, of TensorRT, which ONNX Runtime's package does not bring."""
    if "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
        return "the installed onnxruntime is built without it"
    try:
        ctypes.CDLL("libnvinfer.so.10")
    except OSError:
        return "its library (libnvinfer.so.10) is not where the loader looks"
    return None
