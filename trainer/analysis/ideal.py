"""Ideal images: what a classifier takes for the purest example of each class."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from trainer.analysis.differentiable import input_gradient, logits_of
from trainer.analysis.lattice import from_uint8, to_uint8
from trainer.analysis.objectives import class_logit, cross_entropy, total_variation
from trainer.analysis.parameterization import random_spectrum, resized, to_pixels
from trainer.analysis.transforms import Motion, moved

FRAMES = 11  # start, 10 %, ..., end
_POINTS = 50  # of the curve of probability against step


@dataclass(frozen=True, kw_only=True)
class LessonRecipe:
    """Plain gradient descent on pixels, clipped to [0, 1]: the recipe of a first lesson."""

    steps: int = 1000
    step_size: float = 1.0
    cross_entropy: float = 10.0
    total_variation: float = 0.005


@dataclass(frozen=True, kw_only=True)
class FourierRecipe:
    """Adam on frequencies and decorrelated colours, under random motion; the logit as objective.

    The coarse steps see a picture of half the size, at a quarter of the cost; they lay out shapes
    of twice the scale. The polish, on the plain 8-bit picture, stops at `probability`.
    """

    coarse_steps: int = 128
    steps: int = 64
    polish_steps: int = 64  # at most
    probability: float = 0.995
    learning_rate: float = 0.03
    total_variation: float = 0.003
    motion: Motion = field(default_factory=Motion)


@dataclass(frozen=True, kw_only=True)
class IdealImages:
    """n pictures, one for each class asked for, and how they came about."""

    pictures: Tensor  # uint8 [n, S, S, 3]
    probabilities: Tensor  # float32 [n], of its class, for the 8-bit picture as it is
    frames: Tensor  # uint8 [F, n, S, S, 3], start to end
    frame_steps: tuple[int, ...]  # [F]
    curve: Tensor  # float32 [P, n]: probability of the plain picture
    curve_steps: tuple[int, ...]  # [P]


def lesson(
    model: nn.Module,
    classes: Tensor,
    size: int,
    recipe: LessonRecipe,
    generator: torch.Generator,
) -> IdealImages:
    """Descend 10 cross-entropy + 0.005 total variation from noise; classes: int64 [n].

    Where the net is sure, variation alone steps, until it has gone too far and is set right by a
    leap: the surest picture of the last tenth is taken, for the last one may lie in such a dip.
    """
    images = 0.5 + 0.1 * torch.randn(
        (len(classes), 3, size, size), generator=generator, device=generator.device
    )
    images = images.to(classes.device).clamp(0, 1).contiguous(memory_format=torch.channels_last)
    album = _Album(model, classes, recipe.steps)
    surest, least = images, torch.full(classes.shape, torch.inf, device=images.device)
    for step in range(recipe.steps + 1):
        album.look(step, images)
        _, loss, gradient = input_gradient(model, images, lambda z: cross_entropy(z, classes))
        if step >= recipe.steps - recipe.steps // 10:
            better = loss < least
            surest = torch.where(better.view(-1, 1, 1, 1), images, surest)
            least = torch.where(better, loss, least)
        descent = recipe.cross_entropy * gradient
        if recipe.total_variation:
            descent = descent + recipe.total_variation * _variation_gradient(images)
        images = (images - recipe.step_size * descent).clamp(0, 1)
    return album.close(recipe.steps, surest)


def fourier(
    model: nn.Module,
    classes: Tensor,
    size: int,
    recipe: FourierRecipe,
    generator: torch.Generator,
) -> IdealImages:
    """Ascend the logit in frequency space (Olah et al. 2017); classes: int64 [n].

    All classes are one batch; none influences another.
    """
    spectrum = random_spectrum(len(classes), size, generator).to(classes.device)
    planned = recipe.coarse_steps + recipe.steps
    album = _Album(model, classes, planned)
    done = 0
    for side, steps in ((max(size // 2, 32), recipe.coarse_steps), (size, recipe.steps)):
        leaf = resized(spectrum, min(side, size)).requires_grad_(True)
        optimizer = torch.optim.Adam([leaf], lr=recipe.learning_rate)
        for step in range(done, done + steps):
            if album.wants(step):
                with torch.no_grad():
                    album.look(step, to_pixels(resized(leaf, size)))
            images = to_pixels(leaf)
            logits = model(moved(images, recipe.motion, generator))
            loss = -class_logit(logits, classes)
            loss = loss + recipe.total_variation * total_variation(images)
            (leaf.grad,) = torch.autograd.grad(loss.sum(), leaf)
            optimizer.step()
        done += steps
        spectrum = resized(leaf.detach(), size)
    images, polished = _polish(model, classes, spectrum, recipe)
    return album.close(planned + polished, images)


def _polish(
    model: nn.Module, classes: Tensor, spectrum: Tensor, recipe: FourierRecipe
) -> tuple[Tensor, int]:
    """Descend the cross-entropy of the rounded picture where it is not yet sure.

    Rounding passes the gradient straight through. Returns the best pictures seen, [n, 3, S, S], and
    the steps taken; a class that is sure is not touched.
    """
    best = from_uint8(to_uint8(to_pixels(spectrum)))
    surest = _probability(model, best, classes)
    rows = (surest < recipe.probability).nonzero().squeeze(1)
    leaf = spectrum[rows].requires_grad_(True)
    optimizer = torch.optim.Adam([leaf], lr=recipe.learning_rate)
    for step in range(recipe.polish_steps):
        if bool((surest[rows] >= recipe.probability).all()):
            return best, step
        images = to_pixels(leaf)
        rounded = from_uint8(to_uint8(images.detach()))
        logits = model(images + (rounded - images).detach())
        loss = cross_entropy(logits, classes[rows])
        probability = (-loss.detach()).exp()
        better = (probability > surest[rows]) & (surest[rows] < recipe.probability)
        best[rows[better]], surest[rows[better]] = rounded[better], probability[better]
        (leaf.grad,) = torch.autograd.grad(loss.sum(), leaf)
        optimizer.step()
    return best, recipe.polish_steps


class _Album:
    """Frames and the curve of probability, taken at even intervals of the way."""

    def __init__(self, model: nn.Module, classes: Tensor, steps: int) -> None:
        self._model, self._classes = model, classes
        self._frame_steps = {round(i * steps / (FRAMES - 1)) for i in range(FRAMES - 1)}
        self._curve_steps = {round(i * steps / _POINTS) for i in range(_POINTS)}
        self._frames: dict[int, Tensor] = {}
        self._curve: dict[int, Tensor] = {}

    def wants(self, step: int) -> bool:
        return step in self._frame_steps or step in self._curve_steps

    def look(self, step: int, images: Tensor) -> None:
        if step in self._frame_steps:
            self._frames[step] = to_uint8(images)
        if step in self._curve_steps:
            self._curve[step] = _probability(self._model, images, self._classes)

    def close(self, step: int, images: Tensor) -> IdealImages:
        pictures = to_uint8(images)
        probabilities = _probability(self._model, from_uint8(pictures), self._classes)
        frames, curve = self._frames | {step: pictures}, self._curve | {step: probabilities}
        return IdealImages(
            pictures=pictures,
            probabilities=probabilities,
            frames=torch.stack(list(frames.values())),
            frame_steps=tuple(frames),
            curve=torch.stack(list(curve.values())),
            curve_steps=tuple(curve),
        )


def _probability(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    return (-cross_entropy(logits_of(model, images), classes)).exp().clone()


def _variation_gradient(images: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(total_variation(leaf).sum(), leaf)
    return gradient
