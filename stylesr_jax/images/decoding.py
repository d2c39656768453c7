"""The bytes of an image file to a picture in sRGB, and what is to be said about the file."""

import ctypes
import hashlib
import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from stylesr_jax.errors import UserError
from stylesr_jax.images import colour, mosaic, png, ranges
from stylesr_jax.images.kinds import printable, refuse_unreadable

MAX_PIXELS = 100_000_000  # of a decoded file; larger ones are taken for decompression bombs
ORIENTATION, DNG_VERSION, PLANAR_CONFIGURATION = 0x0112, 50706, 284
FORMATS_OF_MANY = {"GIF", "PNG", "WEBP", "AVIF", "TIFF", "HEIF"}  # not MPO: a photo and its extras
LOSSY = {"JPEG", "MPO", "JPEG2000", "AVIF", "HEIF"}
# A 16-bit raw mode's other byte order gives the low bytes, which Pillow drops.
OTHER_ORDER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
FINE_STEP = 8  # of a JPEG's lowest frequency: quality 65 or more by the usual tables
DEEP_COLOUR = {"RGB", "RGBA", "RGBX"}  # raw modes, 16 bits a sample


@dataclass(frozen=True)
class JpegTables:
    """How a JPEG file's coefficients were rounded.

    Attributes:
        luminance: (8, 8) quantisation steps; rows are vertical frequencies.
        chrominance: the same for Cb and Cr, None in a grey file.
        subsampling: pixels across and down for each sample of Cb and Cr: (2, 2) is 4:2:0.
        orientation: EXIF's number: the tables are of the file before it was turned; 1 is upright.
    """

    luminance: np.ndarray
    chrominance: np.ndarray | None
    subsampling: tuple[int, int]
    orientation: int


@dataclass(frozen=True)
class Picture:
    """A decoded picture, and what is known of its file.

    Attributes:
        pixels: (height, width, 3) float32 in [-1, 1], sRGB, upright.
        notes: what was done beyond plain decoding, each one printable line without a full stop.
        saved_size: (width, height) of the upright file in px; a mosaic has smaller `pixels`.
        block: px: side of a mosaic's blocks, 1 for an ordinary picture.
        sha256: hexadecimal, of the file's bytes.
        converted: whether colours were converted from a profile.
        lossy: whether the file's compression changed values.
        jpeg_tables: of a JPEG in YCbCr or grey, as saved: before colours were converted and a
            mosaic was shrunk; None for any other file.
    """

    pixels: np.ndarray
    notes: tuple[str, ...]
    saved_size: tuple[int, int]
    block: int
    sha256: str
    converted: bool
    lossy: bool
    jpeg_tables: JpegTables | None


