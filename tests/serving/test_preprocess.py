import io
import re
import struct
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.errors import InvalidImage
from serving.modelspec import Preprocessing
from serving.photo_formats import FORMATS
from serving.preprocess import decode, preprocess
from tests.conftest import ROOT
from tests.photos import drawing, encode, jpeg, noise

SPEC = Preprocessing(size=32, interpolation="bilinear")

# What undoes each EXIF orientation (1 to 8), from CIPA DC-008 (EXIF 2.32), table of tag 274, stated
# as the transposition that a camera would have applied to the upright picture.
CAMERA = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation_is_undone(orientation: int, kind: str) -> None:
    upright = drawing(90, 60)
    stored = upright if orientation == 1 else upright.transpose(CAMERA[orientation])
    exif = Image.Exif()
    exif[274] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    seen = decode(encode(stored, kind, exif=exif, **options))
    assert seen.size == upright.size
    difference = np.abs(np.asarray(seen, float) - np.asarray(upright, float))
    assert difference.mean() < (3 if kind == "JPEG" else 1e-9)


def test_malformed_exif_does_not_cost_the_photo() -> None:
    """Three random bytes of the EXIF block altered, 500 times: the pixels are there every time."""
    exif = Image.Exif()
    exif[274], exif[271] = 6, "maker" * 20
    sound = encode(drawing(), "JPEG", exif=exif)
    start = sound.index(b"Exif") + 6
    generator = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what it skips
        for _ in range(500):
            data = bytearray(sound)
            for position in generator.integers(start, start + 120, 3):
                data[position] = generator.integers(0, 256)
            assert sorted(decode(bytes(data)).size) == [64, 96]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_a_square_png_of_the_right_size_passes_to_the_bit(interpolation: str) -> None:
    image = noise(48)
    spec = Preprocessing(size=48, interpolation=interpolation)
    pixels = preprocess(encode(image, "PNG"), spec)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(image))


def test_the_crop_is_the_centre_square() -> None:
    """Left third red, middle green, right blue: a 96 x 32 picture's centre square is green."""
    stripes = np.zeros((32, 96, 3), np.uint8)
    for i in range(3):
        stripes[:, 32 * i : 32 * (i + 1), i] = 255
    green = np.broadcast_to(np.uint8([0, 255, 0]), (32, 32, 3))
    for image in (Image.fromarray(stripes), Image.fromarray(stripes.transpose(1, 0, 2).copy())):
        np.testing.assert_array_equal(preprocess(encode(image, "PNG"), SPEC), green)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (33, 31), (640, 480), (3, 2000)])
def test_every_allowed_format_and_odd_size(kind: str, size: tuple[int, int]) -> None:
    pixels = preprocess(encode(drawing(*size), kind), SPEC)
    assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8


def test_cmyk_becomes_rgb() -> None:
    image = drawing(64, 64)
    seen = preprocess(encode(image.convert("CMYK"), "JPEG", quality=95), SPEC).astype(float)
    expected = preprocess(encode(image, "PNG"), SPEC).astype(float)
    assert np.abs(seen - expected).mean() < 4


def test_transparency_becomes_white() -> None:
    white = np.full((32, 32, 3), 255, np.uint8)
    clear = Image.new("RGBA", (40, 40), (10, 20, 30, 0))
    grey_alpha = Image.new("LA", (40, 40), (0, 0))
    palette = Image.new("P", (40, 40), 3)
    palette.putpalette([1, 2, 3] * 256)
    colour_key = Image.new("RGB", (40, 40), (9, 8, 7))
    for data in (
        encode(clear, "PNG"),
        encode(clear, "WEBP", lossless=True, exact=True),
        encode(grey_alpha, "PNG"),
        encode(palette, "PNG", transparency=3),
        encode(palette, "PNG", transparency=bytes([255, 255, 255, 0])),
        encode(palette, "GIF", transparency=3),
        encode(colour_key, "PNG", transparency=(9, 8, 7)),
    ):
        np.testing.assert_array_equal(preprocess(data, SPEC), white)


