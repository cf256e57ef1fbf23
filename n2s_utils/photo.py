"""A file of the user's own: the picture in it, and the way back into such a file.

Pixels are read by Pillow, those of TIFF by tifffile, of PNG with 16 bits by imagecodecs, for Pillow would cut them to 8. Whatever
a file holds beside one grey or RGB picture is carried to the output, or named in a note, or a reason to refuse the file in one line.
"""

import io
import logging
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from n2s_utils.cli import InputError
from n2s_utils.estimation import LUMA

MOST = 100e6  # pixels that are read at once
logging.getLogger("tifffile").setLevel("CRITICAL")  # of damaged files: their one line is ours
PngImagePlugin.MAX_TEXT_CHUNK = 1 << 26  # editors keep a whole history there; Pillow's own limit of 1 MiB makes it an error

# Suffix -> Pillow's name of the format; how it is written.
SUFFIXES = {
    suffix: name
    for suffix, name in Image.registered_extensions().items()
    if name in ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
}
WRITTEN_AS = {"GIF": "PNG", "MPO": "JPEG"}  # 256 colours are too few; of several pictures one is left
SETTINGS: dict[str, dict[str, Any]] = {
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    "WEBP": {"lossless": True, "exact": True},
}
# What Pillow tells of a file that says nothing of the picture, or that is carried.
INFO = (
    *("jfif", "jfif_version", "jfif_unit", "jfif_density", "adobe", "adobe_transform", "progressive", "progression", "srgb", "interlace"),
    *("dpi", "icc_profile", "exif", "transparency", "background", "loop", "duration", "timestamp", "bbox", "disposal", "blend"),
    *("compression", "version", "extension", "mp", "mpoffset", "scale"),
)
# Tags of TIFF of which the same holds.
TAGS = {254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 281, 282, 283, 284, 296, 305, 306, 317, 322, 323, 324, 325}
TAGS |= {338, 339, 34675}
# Chunks of a PNG and segments of a JPEG that say nothing more, or that Pillow tells of by name.
SEGMENTS = {*"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB iCCP pHYs eXIf tEXt zTXt iTXt tIME bKGD hIST APP0 APP1 APP2 APP14 COM".split()}
# Orientation -> how the stored rows and columns are turned upright: transposed first, then flipped down, then across.
UPRIGHT = {1: "", 2: "a", 3: "da", 4: "d", 5: "t", 6: "ta", 7: "tda", 8: "td"}


@dataclass(frozen=True)
class Photo:
    """What a file holds: `picture` (H, W, C) float32, upright, C = 1 or 3, in units of `white`, the value of the file that is white.

    `dtype` are the file's values, `planes` how many it has for a pixel (more than C: equal ones, or an alpha that hides nothing);
    `carried` what is written into the output too; `notes` what is not, a line each.
    """

    picture: np.ndarray
    white: float
    dtype: np.dtype
    planes: int
    format: str
    carried: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def clipped(self) -> bool:
        """Whether values below black or above white could not be kept, as in every file of integers."""
        return self.dtype.kind == "u"