@contextmanager
def _named_errors(name: str) -> Iterator[None]:
    """What Pillow raises, as a UserError of one line; its warnings are not shown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bombs, which are refused, and of damaged metadata
            yield
    except UserError:
        raise
    except Image.UnidentifiedImageError:
        raise UserError(f"{name}: not an image that Pillow can read; convert it to PNG") from None
    except Image.DecompressionBombError:
        raise UserError(f"{name}: implausibly many pixels; shrink the image first") from None
    except MemoryError:
        raise UserError(f"{name}: too large for this machine's memory; shrink it first") from None
    except Exception as error:  # Pillow's readers raise whatever they meet in a damaged file
        why = printable(str(error))
        raise UserError(f"{name}: damaged or truncated image ({why}); save it again") from error


def decode(data: bytes, name: str, *, mosaics: bool = True) -> Picture:
    """A picture from a file's bytes, upright as its EXIF orientation says.

    Transparency is laid on white; grey, palette, 16-bit and CMYK images become RGB; colours are
    converted from the embedded profile to sRGB; of an animation the first frame is read.

    Args:
        name: the file's, for messages.
        mosaics: whether a picture in blocks of one colour is read as the small one that it is.

    Raises:
        UserError: no image, damaged, truncated, over 100 million pixels, of a kind that cannot be
            read, or of values without a range.
    """
    if not data:
        raise UserError(f"{printable(name)}: the file is empty; copy or download it again")
    refuse_unreadable(data, name)
    shown = printable(name)
    with _named_errors(shown), _open(data) as image:
        _refuse_size(image, shown)
        notes = _notes_of_frames(image)
        levels, told = _levels(image, data, shown)
        orientation, broken = _orientation(image)
        lossy, tables = _is_lossy(image, data), _jpeg_tables(image, orientation)
    levels = _upright(levels, orientation)
    saved_size = (levels.shape[1], levels.shape[0])
    fine = tables is not None and tables.luminance[0, 1] <= FINE_STEP
    block = mosaic.block_size(levels, lossy=fine) if mosaics else 1
    notes += told + broken
    if block > 1:
        levels = mosaic.shrink(levels, block)
        notes.append(
            f"a mosaic of {block}x{block} px blocks: read as the "
            f"{levels.shape[1]}x{levels.shape[0]} picture that it is"
        )
    pixels = np.divide(levels, 127.5, dtype=np.float32, order="C")
    pixels -= 1.0
    return Picture(
        pixels=pixels,
        notes=tuple(notes),
        saved_size=saved_size,
        block=block,
        sha256=hashlib.sha256(data).hexdigest(),
        converted=any(map(colour.says_converted, told)),
        lossy=lossy,
        jpeg_tables=tables,
    )


@cache
def _silence_libtiff() -> None:
    """Have libtiff print nothing; what it cannot decode, Pillow raises.

    Its handlers are asked for through Pillow's module, which is linked with it. Where they are not
    found (Windows, or a Pillow without libtiff), nothing changes.
    """
    with suppress(OSError, AttributeError):
        pillow = ctypes.CDLL(Image.core.__file__)
        for setter in (pillow.TIFFSetErrorHandler, pillow.TIFFSetWarningHandler):
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)


def _open(data: bytes) -> Image.Image:
    _silence_libtiff()
    is_png = data.startswith(png.SIGNATURE)
    return Image.open(io.BytesIO(png.without_metadata(data) if is_png else data))


def _refuse_size(image: Image.Image, name: str) -> None:
    """Refuse what must not be decoded: bombs, and files of which Pillow reads only a preview."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{name}: {width}x{height} px is over {MAX_PIXELS // 10**6} million pixels; "
            "shrink it first"
        )
    if isinstance(image, ImageFile.StubImageFile):
        raise UserError(f"{name}: {image.format} files cannot be read; save it as PNG")
    tags = getattr(image, "tag_v2", {})
    if DNG_VERSION in tags:
        raise UserError(f"{name} cannot be read (raw camera data); develop it to a PNG file")
    if tags.get(PLANAR_CONFIGURATION) == 2 and max(tags.get(ranges.BITS_PER_SAMPLE, (8,))) > 8:
        raise UserError(f"{name} cannot be read (16-bit planes); save its channels interleaved")


def _notes_of_frames(image: Image.Image) -> list[str]:
    try:
        many = image.format in FORMATS_OF_MANY and getattr(image, "is_animated", False)
    except Exception:  # whatever Pillow meets in the second one
        many = True
    return ["several frames or pages: the first is read"] if many else []


def _is_lossy(image: Image.Image, data: bytes) -> bool:
    if image.format == "WEBP":  # what RIFF holds: "VP8L" is lossless
        return b"VP8 " in data[12:4096]
    return image.format in LOSSY or "jpeg" in str(image.info.get("compression"))


