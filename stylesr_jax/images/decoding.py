"""The bytes of an image file to a picture in sRGB, and what is to be said about the file."""

import hashlib
import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
        lossy: whether the file's compression changed values.
        jpeg_tables: None unless `pixels` are a JPEG's own YCbCr or grey values: lossless
            files, converted colours and mosaics have none.
    """

    pixels: np.ndarray
    notes: tuple[str, ...]
    saved_size: tuple[int, int]
    block: int
    sha256: str
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
        lossy = _is_lossy(image, data)
        orientation, broken = _orientation(image)
        tables = None if told else _jpeg_tables(image, orientation)
    levels = _upright(levels, orientation)
    saved_size = (levels.shape[1], levels.shape[0])
    fine = tables is not None and tables.luminance[0, 1] <= FINE_STEP
    block = mosaic.block_size(levels, lossy=fine) if mosaics else 1
    notes += told + broken
    if block > 1:
        levels, tables = mosaic.shrink(levels, block), None
        notes.append(
            f"a mosaic of {block}x{block} px blocks: read as the "
            f"{levels.shape[1]}x{levels.shape[0]} picture that it is"
        )
    return Picture(
        pixels=levels / np.float32(127.5) - np.float32(1.0),
        notes=tuple(notes),
        saved_size=saved_size,
        block=block,
        sha256=hashlib.sha256(data).hexdigest(),
        lossy=lossy,
        jpeg_tables=tables,
    )


def _open(data: bytes) -> Image.Image:
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
    if DNG_VERSION in getattr(image, "tag_v2", ()):
        raise UserError(f"{name}: raw camera data (DNG), which cannot be read; develop it first")


def _notes_of_frames(image: Image.Image) -> list[str]:
    many = image.format in FORMATS_OF_MANY and getattr(image, "is_animated", False)
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
    if image.mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = _with_white_behind(image)
    return np.asarray(image.convert("RGB"), np.float32), notes


def _with_white_behind(image: Image.Image) -> Image.Image:
    """Flatten transparency onto white."""
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def _deep_samples(image: Image.Image, data: bytes) -> np.ndarray | None:
    """(H, W, 1, 3 or 4) samples of more than 8 bits, the fourth of them opacity, None for 8."""
    if image.mode.startswith(("I", "F")):
        return np.asarray(image)[..., None]
    raw_modes = {_raw_mode(tile.args) for tile in getattr(image, "tile", ())}
    channels, _, order = next(iter(raw_modes), "").partition(";16")
    if len(raw_modes) != 1 or channels not in DEEP_COLOUR or order not in OTHER_ORDER:
        return None
    with _open(data) as other:
        assert isinstance(other, ImageFile.ImageFile)
        raw_mode = f"{channels};16{OTHER_ORDER[order]}"
        other.tile = [t._replace(args=_with_raw_mode(t.args, raw_mode)) for t in other.tile]
        low = np.asarray(other, np.uint16)
    return np.asarray(image, np.uint16) * np.uint16(256) + low


def _raw_mode(args: object) -> str:
    return str(args[0] if isinstance(args, tuple) else args)


def _with_raw_mode(args: Any, raw_mode: str) -> Any:
    return (raw_mode, *args[1:]) if isinstance(args, tuple) else raw_mode


def _levels_of_deep(
    image: Image.Image, data: bytes, samples: np.ndarray, profile: bytes | None, name: str
) -> tuple[np.ndarray, list[str]]:
    found = ranges.find_range(samples, ranges.stated_range(image, data), name)
    values = (samples.astype(np.float32) - found.black) / (found.white - found.black)
    values = np.clip(values, 0.0, 1.0)
    if ranges.white_is_zero(image):
        values = 1.0 - values
    colours, opacity = values[..., :3], values[..., 3:]
    note = ""
    if profile is not None:
        colours, note = colour.deep_to_srgb(colours, profile)
    if opacity.size:
        colours = 1.0 + opacity * (colours - 1.0)
    levels = np.broadcast_to(colours * np.float32(255.0), (*colours.shape[:2], 3))
    return levels, [text for text in (found.note, note) if text]


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
