import dataclasses

import pytest
import torch

from tests.analysis.nets import convnet, pictures
from trainer.analysis.ideal import FRAMES, FourierRecipe, LessonRecipe, fourier, lesson
from trainer.analysis.lattice import from_uint8
from trainer.analysis.objectives import class_logit, total_variation
from trainer.analysis.parameterization import random_spectrum, resized, to_pixels
from trainer.analysis.transforms import Motion, moved

SIDE = 32
QUICK = FourierRecipe(coarse_steps=12, steps=20, polish_steps=200)
STILL = Motion(jitter=0.0, rotation_degrees=0.0, scale=(1.0, 1.0))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_total_variation_of_an_array_worked_by_hand():
    image = torch.tensor([[[[0.0, 1.0, 3.0], [2.0, 2.0, 0.0]]]])
    # right: 1 + 2 + 0 + 2 = 5; below: 2 + 1 + 3 = 6
    assert total_variation(image).tolist() == [11.0]
    two = torch.cat([image, 2 * image]).expand(2, 3, 2, 3)
    assert total_variation(two).tolist() == [33.0, 66.0]


def test_class_logit_picks_each_images_own_class():
    logits = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert class_logit(logits, torch.tensor([1, 0])).tolist() == [2.0, 3.0]


def test_every_spectrum_is_a_picture_with_real_pixels():
    wild = 100 * random_spectrum(3, SIDE, seeded())
    images = to_pixels(wild)
    assert images.shape == (3, 3, SIDE, SIDE) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    start = to_pixels(random_spectrum(3, SIDE, seeded()))
    assert (start - 0.5).abs().max() < 0.2  # nearly grey


