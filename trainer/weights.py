"""State dicts: read from a file without running what is in it, and fitted to a net."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from serving.errors import InvalidRequest, first_line, listed

State = Mapping[str, torch.Tensor]


def read_state(path: Path) -> State:
    """The tensors of a .safetensors file or of a state dict of torch. Raises InvalidRequest."""
    if not path.is_file():
        raise InvalidRequest(f'no weights file {path}; give a file, "imagenet" or "none"')
    try:
        if path.suffix == ".safetensors":
            tensors: State = load_file(path)
            return tensors
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises almost anything on other bytes
        raise InvalidRequest(
            f"{path} can't be read as a state dict: {first_line(error)[:160]}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InvalidRequest(f"{path} is not a state dict: expected a dict of name to tensor")
    return state


def load_state(net: nn.Module, state: State, *, ignore: str, where: str) -> None:
    """Load `state` into `net`, but for the names that begin with `ignore` (the old head).

    Raises InvalidRequest naming the keys that are missing, unknown, or of another shape.
    """
    expected = {k: v for k, v in net.state_dict().items() if not k.startswith(ignore)}
    given = {k: v for k, v in state.items() if not k.startswith(ignore)}
    counters = {k for k in expected if k.endswith(".num_batches_tracked")}  # old files lack them
    problems = []
    if missing := sorted(expected.keys() - given.keys() - counters):
        problems.append(f"missing {listed(missing, 5)}")
    if unknown := sorted(given.keys() - expected.keys()):
        problems.append(f"not in the net {listed(unknown, 5)}")
    shapes = [
        f"{k} is {tuple(given[k].shape)}, expected {tuple(expected[k].shape)}"
        for k in expected.keys() & given.keys()
        if given[k].shape != expected[k].shape
    ]
    if shapes:
        problems.append(f"of another shape {listed(sorted(shapes), 5)}")
    if problems:
        raise InvalidRequest(f"the weights in {where} do not fit: {'; '.join(problems)}")
    net.load_state_dict({**expected, **given}, strict=False)


def digest_state(state: State) -> str:
    """sha256 over the names, shapes and values, hex."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()