def read(path: str | Path) -> Photo:
    """The photo in a file; raises InputError naming the file if it is missing, damaged, or holds what is not dealt with here."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of an image")
    try:
        content = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of oddities that Pillow gets over
            reader = _tiff if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+") else _other
            pixels, photo = reader(content)
            return _finished(pixels, photo)
    except InputError as refusal:
        raise InputError(f"{path}: {refusal}") from None
    except UnidentifiedImageError:
        raise InputError(f"{path}: no image of a kind that is read here ({' '.join(sorted(SUFFIXES))}); convert it, or remove it") from None
    except Exception as error:  # decoders raise whatever a damaged file makes them
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: not a readable image ({reason}); replace or remove it") from None


def _other(content: bytes) -> tuple[np.ndarray, Photo]:
    image: Any = Image.open(io.BytesIO(content), formats=sorted({*SUFFIXES.values()} - {"TIFF"}))  # MPO opens as JPEG
    name, frames, notes = str(image.format), getattr(image, "n_frames", 1), []
    _require_size(image.width, image.height)
    if name == "MPO":
        notes.append(f"the first of its {frames} pictures is read, the others are not carried")
    elif frames > 1:
        raise InputError(f"an animation of {frames} frames; save the frame that you want as a file of its own")
    raw = image.tile[0].args if image.tile else ""
    image.load()  # what stands after the pixels is known from here on
    raw, *rest = raw if isinstance(raw, tuple) else (raw,)
    deep = ";16" in str(raw)
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV", "I", "F") or (deep and name != "PNG") or (name == "PPM" and rest not in ([], [255])):
        raise InputError(f"{name} of mode {image.mode}{rest or ''}: not read here; convert it to grey or RGB of 8 or 16 bits")
    if image.mode in ("1", "P") or (";" in str(raw) and not deep):
        notes.append(f"{'a palette' if 'P' in image.mode else 'less than 8 bits'}: written with 8 bits a channel")
    if name == "AVIF":
        notes.append("read and written with 8 bits a channel, if it has more")
    segments = _chunks(content) if name == "PNG" else {kind for kind, _ in getattr(image, "applist", ())}
    if lost := (segments - SEGMENTS) | {str(key) for key in image.info} - {*INFO}:
        notes.append(f"not carried: {', '.join(sorted(lost))}"[:200])
    carried = {key: image.info[key] for key in ("dpi", "icc_profile") if image.info.get(key)}
    exif = image.getexif()
    orientation = exif.pop(0x0112, 1)
    if exif and name in ("AVIF", "JPEG", "MPO", "PNG", "WEBP"):
        carried["exif"] = exif.tobytes()
    if deep:
        pixels = imagecodecs.png_decode(content)
        if pixels.ndim == 3 and pixels.shape[2] < 3 or "transparency" in image.info:
            raise InputError("16 bits with transparency; flatten it onto a background")
    else:
        if image.mode == "P" or "transparency" in image.info:
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        pixels = np.asarray(image.convert("L") if image.mode == "1" else image)
    return _upright(pixels, orientation, carried), Photo(pixels, 1, pixels.dtype, 1, WRITTEN_AS.get(name, name), carried, tuple(notes))


def _chunks(content: bytes) -> set[str]:
    """The kinds of the chunks of a PNG."""
    kinds, place = set(), 8
    while place + 8 <= len(content):
        kinds.add(content[place + 4 : place + 8].decode("latin-1"))
        place += 12 + int.from_bytes(content[place : place + 4], "big")
    return kinds


def _tiff(content: bytes) -> tuple[np.ndarray, Photo]:
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        pages: Any = file.pages
        page, *others = [page for page in pages if not page.is_reduced] or [pages[0]]
        stacked = [length for length in file.series[0].shape if length > 1] != [length for length in page.shape if length > 1]
        if others or page.axes not in ("YX", "YXS", "SYX") or (stacked and len(pages) == 1):
            raise InputError(f"a stack of {max(len(others) + 1, len(pages))} pages, {page.axes}; save each picture as a file of its own")
        _require_size(page.imagewidth, page.imagelength)
        kind, bits = page.photometric.name, page.bitspersample
        if kind not in ("MINISBLACK", "RGB") or bits not in (8, 16, 32, 64) or page.dtype.kind not in "uf" or page.dtype in ("u4", "u8"):
            what = {"i": "signed ", "f": "floating-point "}.get(page.dtype.kind, "")
            raise InputError(f"{what}values of {bits} bits, {kind}: not read here; save it as unsigned 8 or 16 bits or float, grey or RGB")
        pixels = page.asarray()
        if page.axes == "SYX":
            pixels = np.moveaxis(pixels, 0, 2)
        tags = page.tags
        lost = ["smaller copies"] * (len(pages) > 1)
        lost += [tag.name for tag in tags if tag.code not in TAGS and not (tag.code == 270 and str(tag.value).startswith('{"shape"'))]
        carried = {
            "planarconfig": page.planarconfig.name if page.axes == "SYX" else None,
            "compression": None if page.compression == 1 else "zlib",
            "iccprofile": tags.valueof(34675),
            "resolution": page.resolution if 282 in tags else None,
            "resolutionunit": tags.valueof(296) if 282 in tags else None,
        }
        white = tags.valueof(281) if pixels.dtype == "u2" and np.isscalar(tags.valueof(281)) else 0
        white = float(white if 0 < white < 65535 else 0)  # which many write whatever the values are
        if white:
            carried["extratags"] = [(281, 3, 1, int(white), True)]
        if page.extrasamples:
            carried["extrasamples"] = [value.name for value in page.extrasamples]
        notes = (f"not carried: {', '.join(lost)}"[:200],) if lost else ()
        orientation = tags.valueof(274)
        return _upright(pixels, orientation, carried), Photo(pixels, white, pixels.dtype, 1, "TIFF", carried, notes)


def _require_size(width: int, height: int) -> None:
    if width * height > MOST:
        raise InputError(f"{width * height / 1e6:.0f} megapixels; at most {MOST / 1e6:.0f} are read at once: cut it into parts")


def _upright(pixels: np.ndarray, orientation: Any, carried: dict[str, Any]) -> np.ndarray:
    """The pixels (H, W) or (H, W, C), turned as the file asks them to be shown; a resolution turns with them."""
    orientation = orientation if orientation in range(1, 9) else 1
    for step in UPRIGHT[orientation]:
        pixels = pixels.swapaxes(0, 1) if step == "t" else np.flip(pixels, "da".index(step))
    for key in ("dpi", "resolution"):
        if orientation >= 5 and carried.get(key):
            carried[key] = carried[key][::-1]
    return pixels


def _finished(pixels: np.ndarray, photo: Photo) -> Photo:
    """The photo with its picture: alpha and equal channels set aside, the values in units of white."""
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    planes, notes = pixels.shape[2], list(photo.notes)
    if planes not in (1, 2, 3, 4):
        raise InputError(f"{planes} channels: not read here; save it as grey or RGB")
    if planes in (2, 4):
        opaque = 1 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
        hidden = np.mean(pixels[:, :, -1] != opaque)
        if hidden:
            raise InputError(f"{max(hidden, 1e-3):.1%} of its pixels are transparent; flatten it onto a background")
        pixels = pixels[:, :, :-1]
    if pixels.shape[2] == 3 and not (np.any(pixels[:, :, 0] != pixels[:, :, 1]) or np.any(pixels[:, :, 0] != pixels[:, :, 2])):
        pixels = pixels[:, :, :1]
        notes.append("its three channels are equal: treated as grey")
    low, high = float(pixels.min()), float(pixels.max())
    if photo.dtype.kind == "f":
        if not np.isfinite([low, high]).all():
            raise InputError("holds values that are no finite numbers; replace them")
        if max(-low, high) > 4:
            raise InputError(f"floating-point values from {low:.3g} to {high:.3g}; scale them so that black is 0 and white is 1")
        white = 1.0
    else:
        bits = next(bits for bits in (8, 10, 12, 14, 16) if high < 1 << bits)
        white = photo.white if photo.white >= max(high, 1) else (1 << bits) - 1.0
        if white < np.iinfo(photo.dtype).max:
            notes.append(f"a file of 16 bits whose values end at {high:.0f}: white is taken to be {white:.0f}")
    picture = pixels.astype(np.float32)
    picture /= white
    return replace(photo, picture=np.ascontiguousarray(picture), white=white, planes=planes, notes=tuple(notes))


def as_channels(picture: np.ndarray, channels: int) -> np.ndarray:
    """The picture (H, W, C) with 1 or 3 channels: grey as ITU-R 601 weighs the colours, colour as three of the same."""
    if picture.shape[2] == channels:
        return picture
    if channels == 3:
        return np.repeat(picture, 3, axis=2)
    return (picture @ LUMA)[:, :, None].astype(np.float32)


def suffix_of(path: Path) -> str:
    """The suffix of the output for an input of that name."""
    return ".png" if SUFFIXES.get(path.suffix.lower()) == "GIF" else path.suffix


def write(photo: Photo, picture: np.ndarray, path: str | Path) -> None:
    """Write a picture (H, W, C) as the file of `photo` was: format, bits, planes, and what is carried. For use in `atomic_write`.

    Raises InputError where the format cannot hold what is carried.
    """
    try:
        _write(photo, picture, Path(path))
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of an encoder
        raise InputError(f"not written as {photo.format} ({' '.join(str(error).split())[:200]}); convert the input") from None


def _write(photo: Photo, picture: np.ndarray, path: Path) -> None:
    values = picture * np.float32(photo.white)
    if photo.clipped:
        np.rint(values, out=values).clip(0, photo.white, out=values)  # in place: a photo of 12 megapixels takes 144 MB
    values = values.astype(photo.dtype)
    if photo.planes >= 3 and values.shape[2] == 1:
        values = np.repeat(values, 3, axis=2)
    if photo.planes in (2, 4):
        opaque = np.full_like(values[:, :, :1], 1 if photo.dtype.kind == "f" else np.iinfo(photo.dtype).max)
        values = np.concatenate([values, opaque], 2)
    values = np.ascontiguousarray(values[:, :, 0] if values.shape[2] == 1 else values)
    if photo.format == "TIFF":
        kind = "minisblack" if photo.planes < 3 else "rgb"
        if photo.carried["planarconfig"]:
            values = np.ascontiguousarray(np.moveaxis(values, 2, 0))
        tifffile.imwrite(path, values, photometric=kind, metadata=None, **photo.carried)
    elif photo.dtype == np.uint16:
        path.write_bytes(_png_of_16_bits(values, photo.carried))
    else:
        settings = SETTINGS.get(photo.format, {}) | photo.carried
        Image.fromarray(values).save(path, photo.format, **settings)


def _png_of_16_bits(values: np.ndarray, carried: dict[str, Any]) -> bytes:
    """A PNG of imagecodecs, with the chunks that Pillow writes for what is carried, which stand before the pixels in both."""
    buffer, pixels = io.BytesIO(), imagecodecs.png_encode(values)
    Image.new("L", (1, 1)).save(buffer, "PNG", **carried)
    small, header = buffer.getvalue(), 33  # the signature and IHDR
    end = small.index(b"IDAT") - 4
    return bytes(pixels[:header]) + small[header:end] + bytes(pixels[header:])