@pytest.mark.parametrize("frequency", [1, 2, 5])
def test_waves_are_the_smaller_the_finer_they_are(frequency):
    """A quarter of lucid's, over the cycles per picture, along axes of which the longest is 1."""
    for row, column in ((0, frequency), (frequency, 0)):
        spectrum = torch.zeros(1, 3, SIDE, SIDE // 2 + 1, 2)
        spectrum[0, 0, row, column, 0] = 1
        spectrum[0, 0, -row, column, 0] = 1  # else half of a real wave is missing
        waves = to_pixels(spectrum).logit()[0]
        brightness = torch.tensor([0.26, 0.27, 0.27])
        expected = 2 * 0.25 / frequency * brightness / brightness.norm()
        assert waves.amax(dim=(1, 2)) == pytest.approx(expected, rel=1e-3)


def test_a_cut_spectrum_is_the_same_picture_in_less_resolution():
    smooth = resized(random_spectrum(1, 16, seeded()), 64)
    large, small = to_pixels(smooth), to_pixels(resized(smooth, 32))
    assert torch.allclose(large[:, :, ::2, ::2], small, atol=1e-5)
    assert torch.equal(resized(resized(smooth, 32), 64), smooth)
    for side in (15, 16):
        whole = random_spectrum(1, side, seeded())
        assert torch.equal(resized(whole, side), whole), "nothing is cut"


def test_motion_of_nothing_is_the_identity():
    images = pictures(3, SIDE)
    assert torch.allclose(moved(images, STILL, seeded()), images, atol=1e-5)


@pytest.mark.parametrize(
    "motion",
    [
        dataclasses.replace(STILL, jitter=0.2),
        dataclasses.replace(STILL, rotation_degrees=20.0),
        dataclasses.replace(STILL, scale=(0.7, 1.3)),
    ],
)
def test_each_image_moves_for_itself_and_the_seed_decides(motion):
    images = pictures(1, SIDE).repeat(2, 1, 1, 1)
    once, again = moved(images, motion, seeded()), moved(images, motion, seeded())
    assert torch.equal(once, again)
    assert not torch.allclose(once[0], once[1], atol=0.01)
    assert not torch.allclose(once, moved(images, motion, seeded(1)), atol=0.01)


def test_motions_fill_their_limits_and_never_leave_them():
    """By what becomes of a picture of its own coordinates, from -1 to 1, around its middle."""
    motion = Motion(jitter=0.1, rotation_degrees=20.0, scale=(0.8, 1.1))
    place = torch.linspace(-1, 1, 21) * 20 / 21  # of the middles of the pixels
    down, across = torch.meshgrid(place, place, indexing="ij")
    images = torch.stack([across, down, 0 * down]).expand(500, 3, 21, 21)
    made = moved(images, motion, seeded())
    shifts = made[:, :2, 10, 10]
    x, y = ((made[:, :2, 10, 11] - shifts) / (2 / 21)).T  # where a step to the right leads
    angles, scales = torch.atan2(y, x).rad2deg(), 1 / torch.hypot(x, y)
    for values, low, high in ((shifts, -0.2, 0.2), (angles, -20, 20), (scales, 0.8, 1.1)):
        assert values.min() == pytest.approx(low, abs=0.02 * (high - low))
        assert values.max() == pytest.approx(high, abs=0.02 * (high - low))
        assert values.min() >= low - 1e-4 and values.max() <= high + 1e-4
    below = (made[:, :2, 11, 10] - shifts) / (2 / 21)
    assert torch.allclose(below, torch.stack([-y, x], dim=1), atol=1e-4), "no shear"


def test_a_quarter_turn_turns_by_a_quarter():
    images = pictures(1, SIDE)
    quarter = Motion(jitter=0.0, rotation_degrees=90.0, scale=(1.0, 1.0))
    for seed in range(1000):  # find a draw close to a whole quarter either way
        share = 2 * torch.rand(4, 1, generator=seeded(seed))[0, 0].item() - 1
        if abs(share) > 0.995:
            turned = moved(images, quarter, seeded(seed))
            expected = torch.rot90(images, 1 if share > 0 else -1, dims=(2, 3))
            assert (turned - expected).abs().mean() < 0.02
            return
    pytest.fail("no seed draws a whole quarter")


def test_motion_lets_the_gradient_through():
    images = pictures(2, SIDE).requires_grad_(True)
    (gradient,) = torch.autograd.grad(moved(images, Motion(), seeded()).sum(), images)
    assert gradient.abs().sum() > 0.5 * images.numel()


@pytest.mark.parametrize("recipe", ["fourier", "lesson"])
def test_the_class_becomes_likelier_and_the_figures_are_of_the_8_bit_picture(recipe):
    model, classes = convnet(4, sharpness=5), torch.tensor([2, 0, 3])
    if recipe == "fourier":
        made = fourier(model, classes, SIDE, QUICK, seeded())
        floor = 0.995
    else:
        made = lesson(model, classes, SIDE, LessonRecipe(steps=60), seeded())
        floor = 0.9
    assert made.pictures.shape == (3, SIDE, SIDE, 3) and made.pictures.dtype == torch.uint8
    shown = model(from_uint8(made.pictures)).softmax(dim=1)[torch.arange(3), classes]
    assert torch.allclose(made.probabilities, shown, atol=1e-5)
    assert (shown >= floor).all() and (made.curve[0] < shown).all()
    assert made.frames.shape == (FRAMES, 3, SIDE, SIDE, 3)
    assert made.frame_steps[0] == 0 and list(made.frame_steps) == sorted(set(made.frame_steps))
    assert torch.equal(made.frames[-1], made.pictures)
    assert len(made.curve) == len(made.curve_steps) and torch.equal(made.curve[-1], shown)
    assert (made.curve_steps[0], made.curve_steps[-1]) == (0, made.frame_steps[-1])
    assert len(made.curve_steps) > 30


@pytest.mark.parametrize("draw", [fourier, lesson])
def test_the_same_seed_gives_the_same_pictures(draw):
    recipe = (
        dataclasses.replace(QUICK, polish_steps=2) if draw is fourier else LessonRecipe(steps=10)
    )
    model, classes = convnet(3), torch.tensor([0, 1])
    one = draw(model, classes, SIDE, recipe, seeded())
    two = draw(model, classes, SIDE, recipe, seeded())
    other = draw(model, classes, SIDE, recipe, seeded(1))
    assert torch.equal(one.pictures, two.pictures)
    assert not torch.equal(one.pictures, other.pictures)


def test_one_lesson_step_is_the_gradient_step_as_written():
    model, classes = convnet(3), torch.tensor([1])
    recipe = LessonRecipe(steps=1, step_size=0.5)
    made = lesson(model, classes, SIDE, recipe, seeded())
    start = 0.5 + 0.1 * torch.randn((1, 3, SIDE, SIDE), generator=seeded())
    start = start.clamp(0, 1).requires_grad_(True)
    loss = 10 * torch.nn.functional.cross_entropy(model(start), classes)
    right = (start[..., 1:] - start[..., :-1]).abs().sum()
    below = (start[..., 1:, :] - start[..., :-1, :]).abs().sum()
    (gradient,) = torch.autograd.grad(loss + 0.005 * (right + below), start)
    expected = (start - 0.5 * gradient).clamp(0, 1)
    off = (made.pictures.permute(0, 3, 1, 2) / 255 - expected).abs().max()
    assert off <= 0.5 / 255 + 1e-4


def test_the_lesson_does_not_end_where_total_variation_has_just_gone_too_far():
    model, classes = convnet(4, sharpness=20), torch.arange(4)
    recipe = LessonRecipe(steps=100, step_size=5.0, total_variation=0.02)
    made = lesson(model, classes, SIDE, recipe, seeded())
    assert made.curve[25:-1].min() < 0.1, "it dips on the way"
    assert made.probabilities.min() > 0.99


def test_total_variation_makes_smoother_pictures():
    model, classes = convnet(3), torch.tensor([1])
    recipe = LessonRecipe(steps=40)
    smooth = lesson(model, classes, SIDE, recipe, seeded())
    rough = lesson(model, classes, SIDE, dataclasses.replace(recipe, total_variation=0.0), seeded())
    variation = [total_variation(from_uint8(made.pictures)).item() for made in (smooth, rough)]
    assert variation[0] < 0.8 * variation[1]


def test_the_polish_makes_sure_what_the_moving_picture_left_unsure():
    model, classes = convnet(4, sharpness=5), torch.tensor([0, 2, 3])
    moving = fourier(model, classes, SIDE, dataclasses.replace(QUICK, polish_steps=0), seeded())
    assert (moving.probabilities.logit() > moving.curve[0].logit() + 2).all()
    unsure = FourierRecipe(coarse_steps=1, steps=1, polish_steps=0)
    sure = dataclasses.replace(unsure, polish_steps=200)
    assert fourier(model, classes, SIDE, unsure, seeded()).probabilities.min() < 0.9
    assert fourier(model, classes, SIDE, sure, seeded()).probabilities.min() >= 0.995
