"""Files of the user's own: formats by properties, read and written back; what is refused says so in one line."""

import io
import itertools
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps, PngImagePlugin
from skimage import data

from n2s_utils import photo
from n2s_utils.cli import InputError

COLOUR = data.astronaut()[60:156, 170:298]  # 96 x 128
GREY = np.asarray(Image.fromarray(COLOUR).convert("L"))
DEEP = COLOUR.astype(np.uint16) * 257
PROFILE = b"no real profile, but bytes that must come back" * 8


def pillow(pixels, name, **settings):
    def save(path):
        Image.fromarray(pixels).save(path, name, **settings)

    return save


def tiff(pixels, **settings):
    return lambda path: tifffile.imwrite(path, pixels, **settings)


def deep_png(pixels):
    return lambda path: path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))


EXACT, CLOSE = 0.0, 6 / 255  # of a lossy format, mean error
# Name -> what writes it, the pixels it holds in units of white, the type of the values that must come back, tolerance.
KEPT = {
    "a.png": (pillow(COLOUR, "PNG"), COLOUR / 255, np.uint8, EXACT),
    "grey.png": (pillow(GREY, "PNG"), GREY / 255, np.uint8, EXACT),
    "deep.png": (deep_png(DEEP), COLOUR / 255, np.uint16, EXACT),
    "deep-grey.png": (deep_png(DEEP[:, :, 0]), COLOUR[:, :, 0] / 255, np.uint16, EXACT),
    "a.jpg": (pillow(COLOUR, "JPEG", quality=97), COLOUR / 255, np.uint8, CLOSE),
    "a.JPEG": (pillow(COLOUR, "JPEG", quality=97), COLOUR / 255, np.uint8, CLOSE),
    "a.jfif": (pillow(COLOUR, "JPEG", quality=97), COLOUR / 255, np.uint8, CLOSE),
    "grey.jpg": (pillow(GREY, "JPEG", quality=97), GREY / 255, np.uint8, CLOSE),
    "a.webp": (pillow(COLOUR, "WEBP", lossless=True), COLOUR / 255, np.uint8, EXACT),
    "a.avif": (pillow(COLOUR, "AVIF", quality=95), COLOUR / 255, np.uint8, CLOSE),
    "a.bmp": (pillow(COLOUR, "BMP"), COLOUR / 255, np.uint8, EXACT),
    "a.ppm": (pillow(COLOUR, "PPM"), COLOUR / 255, np.uint8, EXACT),
    "a.pgm": (pillow(GREY, "PPM"), GREY / 255, np.uint8, EXACT),
    "a.tif": (tiff(COLOUR, photometric="rgb"), COLOUR / 255, np.uint8, EXACT),
    "grey.tif": (tiff(GREY), GREY / 255, np.uint8, EXACT),
    "deep.tif": (tiff(DEEP, photometric="rgb"), COLOUR / 255, np.uint16, EXACT),
    "big-endian.tif": (tiff(DEEP, photometric="rgb", byteorder=">"), COLOUR / 255, np.uint16, EXACT),
    "big.tiff": (tiff(DEEP, photometric="rgb", bigtiff=True), COLOUR / 255, np.uint16, EXACT),
    "lzw.tif": (tiff(DEEP, photometric="rgb", compression="lzw", predictor=True), COLOUR / 255, np.uint16, EXACT),
    "tiles.tif": (tiff(DEEP, photometric="rgb", tile=(32, 32)), COLOUR / 255, np.uint16, EXACT),
    "planes.tif": (
        tiff(np.ascontiguousarray(np.moveaxis(DEEP, 2, 0)), photometric="rgb", planarconfig="separate"),
        COLOUR / 255,
        np.uint16,
        EXACT,
    ),
    "float.tif": (tiff(np.float32(COLOUR / 255), photometric="rgb"), COLOUR / 255, np.float32, EXACT),
    "half.tif": (tiff(np.float16(GREY / 255)), GREY / 255, np.float16, 1e-3),
    "double.tif": (tiff(GREY / 255), GREY / 255, np.float64, EXACT),
    "twelve.tif": (tiff(np.uint16(GREY / 255 * 4095)), np.uint16(GREY / 255 * 4095) / 4095, np.uint16, EXACT),
    "opaque.png": (pillow(np.dstack([COLOUR, np.full_like(GREY, 255)]), "PNG"), COLOUR / 255, np.uint8, EXACT),
    "opaque.tif": (
        tiff(np.dstack([DEEP, np.full_like(DEEP[:, :, 0], 65535)]), photometric="rgb", extrasamples=["unassalpha"]),
        COLOUR / 255,
        np.uint16,
        EXACT,
    ),
    "equal.png": (pillow(np.dstack([GREY] * 3), "PNG"), GREY / 255, np.uint8, EXACT),
}