def _orientation(image: Image.Image) -> tuple[int, list[str]]:
    """EXIF's number, 1 where there is none, and what is to be said of broken EXIF data."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # whatever Pillow meets in it; the pixels are sound
        return 1, ["the EXIF data is broken: ignored"]
    return (orientation if orientation in range(1, 9) else 1), []


def _upright(levels: np.ndarray, orientation: int) -> np.ndarray:
    """As the orientation says: 5 to 8 are transposed first, then turned or mirrored."""
    if orientation >= 5:
        levels = levels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        levels = levels[::-1]
    if orientation in (2, 3, 6, 7):
        levels = levels[:, ::-1]
    return levels


def _levels(image: Image.Image, data: bytes, name: str) -> tuple[np.ndarray, list[str]]:
    """(H, W, 3) float32 in [0, 255], sRGB, and what is to be said."""
    profile = png.profile(data) if image.format == "PNG" else image.info.get("icc_profile")
    deep = _deep_samples(image, data)
    if deep is not None:
        return _levels_of_deep(image, data, deep, profile, name)
    image.load()
    notes = []
    if image.mode == "LAB":
        image = colour.lab_to_srgb(image)
    elif profile is not None:
        image, note = colour.to_srgb(image, profile)
        notes = [note] if note else []
    if colour.has_transparency(image):
        image = _with_white_behind(image)
    return np.asarray(image.convert("RGB"), np.float32), notes


def _with_white_behind(image: Image.Image) -> Image.Image:
    """Flatten transparency onto white."""
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def _deep_samples(image: Image.Image, data: bytes) -> np.ndarray | None:
    """(H, W, C) samples of more than 8 bits, None for 8; opacity is the last of two or four."""
    if image.mode.startswith(("I", "F")):
        return np.asarray(image)[..., None]
    raw_modes = {_raw_mode(tile.args) for tile in getattr(image, "tile", ())}
    raw_mode = raw_modes.pop() if len(raw_modes) == 1 else ""
    channels, _, order = raw_mode.partition(";16")
    if raw_mode == "LA;16B":
        high_and_low = _loaded_as(data, "RGBA").astype(np.uint16)
        return high_and_low[..., ::2] * np.uint16(256) + high_and_low[..., 1::2]
    if channels not in DEEP_COLOUR or order not in OTHER_ORDER:
        return None
    low = _loaded_as(data, f"{channels};16{OTHER_ORDER[order]}")
    return np.asarray(image, np.uint16) * np.uint16(256) + low


def _raw_mode(args: Any) -> str:
    return str(args[0]) if isinstance(args, tuple) and args else str(args)


def _loaded_as(data: bytes, raw_mode: str) -> np.ndarray:
    """The bytes that Pillow takes from a file's samples in a raw mode: (H, W, C) uint8."""
    with _open(data) as image:
        assert isinstance(image, ImageFile.ImageFile)
        for i, tile in enumerate(image.tile):
            others = tile.args[1:] if isinstance(tile.args, tuple) else None
            image.tile[i] = tile._replace(args=raw_mode if others is None else (raw_mode, *others))
        return np.asarray(image)


def _levels_of_deep(
    image: Image.Image, data: bytes, samples: np.ndarray, profile: bytes | None, name: str
) -> tuple[np.ndarray, list[str]]:
    value_range = ranges.find_range(samples, ranges.stated_range(image, data), name)
    values = samples.astype(np.float32)
    values -= value_range.black
    values /= value_range.white - value_range.black
    np.clip(values, 0.0, 1.0, out=values)
    if ranges.white_is_zero(image):
        np.subtract(1.0, values, out=values)
    n_colours = 1 if samples.shape[2] < 3 else 3
    colours, opacity = values[..., :n_colours], values[..., n_colours:]
    if (clear := image.info.get("transparency")) is not None:
        opacity = (samples != np.array(clear)).any(axis=-1, keepdims=True)
    note = ""
    if profile is not None:
        colours, note = colour.deep_to_srgb(colours, profile)
    if opacity.size:
        colours = 1.0 + opacity * (colours - 1.0)
    levels = np.broadcast_to(colours * np.float32(255.0), (*colours.shape[:2], 3))
    return levels, [text for text in (value_range.note, note) if text]


def _jpeg_tables(image: Image.Image, orientation: int) -> JpegTables | None:
    """The tables of a JPEG of one channel or of Y, Cb and Cr."""
    layers = getattr(image, "layer", None)
    tables = getattr(image, "quantization", None)
    if not layers or not tables or len(layers) not in (1, 3):
        return None
    if image.info.get("adobe_transform") == 0 and len(layers) == 3:  # saved as R, G and B
        return None
    steps = [np.array(tables[layer[3]]).reshape(8, 8) for layer in layers]
    across, down = (layers[0][i] // layers[-1][i] for i in (1, 2))
    chrominance = steps[1] if len(steps) == 3 else None
    return JpegTables(steps[0], chrominance, (across, down), orientation)
