from random import Random

import numpy as np
from PIL import Image

from trainer.cartoons import SPECIES, draw_cartoon, write_cartoons


def test_the_same_seed_draws_the_same_picture_and_another_seed_another():
    def pixels(seed):
        return np.asarray(draw_cartoon("cats", Random(seed)))

    assert np.array_equal(pixels("a"), pixels("a"))
    assert pixels("a").shape != pixels("b").shape or not np.array_equal(pixels("a"), pixels("b"))


def test_a_data_set_is_a_folder_a_class_of_jpegs_that_differ(tmp_path):
    write_cartoons(tmp_path, per_class=5, seed=3)
    for species in SPECIES:
        files = sorted((tmp_path / species).iterdir())
        assert len({f.read_bytes() for f in files}) == len(files) == 5
        for file in files:
            with Image.open(file) as image:
                assert image.format == "JPEG" and image.mode == "RGB"
                assert 200 <= min(image.size) and max(image.size) <= 400


def test_more_pictures_leave_the_first_ones_as_they_are(tmp_path):
    write_cartoons(tmp_path / "few", per_class=2)
    write_cartoons(tmp_path / "more", per_class=3)
    for file in (tmp_path / "few" / "dogs").iterdir():
        assert file.read_bytes() == (tmp_path / "more" / "dogs" / file.name).read_bytes()


def test_the_species_differ_only_in_what_is_drawn_of_the_animal():
    """Colour alone must not tell cats from dogs: the mean colours of many overlap widely."""
    means = {
        species: np.array(
            [
                np.asarray(draw_cartoon(species, Random(f"{species}{k}"))).mean((0, 1))
                for k in range(40)
            ]
        )
        for species in SPECIES
    }
    gap = np.abs(means["cats"].mean(0) - means["dogs"].mean(0))
    spread = (means["cats"].std(0) + means["dogs"].std(0)) / 2
    assert (gap < 0.75 * spread).all()