def test_half_transparent_is_blended_with_white() -> None:
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 128))
    assert set(np.unique(preprocess(encode(image, "PNG"), SPEC))) <= {126, 127, 128}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_tall_picture_is_blended_alike_in_all_its_parts(mode: str) -> None:
    image = noise(40, 700)
    alpha = Image.fromarray(np.asarray(noise(40, 700))[..., 0])
    if mode == "P":
        image = image.quantize(64)
        image.info["transparency"] = bytes(range(0, 256, 4))
    else:
        image.putalpha(alpha)
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    rgba = Image.open(buffer).convert("RGBA")
    whole = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    assert np.array_equal(decode(buffer.getvalue()), whole)


_FOUR_AT_ONCE = """
import re, sys
from concurrent.futures import ThreadPoolExecutor
from serving.modelspec import Preprocessing
from serving.preprocess import preprocess
spec, data = Preprocessing(size=32, interpolation="bilinear"), sys.stdin.buffer.read()
with ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda _: preprocess(data, spec), range(4)))
status = open("/proc/self/status").read()  # getrusage would count what the parent had, too
print(int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1]) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads its memory from /proc")
def test_large_photos_are_not_all_in_memory_at_once() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (5000, 4000), (9, 9, 9, 99)).save(buffer, "PNG")
    done = subprocess.run(
        [sys.executable, "-c", _FOUR_AT_ONCE],
        cwd=ROOT,
        input=buffer.getvalue(),
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert int(done.stdout) < 640  # MiB; 550: each keeps 80, and one takes 80 more; all, 720


_ONE = """
import re, sys
from serving.modelspec import Preprocessing
from serving.preprocess import preprocess
def mib(what):
    return int(re.search(what + r":\\s*(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
data, before = sys.stdin.buffer.read(), mib("VmRSS")
preprocess(data, Preprocessing(size=32, interpolation="bilinear"))
print(mib("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads its memory from /proc")
def test_a_picture_that_is_not_large_takes_what_the_page_allows_each_thread() -> None:
    """A transparent WebP takes the most, of as many pixels as are not yet decoded one at a time."""
    page = (ROOT / "docs/capacity.md").read_text()
    allowed = re.search(r"decode_threads x (\d+) MiB", page)
    assert allowed
    picture = Image.new("RGBA", (4000, 2999), (9, 9, 9, 99))
    done = subprocess.run(
        [sys.executable, "-c", _ONE],
        cwd=ROOT,
        input=encode(picture, "WEBP", lossless=True, quality=0, method=0),
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert 150 < float(done.stdout) < int(allowed[1])


_IN_100_MIB = """
import resource, sys
from serving.errors import Unavailable
from serving.preprocess import decode
data, taken = sys.stdin.buffer.read(), int(open("/proc/self/statm").read().split()[0])
limit = taken * resource.getpagesize() + (100 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
try:
    decode(data, draft=32)
except Unavailable as error:
    print(error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its memory from /proc")
@pytest.mark.parametrize(
    ("mode", "kind", "how"),
    [
        ("RGB", "PNG", {}),
        ("RGB", "JPEG", {"progressive": True}),  # libjpeg and libwebp say no more than of damage
        ("RGB", "WEBP", {"quality": 1, "method": 0}),
        ("RGB", "WEBP", {"lossless": True, "quality": 0, "method": 0}),
        ("RGBA", "WEBP", {"quality": 1, "method": 0}),
        ("RGB", "AVIF", {"quality": 1, "speed": 10}),
    ],
)
def test_a_photo_that_the_memory_is_too_small_for_is_not_called_damaged(
    mode: str, kind: str, how: dict[str, object]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IN_100_MIB],
        cwd=ROOT,
        input=encode(Image.new(mode, (7000, 7000)), kind, **how),
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.startswith(b"there is too little memory to decode the photo")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its memory from /proc")
@pytest.mark.parametrize("size", [(9, 7), (16383, 16383)])
def test_a_damaged_webp_is_called_so_where_the_memory_is_small(size: tuple[int, int]) -> None:
    """Of more pixels than are allowed, too: more memory would not help."""
    whole = encode(Image.new("RGB", (9, 7)), "WEBP")
    sides = b"".join(side.to_bytes(2, "little") for side in size)
    done = subprocess.run(
        [sys.executable, "-c", _IN_100_MIB],
        cwd=ROOT,
        input=whole[:26] + sides + whole[30:-9],
        capture_output=True,
        timeout=60,
    )
    assert b"the photo is damaged or truncated" in done.stderr


def test_palette_without_transparency_keeps_its_colours() -> None:
    palette = Image.new("P", (32, 32), 7)
    palette.putpalette([c for i in range(256) for c in (i, 2 * i % 256, 3 * i % 256)])
    expected = np.broadcast_to(np.uint8([7, 14, 21]), (32, 32, 3))
    np.testing.assert_array_equal(preprocess(encode(palette, "PNG"), SPEC), expected)


def test_grey_of_one_eight_and_sixteen_bits() -> None:
    half = np.arange(32) >= 16
    columns = np.broadcast_to(half, (32, 32))
    expected = np.repeat(np.where(columns, 255, 0)[..., None], 3, axis=2)
    one = Image.fromarray(columns.copy()).convert("1")
    eight = Image.fromarray(np.where(columns, 255, 0).astype(np.uint8))
    sixteen = Image.fromarray(np.where(columns, 65535, 0).astype(np.uint16))
    for image in (one, eight, sixteen):
        np.testing.assert_array_equal(preprocess(encode(image, "PNG"), SPEC), expected)


def test_sixteen_bit_grey_keeps_its_tones() -> None:
    ramp = np.broadcast_to((np.arange(32) * 2048).astype(np.uint16), (32, 32)).copy()
    seen = preprocess(encode(Image.fromarray(ramp), "PNG"), SPEC)
    np.testing.assert_array_equal(seen[0, :, 0], np.arange(32) * 8)


def test_the_clear_level_of_sixteen_bit_grey_becomes_white_and_its_neighbour_does_not() -> None:
    levels = np.where(np.arange(32) < 16, 5000, 5001).astype(">u2")  # 19 of 255, both
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 16, 0, 0, 0, 0))
    rows = (b"\0" + levels.tobytes()) * 32
    data = PNG[:8] + header + chunk(b"tRNS", struct.pack(">H", 5000))
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    seen = preprocess(data, SPEC)
    expected = np.where(np.arange(32) < 16, 255, 5001 >> 8)[None, :, None]
    np.testing.assert_array_equal(seen, np.broadcast_to(expected, (32, 32, 3)))


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (32, 32), c) for c in ("red", "blue", "green")]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert tuple(preprocess(data, SPEC)[16, 16]) == (255, 0, 0)


def test_draft_decoding_gives_nearly_what_full_decoding_gives() -> None:
    """A JPEG of 2000 x 1500 for 224: decoded at a quarter, and not visibly another picture."""
    data = jpeg(2000, 1500)
    drafted = decode(data, draft=224)
    assert drafted.size == (500, 375)
    spec = Preprocessing(size=224, interpolation="bilinear")
    full = encode(decode(data), "PNG")
    difference = preprocess(data, spec).astype(float) - preprocess(full, spec)
    assert np.abs(difference).mean() < 1.0
    assert np.abs(difference).max() < 40


def test_a_draft_is_never_smaller_than_the_model_needs() -> None:
    for width, height in ((449, 300), (448, 448), (900, 230), (3000, 256)):
        assert min(decode(jpeg(width, height), draft=224).size) >= 224


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "empty"),
        (b"\x00" * 100, "not an image"),
        (b"GIF89a", "not an image|damaged"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "BMP: it is SVG; save it as PNG"),
        (
            b"\n<!DOCTYPE html><title>404</title>",
            "BMP: it is a web page, as a download",
        ),
        (encode(drawing(), "TIFF"), "BMP: it is TIFF or a camera's raw file; save it as JPEG"),
        (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1", "BMP: it is AVIF; save it as JPEG"),
        (encode(drawing(), "JPEG2000"), "BMP: it is JPEG 2000; save it as JPEG"),
        (encode(drawing(), "PDF"), "BMP: it is PDF; save it as JPEG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "BMP: it is HEIC; save it as JPEG"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", "BMP: it is a video; its frames"),
        (encode(drawing(), "PPM"), "not an image"),
        (encode(drawing(), "ICO"), "not an image"),
        (jpeg()[:-200], "truncated"),
        (jpeg()[:30], "not an image|damaged"),
        (encode(drawing(), "PNG")[:-60], "truncated"),
        (encode(drawing(), "PNG")[:50], "damaged|truncated"),
        (encode(drawing(), "WEBP")[:-100], "damaged|not an image"),
        (encode(drawing(), "BMP")[:-100], "truncated"),
        (encode(drawing(), "GIF")[:-300], "damaged|truncated"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value.split("|")[0],
)
def test_unreadable_photos_are_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidImage, match=reason):
        preprocess(data, SPEC, formats=FORMATS)


def test_a_flipped_byte_in_a_png_is_noticed() -> None:
    data = bytearray(encode(noise(64), "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(InvalidImage, match="damaged"):
        preprocess(bytes(data), SPEC)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that claims any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8001, 10_000, 20_000, 60_000])
def test_a_decompression_bomb_is_refused_before_decoding(side: int) -> None:
    with pytest.raises(InvalidImage, match="64,000,000|pixels"):
        preprocess(bomb(side, side), SPEC)


def test_the_pixel_limit_is_inclusive() -> None:
    data = encode(drawing(50, 40), "PNG")
    assert preprocess(data, SPEC, max_pixels=2000).shape == (32, 32, 3)
    with pytest.raises(InvalidImage, match="50 x 40"):
        preprocess(data, SPEC, max_pixels=1999)


def test_a_limit_above_what_pillow_allows_is_kept() -> None:
    with pytest.raises(InvalidImage, match="damaged"):  # and not of more than 400,000,000 pixels
        preprocess(bomb(14_000, 14_000), SPEC, max_pixels=400_000_000)


def more_scans(photo: bytes, count: int) -> bytes:
    """The last scan of a progressive JPEG, again and again."""
    return photo[:-2] + photo[photo.rindex(b"\xff\xda") : -2] * count + photo[-2:]


def test_a_jpeg_of_a_great_many_scans_is_refused() -> None:
    photo = encode(drawing(90, 70), "JPEG", progressive=True)
    preprocess(more_scans(photo, 80), SPEC)
    with pytest.raises(InvalidImage, match="more than 100 scans"):
        preprocess(more_scans(photo, 120), SPEC)


def test_scans_are_counted_in_a_picture_of_several_and_behind_reserved_markers() -> None:
    """Pillow calls the first MPO; libjpeg reads what the second claims to hold."""
    photo = encode(drawing(90, 70), "JPEG", progressive=True)
    scans = more_scans(photo, 120)
    two = encode(drawing(90, 70), "MPO", save_all=True, append_images=[drawing(20, 20)])
    start = two.index(b"\xff\xe2")
    segment = two[start : start + 2 + int.from_bytes(two[start + 2 : start + 4])]
    several = scans[:2] + segment + scans[2:]
    assert Image.open(io.BytesIO(several)).format == "MPO"
    second = scans.index(b"\xff\xda", scans.index(b"\xff\xda") + 2)
    length = len(scans) - second
    reserved = scans[:second] + b"\xff\x02" + length.to_bytes(2) + scans[second:]
    for data in (several, reserved):
        with pytest.raises(InvalidImage, match="more than 100 scans"):
            preprocess(data, SPEC)


def test_what_a_thumbnail_or_a_film_behind_the_picture_holds_are_no_scans() -> None:
    photo = encode(drawing(90, 70), "JPEG", progressive=True)
    whole = preprocess(photo, SPEC)
    scans = b"\xff\xda\x00\x02" * 200
    thumbnail = b"\xff\xe5" + (len(scans) + 2).to_bytes(2) + scans
    for data in (photo + b"\0\2" + scans, photo[:2] + thumbnail + photo[2:]):
        assert np.array_equal(preprocess(data, SPEC), whole)


def run_length_encoded(width: int, height: int, runs: bytes) -> bytes:
    """A BMP of 256 colours."""
    start = 14 + 40 + 4 * 256
    sizes = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<III", start + len(runs), 0, start) + sizes + bytes(1024) + runs


def with_exif(size: int, segments: int) -> bytes:
    """A JPEG whose EXIF block is cut into segments."""
    segment = b"\xff\xe1" + (size + 8).to_bytes(2) + b"Exif\0\0" + bytes(size)
    return jpeg()[:2] + segments * segment + jpeg()[2:]


PNG, GIF = encode(drawing(), "PNG"), encode(drawing(), "GIF")
HEAD = 8 + 25  # bytes of a PNG up to its second chunk
PROFILE = b"name\0\0" + zlib.compress(bytes(2**20))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (run_length_encoded(64_000_000, 1, b"\1\0\0\0"), "run-length encoded"),
        (run_length_encoded(1, 64_000_000, b"\xff\1" * 5_000_000), "run-length encoded"),
        (PNG[:HEAD] + chunk(b"aaAa", b"") * 1_000_000 + PNG[HEAD:], "too many parts"),
        (PNG[:HEAD] + chunk(b"IDAT", b"") * 1_000_000 + PNG[HEAD:], "too many parts"),
        (PNG[:HEAD] + chunk(b"iCCP", PROFILE) * 10_000 + PNG[HEAD:], "100 colour profiles"),
        (jpeg()[:2] + b"\xff\xfe\0\2" * 5_000_000 + jpeg()[2:], "too many parts"),
        (with_exif(10, 1_000_000), "100 EXIF segments"),
        (with_exif(4000, 4000), "100 EXIF segments"),
        (GIF[:781] + b"!\xfe" + b"\1a" * 5_000_000 + b"\0" + GIF[781:], "too many parts"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value,
)
def test_a_photo_of_very_many_parts_is_refused_at_once(data: bytes, reason: str) -> None:
    """Pillow would take 1 to 60 s for each, most of them with the interpreter locked."""
    assert len(data) < 20 * 2**20
    begun = time.thread_time()
    with pytest.raises(InvalidImage, match=reason):
        preprocess(data, SPEC)
    assert time.thread_time() - begun < 0.5


def test_photos_of_many_parts_are_read() -> None:
    """A PNG in chunks of 1 KiB, a JPEG whose EXIF block has several segments or that is filled up,
    a GIF with the history that Photoshop writes."""
    idat = chunk(b"IDAT", bytes(1024)) * (16 * 1024)
    with pytest.raises(InvalidImage, match="damaged"):  # and not of too many parts
        preprocess(PNG[:HEAD] + chunk(b"tEXt", b"a\0b") * 1000 + idat + PNG[HEAD:], SPEC)
    whole = preprocess(jpeg(), SPEC)
    assert np.array_equal(preprocess(with_exif(60_000, 99), SPEC), whole)
    assert np.array_equal(preprocess(jpeg()[:2] + b"\xff" * 40_000 + jpeg()[2:], SPEC), whole)
    history = b"<rdf:li>uuid:0123456789ABCDEF0123456789ABCDEF</rdf:li>\n" * 20_000
    xmp = b"!\xff\x0bXMP DataXMP" + history + bytes([1, *range(255, -1, -1), 0])
    assert np.array_equal(preprocess(GIF[:781] + xmp + GIF[781:], SPEC), preprocess(GIF, SPEC))


@pytest.mark.parametrize("size", [(1, 2_500_000), (2_500_000, 1)])
def test_a_narrow_picture_is_blended_in_few_parts(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[Image.Image] = []
    blend = Image.alpha_composite

    def counted(below: Image.Image, above: Image.Image) -> Image.Image:
        parts.append(above)
        return blend(below, above)

    monkeypatch.setattr(Image, "alpha_composite", counted)
    seen = decode(encode(Image.new("RGBA", size, (0, 0, 0, 128)), "PNG"))
    assert seen.size == size and set(np.unique(seen)) == {127}
    assert len(parts) == 3 and max(part.width * part.height for part in parts) == 1_000_000


def test_real_photos(shared_data) -> None:
    photos = sorted((shared_data / "photos").glob("*.jpg"))
    assert photos
    spec = Preprocessing(size=224, interpolation="bilinear")
    for photo in photos:
        data = photo.read_bytes()
        pixels = preprocess(data, spec)
        width, height = Image.open(io.BytesIO(data)).size
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        expected = Image.open(io.BytesIO(data)).resize(
            (224, 224), Image.Resampling.BILINEAR, (left, top, left + side, top + side)
        )
        # Draft decoding averages in the frequency domain: most different on a dog's white fur, 3.4.
        assert np.abs(pixels - np.asarray(expected, float)).mean() < 4.0
