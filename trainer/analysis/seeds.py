"""Random numbers that depend on the seed and on what they are for, not on who draws them when."""

import hashlib

import torch


def number_of(seed: int, name: str) -> int:
    """A seed of its own for the piece of that name."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7])


def generator_of(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(number_of(seed, name))
