import base64
import io

import numpy as np
from PIL import Image

from trainer.analysis import pictures
from trainer.analysis.pictures import amplified, captioned, data_uri, png_bytes, save_animation
from trainer.analysis.visions import ablation_captions


def random_pixels(seed, side=32):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def test_png_keeps_every_bit():
    pixels = random_pixels(0)
    for packed in (True, False):
        png = io.BytesIO(png_bytes(pixels, packed=packed))
        assert np.array_equal(np.asarray(Image.open(png)), pixels)


def test_the_amplified_difference_can_be_read_back():
    original = np.full((4, 4, 3), 100, np.uint8)
    altered = original.copy()
    altered[0, 0], altered[3, 3] = 104, 97
    shown, factor = amplified(original, altered)
    assert factor == 31
    assert (shown[0, 0] == 128 + 4 * 31).all() and (shown[3, 3] == 128 - 3 * 31).all()
    assert (shown[1, 1] == 128).all()


def test_no_difference_is_grey():
    shown, factor = amplified(random_pixels(1), random_pixels(1))
    assert factor == 1 and (shown == 128).all()


def test_a_panel_shows_the_pixels_themselves_with_room_for_the_captions():
    panels = [random_pixels(2), random_pixels(3)]
    image = np.asarray(captioned(panels, ["one", "two\nlines"], side=64))
    assert np.array_equal(image[:64:2, :64:2], panels[0])
    assert image.shape[1] == 2 * 64 + 4 and image.shape[0] > 64
    assert (image[64:, :64] != 255).any(), "a caption is drawn"


def test_captions_are_not_latin_alone():
    def caption(text):
        return np.asarray(captioned([random_pixels(4)], [text], side=64))[64:]

    boxes = caption("\ue000\ue000\ue000\ue000\ue000")  # of which no font has a picture
    assert not np.array_equal(caption("Кошка"), boxes) and not np.array_equal(
        caption("Кошка"), caption("Мышка")
    )


def test_an_animation_holds_every_frame_and_embeds_as_it_is(tmp_path):
    path = tmp_path / "way.webp"
    save_animation([random_pixels(seed) for seed in range(5)], path)
    with Image.open(path) as animation:
        assert animation.n_frames == 5
    assert base64.b64decode(data_uri(path).partition(",")[2]) == path.read_bytes()


def test_the_captions_of_the_ablation_are_not_cut(tmp_path, monkeypatch):
    """The figures are what it is about: 99.77 % must not read 99.7..."""
    cut = []
    fitted = pictures._fitted

    def watched(text, font, width):
        cut.append(fitted(text, font, width) != text)
        return fitted(text, font, width)

    monkeypatch.setattr(pictures, "_fitted", watched)
    captioned([random_pixels(0)] * 2, ablation_captions([0.9977, 0.9999]), side=320)
    assert len(cut) == 4 and not any(cut)
