"""How a new head begins, where it is not solved on frozen features."""

import torch
from torch import nn


def initialise_head(head: nn.Linear, how: str, generator: torch.Generator) -> None:
    """Weights by `how`, bias 0.

    uniform: within 1/sqrt(F), torch's own; normal: standard deviation 0.01 (Krizhevsky et al. 2012,
    section 5); glorot: Glorot and Bengio 2010; kaiming: He et al. 2015, arXiv:1502.01852.
    """
    width = head.in_features
    with torch.no_grad():
        if how == "uniform":
            nn.init.uniform_(head.weight, -(width**-0.5), width**-0.5, generator=generator)
        elif how == "normal":
            nn.init.normal_(head.weight, std=0.01, generator=generator)
        elif how == "glorot":
            nn.init.xavier_uniform_(head.weight, generator=generator)
        else:
            nn.init.kaiming_normal_(head.weight, generator=generator)
        nn.init.zeros_(head.bias)
