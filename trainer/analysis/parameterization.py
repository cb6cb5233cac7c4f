"""Pictures as frequencies and decorrelated colours (Olah, Mordvintsev & Schubert 2017, "Feature
Visualization", doi:10.23915/distill.00007, section "Preconditioning and parameterization").

Constants are those of tensorflow/lucid, optvis/param (spatial.py, color.py). A step of equal size
in every coordinate then changes coarse structure more than fine, which is what keeps an optimiser
from filling the picture with high-frequency noise.
"""

import torch
from torch import Tensor

# Square root of the colour covariance of ImageNet, by SVD (lucid, color.py): columns are the
# decorrelated axes, about brightness, blue-yellow and green-magenta.
_COLOUR_AXES = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
_INITIAL_DEVIATION = 0.01  # of each coefficient (lucid, spatial.py)
_AMPLITUDE = 0.25  # lucid divides by 4 so that step sizes are alike with and without frequencies


def random_spectrum(n: int, size: int, generator: torch.Generator) -> Tensor:
    """float32 [n, 3, S, S // 2 + 1, 2]: real and imaginary parts, of pictures nearly grey."""
    shape = (n, 3, size, size // 2 + 1, 2)
    return _INITIAL_DEVIATION * torch.randn(shape, generator=generator, device=generator.device)


def to_pixels(spectrum: Tensor) -> Tensor:
    """Pictures float32 [n, 3, S, S] in (0, 1) of a spectrum [n, 3, S, S // 2 + 1, 2].

    The amplitude of a coefficient does not depend on S, so a spectrum cut by `resized` is the same
    picture in less resolution.
    """
    size = spectrum.shape[2]
    weight = _AMPLITUDE / _cycles(size, spectrum.device).clamp_min(1)
    coefficients = torch.view_as_complex(spectrum.contiguous()) * weight
    planes = torch.fft.irfft2(coefficients, s=(size, size), norm="forward")
    return torch.sigmoid(torch.einsum("ij,njhw->nihw", _colours(spectrum), planes))


def resized(spectrum: Tensor, size: int) -> Tensor:
    """The spectrum for pictures of another size: frequencies cut off, or added as zeros."""
    n, channels, old, _, _ = spectrum.shape
    shared = min(old, size)
    low, high = (shared + 1) // 2, shared // 2  # rows of frequencies >= 0 and < 0
    columns = shared // 2 + 1
    new = spectrum.new_zeros(n, channels, size, size // 2 + 1, 2)
    new[:, :, :low, :columns] = spectrum[:, :, :low, :columns]
    if high:
        new[:, :, -high:, :columns] = spectrum[:, :, -high:, :columns]
    return new


def _cycles(size: int, device: torch.device) -> Tensor:
    """[S, S // 2 + 1]: the frequency of each coefficient in cycles per picture."""
    rows = torch.fft.fftfreq(size, 1 / size, device=device)
    columns = torch.fft.rfftfreq(size, 1 / size, device=device)
    return torch.hypot(rows[:, None], columns[None, :])


def _colours(like: Tensor) -> Tensor:
    axes = torch.tensor(_COLOUR_AXES, dtype=like.dtype, device=like.device)
    longest: Tensor = torch.linalg.vector_norm(axes, dim=0).max()
    return axes / longest