def _shape(path):
    """Of the pixels as another program has them."""
    return tifffile.imread(path).shape if path.suffix.startswith(".tif") else np.asarray(Image.open(path)).shape


@pytest.mark.parametrize("name", KEPT)
def test_pixels_come_out_as_they_went_in(tmp_path, name):
    save, expected, dtype, tolerance = KEPT[name]
    before, after = tmp_path / name, tmp_path / f"out{name[name.rindex('.') :]}"
    save(before)
    source = photo.read(before)
    expected = expected.reshape(*expected.shape[:2], -1)
    assert source.picture.dtype == np.float32 and source.picture.shape == expected.shape
    assert np.abs(source.picture - expected).mean() <= tolerance + 1e-6
    assert source.dtype == dtype and source.clipped == (np.dtype(dtype).kind == "u")
    photo.write(source, source.picture, after)
    again = photo.read(after)
    assert again.dtype == dtype and again.planes == source.planes and _shape(after) == _shape(before)
    assert np.abs(again.picture - source.picture).mean() <= tolerance
    if name == "planes.tif":
        with tifffile.TiffFile(after) as file:
            assert file.pages[0].planarconfig == 2


def test_values_beyond_the_range_are_cut_in_integers_and_kept_in_floats(tmp_path):
    for name, low, high in (("a.png", 0, 1), ("float.tif", -0.5, 1.5)):
        KEPT[name][0](tmp_path / name)
        source = photo.read(tmp_path / name)
        photo.write(source, source.picture * 2 - 0.5, tmp_path / name)
        written = photo.read(tmp_path / name).picture
        assert written.min() == pytest.approx(low, abs=0.01) and written.max() == pytest.approx(high, abs=0.01)


def test_a_file_of_12_bits_is_said_to_be_one(tmp_path):
    KEPT["twelve.tif"][0](tmp_path / "a.tif")
    source = photo.read(tmp_path / "a.tif")
    assert source.white == 4095 and any("white is taken to be 4095" in note for note in source.notes)
    tifffile.imwrite(tmp_path / "told.tif", np.uint16(GREY) * 3, extratags=[(281, 3, 1, 1000, True)])
    told = photo.read(tmp_path / "told.tif")
    photo.write(told, told.picture, tmp_path / "again.tif")
    assert told.white == photo.read(tmp_path / "again.tif").white == 1000  # the file's own MaxSampleValue


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "deep PNG", "WEBP", "TIFF"])
def test_a_photo_stored_on_its_side_comes_out_upright(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "maker"
    image = Image.fromarray(COLOUR)
    path, after = tmp_path / f"a.{kind.split()[-1].lower()}", tmp_path / f"b.{kind.split()[-1].lower()}"
    if kind == "TIFF":
        tifffile.imwrite(path, COLOUR, photometric="rgb", extratags=[(274, 3, 1, orientation, True)], resolution=(72, 36))
    elif kind == "deep PNG":
        buffer = io.BytesIO()
        Image.new("L", (1, 1)).save(buffer, "PNG", exif=exif)
        pixels, chunk = imagecodecs.png_encode(DEEP), buffer.getvalue()
        begin = chunk.index(b"eXIf") - 4
        path.write_bytes(pixels[:33] + chunk[begin : chunk.index(b"IDAT") - 4] + pixels[33:])
    else:
        image.save(path, exif=exif, dpi=(72, 36), **({"lossless": True} if kind == "WEBP" else {"quality": 100}))
    image.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(image))
    source = photo.read(path)
    assert np.abs(source.picture - upright / 255).mean() < (0.02 if kind == "JPEG" else 1e-6)
    photo.write(source, source.picture, after)
    with Image.open(after) as written:
        assert written.size == upright.shape[1::-1] and written.getexif().get(0x0112, 1) == 1
        if kind in ("JPEG", "PNG", "deep PNG", "WEBP"):
            assert written.getexif()[0x010F] == "maker"
        if kind in ("JPEG", "PNG"):
            assert written.info["dpi"] == pytest.approx((36, 72) if orientation >= 5 else (72, 36), abs=0.1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "deep PNG", "WEBP", "TIFF"])
