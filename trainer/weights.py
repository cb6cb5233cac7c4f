"""State dicts: read from a file without running what is in it, and fitted to a net."""

import argparse
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from serving.errors import InvalidRequest, first_line, listed
from serving.paths import is_file

State = Mapping[str, torch.Tensor]

_WITHIN = ("state_dict", "model_state_dict", "model")  # of a checkpoint; the last torchvision's own
# Before each name: of DataParallel and of torch.compile, either of which may hold the other.
_WRAPPERS = ("_orig_mod.", "module.", "_orig_mod.")


def read_state(path: Path) -> State:
    """The tensors of a .safetensors file or of a state dict of torch, one in a checkpoint as well.

    Raises InvalidRequest.
    """
    if not is_file(path):
        raise InvalidRequest(f'no weights file {path}; give a file, "imagenet" or "none"')
    try:
        if path.suffix == ".safetensors":
            return _unwrapped(load_file(path))
        # A checkpoint of torchvision's recipe holds its flags.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises almost anything on other bytes
        raise InvalidRequest(
            f"{path} can't be read as a state dict: {first_line(error)[:160]}; one is written by "
            "torch.save(model.state_dict(), FILE)"
        ) from error
    if isinstance(state, dict):
        state = next((state[name] for name in _WITHIN if isinstance(state.get(name), dict)), state)
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InvalidRequest(f"{path} is not a state dict: expected a dict of name to tensor")
    return _unwrapped(state)


def _unwrapped(state: dict[str, Any]) -> State:
    """With the names that the net itself has."""
    for wrapper in _WRAPPERS:
        if state and all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): tensor for name, tensor in state.items()}
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
