"""Whether torch.compile works here."""

import torch

from serving.errors import InvalidRequest, first_line


def require_compiler(device: torch.device) -> None:
    """Compile one line, before hours are spent on what needs it. Raises InvalidRequest."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # a missing compiler, Triton or driver: each raises its own
        raise InvalidRequest(uncompilable(error)) from error


def uncompilable(error: Exception) -> str:
    return f"the net can't be compiled on this machine ({first_line(error)}); leave out --compile"