def test_profile_and_resolution_are_carried(tmp_path, kind):
    path, after = tmp_path / f"a.{kind.split()[-1].lower()}", tmp_path / f"b.{kind.split()[-1].lower()}"
    if kind == "TIFF":
        tifffile.imwrite(path, DEEP, photometric="rgb", iccprofile=PROFILE, resolution=(300, 300), resolutionunit="INCH")
    else:
        Image.fromarray(COLOUR).save(path, icc_profile=PROFILE, dpi=(300, 300))
    if kind == "deep PNG":
        pixels = imagecodecs.png_encode(DEEP)
        small = path.read_bytes()
        path.write_bytes(pixels[:33] + small[33 : small.index(b"IDAT") - 4] + pixels[33:])
    source = photo.read(path)
    photo.write(source, source.picture, after)
    with Image.open(after) as written:
        assert written.info["icc_profile"] == PROFILE and not source.notes
        if kind != "WEBP":  # which has no place for it
            assert written.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    if kind == "deep PNG":
        assert photo.read(after).dtype == np.uint16


def _animation(path):
    frames = [Image.fromarray(np.roll(COLOUR, shift, 1)) for shift in (0, 9, 18)]
    frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if path.suffix == ".webp" else {}))


TRANSPARENT = np.dstack([COLOUR, np.where(GREY > 100, 255, 0).astype(np.uint8)])
# Name -> what writes it, what the refusal must say.
REFUSED = {
    "alpha.png": (pillow(TRANSPARENT, "PNG"), "transparent"),
    "alpha.webp": (pillow(TRANSPARENT, "WEBP", lossless=True), "transparent"),
    "alpha.tif": (tiff(TRANSPARENT, photometric="rgb", extrasamples=["unassalpha"]), "transparent"),
    "deep-alpha.png": (deep_png(TRANSPARENT.astype(np.uint16) * 257), "transparent"),
    "grey-alpha.png": (pillow(np.dstack([GREY, TRANSPARENT[:, :, 3]]), "PNG"), "transparent"),
    "key.png": (pillow(COLOUR, "PNG", transparency=tuple(int(v) for v in COLOUR[0, 0])), "transparent"),
    "palette.gif": (lambda path: Image.fromarray(COLOUR).quantize(64).save(path, transparency=3), "transparent"),
    "anim.png": (_animation, "animation of 3 frames"),
    "anim.webp": (_animation, "animation of 3 frames"),
    "anim.gif": (_animation, "animation of 3 frames"),
    "stack.tif": (tiff(np.stack([GREY] * 5), photometric="minisblack"), "stack of 5 pages"),
    "imagej.tif": (tiff(np.stack([GREY] * 4), imagej=True), "stack of"),
    "signed.tif": (tiff(GREY.astype(np.int16) - 40), "signed values of 16 bits"),
    "signed8.tif": (tiff((GREY // 2).astype(np.int8)), "signed values of 8 bits"),
    "long.tif": (tiff(GREY.astype(np.uint32) * 1000), "values of 32 bits"),
    "inverted.tif": (tiff(GREY, photometric="miniswhite"), "MINISWHITE"),
    "bilevel.tif": (tiff(GREY > 100), "values of 1 bits"),
    "cmyk.tif": (tiff(np.dstack([COLOUR, GREY]), photometric="separated"), "SEPARATED"),
    "cmyk.jpg": (lambda path: Image.fromarray(COLOUR).convert("CMYK").save(path), "CMYK"),
    "deep.pgm": (lambda path: path.write_bytes(b"P5 4 4 65535\n" + bytes(32)), "PPM of mode"),
    "deep.ppm": (lambda path: path.write_bytes(b"P6 4 4 65535\n" + bytes(96)), "PPM of mode"),
    "float.pfm": (lambda path: path.write_bytes(b"Pf\n4 4\n-1.0\n" + bytes(64)), "PPM of mode F"),
    "bands.tif": (tiff(np.dstack([COLOUR, COLOUR]), photometric="minisblack", planarconfig="contig"), "6 channels"),
    "nan.tif": (tiff(np.where(GREY > 200, np.nan, GREY / 255).astype(np.float32)), "no finite numbers"),
    "scale.tif": (tiff(GREY.astype(np.float32)), "scale them so that black is 0"),
    "text.png": (lambda path: path.write_text("no image", encoding="utf-8"), "no image of a kind that is read"),
    "empty.png": (lambda path: path.write_bytes(b""), "no image of a kind that is read"),
    "empty.tif": (lambda path: path.write_bytes(b"II*\0"), "not a readable image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_dealt_with_is_refused_by_name(tmp_path, refused, name):
    save, reason = REFUSED[name]
    save(tmp_path / name)
    with refused(tmp_path / name, reason):
        photo.read(tmp_path / name)


def test_a_picture_too_large_to_read_at_once_is_refused(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(photo, "MOST", 10_000)
    for name in ("a.png", "a.tif"):
        KEPT[name][0](tmp_path / name)
        with refused(name, "0 megapixels; at most 0"):
            photo.read(tmp_path / name)


def test_a_path_without_a_file_is_named(tmp_path, refused):
    with refused(tmp_path / "absent.png", "no such file"):
        photo.read(tmp_path / "absent.png")


def test_what_is_not_carried_is_named(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 3_000_000, zip=True)  # more than Pillow would read by itself
    Image.fromarray(COLOUR).save(tmp_path / "text.png", pnginfo=text)
    Image.fromarray(COLOUR).quantize(64).save(tmp_path / "palette.png")
    Image.fromarray(GREY > 100).save(tmp_path / "bilevel.png")
    tifffile.imwrite(tmp_path / "described.tif", GREY, description="cells, day 3", metadata=None)
    whole = io.BytesIO()
    Image.fromarray(COLOUR).save(whole, "PNG")
    hdr = b"\0\0\0\4cICP\x09\x10\0\1" + zlib.crc32(b"cICP\x09\x10\0\1").to_bytes(4, "big")
    (tmp_path / "hdr.png").write_bytes(whole.getvalue()[:33] + hdr + whole.getvalue()[33:])
    frames = [Image.fromarray(COLOUR), Image.fromarray(COLOUR[::2, ::2])]
    frames[0].save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=frames[1:])
    said = {
        "text.png": "not carried: workflow",
        "palette.png": "a palette",
        "hdr.png": "not carried: cICP",
        "bilevel.png": "less than 8 bits",
        "described.tif": "not carried: ImageDescription",
        "phone.jpg": "the first of its 2 pictures",
    }
    for name, note in said.items():
        assert any(note in line for line in photo.read(tmp_path / name).notes), name


@pytest.mark.parametrize("name", ["a.png", "deep.png", "a.jpg", "a.webp", "a.bmp", "a.ppm", "lzw.tif", "float.tif"])
def test_damage_is_an_error_of_that_file_or_still_a_picture(tmp_path, name):
    """Truncated, and with bytes flipped: never another exception, never values that are no numbers."""
    path, rng, refusals = tmp_path / name, np.random.default_rng(0), 0
    KEPT[name][0](path)
    whole = path.read_bytes()
    for number in range(64):
        damaged = bytearray(whole)
        if number % 2:
            damaged = damaged[: rng.integers(1, len(whole))]
        else:
            for place in rng.integers(0, min(len(whole), 400) if number % 4 else len(whole), 8):
                damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            source = photo.read(path)
            assert np.isfinite(source.picture).all()
            photo.write(source, source.picture, tmp_path / f"out{path.suffix}")
        except InputError as error:
            refusals += 1
            assert "\n" not in str(error) and (str(path) in str(error) or "not written as" in str(error))
    assert refusals


def test_suffixes_and_formats_are_known():
    assert {".png", ".jpg", ".jpeg", ".jfif", ".tif", ".tiff", ".webp", ".avif", ".gif", ".ppm", ".bmp"} <= set(photo.SUFFIXES)
    assert photo.suffix_of(photo.Path("a.GIF")) == ".png" and photo.suffix_of(photo.Path("a.JPG")) == ".JPG"


def test_channels_are_converted_as_pillow_does():
    grey = photo.as_channels(np.float32(COLOUR / 255), 1)
    assert np.abs(grey[:, :, 0] - GREY / 255).max() < 1 / 255
    for channels, picture in itertools.product((1, 3), (grey, np.float32(COLOUR / 255))):
        assert photo.as_channels(picture, channels).shape == (*GREY.shape, channels)


def test_a_thumbnail_first_and_an_orientation_that_is_no_number_are_got_over(tmp_path):
    with tifffile.TiffWriter(tmp_path / "small-first.tif") as file:
        file.write(GREY[::4, ::4], subfiletype=1, metadata=None)
        file.write(GREY, metadata=None)
    source = photo.read(tmp_path / "small-first.tif")
    assert source.picture.shape == (*GREY.shape, 1) and any("smaller copies" in note for note in source.notes)
    tifffile.imwrite(tmp_path / "text.tif", GREY, extratags=[(274, 2, 1, "up", True)], metadata=None)
    assert photo.read(tmp_path / "text.tif").picture.shape == (*GREY.shape, 1)


def test_what_cannot_be_written_is_one_line(tmp_path, refused):
    KEPT["a.jpg"][0](tmp_path / "a.jpg")
    source = photo.read(tmp_path / "a.jpg")
    source.carried["exif"] = b"Exif\0\0" + bytes(70_000)
    with refused("not written as JPEG", "EXIF data is too long"):
        photo.write(source, source.picture, tmp_path / "b.jpg")
