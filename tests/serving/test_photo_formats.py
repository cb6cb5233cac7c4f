"""Which photos are decoded: by default, on demand, and where a decoder is missing."""

import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image, features

from protos.pawprint.v1 import classifier_pb2 as pb
from protos.pawprint.v1 import classifier_pb2_grpc
from serving.errors import InvalidImage, InvalidRequest
from serving.modelspec import Preprocessing
from serving.photo_formats import FORMATS, read_formats, readable
from serving.preprocess import decode, preprocess
from tests.conftest import running_server
from tests.photos import drawing, encode

HEIC = Path(__file__).parent / "heic"  # see make.py there
ROOT = Path(__file__).parents[2]
RED, GREEN, BLUE, GREY = (220, 20, 30), (20, 200, 30), (20, 30, 210), (128, 128, 128)
WHITE = (255, 255, 255)

needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
needs_heic = pytest.mark.skipif("HEIC" not in readable(), reason="needs pi_heif")


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    """Above left and right, below left and right, rounded to what is meant."""
    known = np.int64([RED, GREEN, BLUE, GREY, WHITE])
    right, below = image.width - 8, image.height - 8
    found = []
    for place in ((8, 8), (right, 8), (8, below), (right, below)):
        off = np.abs(known - np.int64(image.getpixel(place))).max(1)
        assert off.min() <= 4, image.getpixel(place)
        found.append(tuple(known[off.argmin()].tolist()))
    return found


@needs_heic
@pytest.mark.parametrize(
    ("name", "size", "seen"),
    [
        ("upright", (96, 64), [RED, GREEN, BLUE, GREY]),
        ("ten_bit", (96, 64), [RED, GREEN, BLUE, GREY]),
        ("turned", (64, 96), [BLUE, RED, GREY, GREEN]),  # once: its EXIF says so too
        ("clear", (96, 64), [RED, WHITE, BLUE, WHITE]),
    ],
)
def test_a_heic_is_seen_as_it_was_meant(
    name: str, size: tuple[int, int], seen: list[tuple[int, ...]]
) -> None:
    image = decode((HEIC / f"{name}.heic").read_bytes())
    assert (image.mode, image.size, corners(image)) == ("RGB", size, seen)


@needs_heic
def test_a_grey_heic() -> None:
    grey = np.asarray(decode((HEIC / "grey.heic").read_bytes()))
    assert np.array_equal(grey[..., 0], grey[..., 2])
    assert abs(int(grey[8, 8, 0]) - 81) < 4 and abs(int(grey[-8, -8, 0]) - 128) < 4


@needs_avif
def test_an_avif_is_seen_as_it_was_meant() -> None:
    quarters = np.full((64, 96, 3), GREY, np.uint8)
    quarters[:32, :48], quarters[:32, 48:], quarters[32:, :48] = RED, GREEN, BLUE
    picture = Image.fromarray(quarters)
    assert corners(decode(encode(picture, "AVIF", quality=95))) == [RED, GREEN, BLUE, GREY]
    turned = Image.Exif()
    turned[0x0112] = 6
    seen = decode(encode(picture, "AVIF", quality=95, exif=turned))
    assert seen.size == (64, 96) and corners(seen) == [BLUE, RED, GREY, GREEN]
    clear = picture.convert("RGBA")
    clear.putalpha(Image.fromarray(np.repeat(np.uint8([[255] * 48 + [0] * 48]), 64, axis=0)))
    seen = decode(encode(clear, "AVIF", quality=95))
    assert seen.mode == "RGB" and corners(seen) == [RED, WHITE, BLUE, WHITE]
    first = {"save_all": True, "append_images": [drawing()], "quality": 95}
    assert corners(decode(encode(picture, "AVIF", **first))) == [RED, GREEN, BLUE, GREY]


@needs_avif
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (33, 31), (3, 2000)])
def test_an_avif_of_an_odd_size(size: tuple[int, int]) -> None:
    spec = Preprocessing(size=32, interpolation="bilinear")
    assert preprocess(encode(drawing(*size), "AVIF"), spec).shape == (32, 32, 3)


@needs_avif
def test_only_what_is_allowed_is_decoded_however_much_could_be() -> None:
    avif = encode(drawing(), "AVIF")
    with pytest.raises(InvalidImage, match="BMP: it is AVIF; save it as JPEG"):
        decode(avif, formats=FORMATS)
    with pytest.raises(InvalidImage, match="formats AVIF$"):
        decode(encode(drawing(), "PNG"), formats=("AVIF",))
    with pytest.raises(InvalidImage, match="damaged or truncated"):
        decode(avif[:40])


def test_formats_are_read_as_people_write_them() -> None:
    assert read_formats("jpeg") == ("JPEG",)
    assert read_formats(" png, JPEG,png") == ("PNG", "JPEG")
    for text in ("tiff", "", "jpeg,", "jpeg png"):
        with pytest.raises(InvalidRequest, match="must be of jpeg,png,webp,gif,bmp,avif,heic"):
            read_formats(text)


WITHOUT = """
import sys
sys.modules["pi_heif"] = None
from serving.errors import PawprintError
from serving.photo_formats import read_formats, readable
from serving.preprocess import decode
assert "HEIC" not in readable()
for attempt in (lambda: decode(open(sys.argv[1], "rb").read()), lambda: read_formats("heic")):
    try:
        attempt()
    except PawprintError as error:
        print(error)
"""


def test_without_its_decoder_it_is_said_how_to_get_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, HEIC / "upright.heic"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    photo, setting = done.stdout.splitlines()
    assert "it is HEIC; save it as JPEG, or install the extra heic" in photo
    assert setting.startswith("HEIC needs the package pi_heif; install the extra heic")


@needs_avif
@needs_heic
async def test_a_server_decodes_them_only_if_it_is_told_to(models: Path) -> None:
    photos = [encode(drawing(), "AVIF"), (HEIC / "turned.heic").read_bytes()]
    request = pb.ClassifyRequest(model="pets", images=photos)
    kinds = ",".join(FORMATS).lower()

    async def results(address: str) -> list[pb.ImageResult]:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
            return list((await stub.Classify(request)).results)

    async with running_server(models) as running:
        told = [result.error.message for result in await results(running.address)]
        wrong = f"not an image in one of the formats {', '.join(FORMATS)}: it is"
        assert told == [f"{wrong} {kind}; save it as JPEG" for kind in ("AVIF", "HEIC")]
    async with running_server(models, photo_formats=f"{kinds},avif,heic") as running:
        for result in await results(running.address):
            assert result.WhichOneof("outcome") != "error"
