"""Image files <-> float32 arrays in [-1, 1], always RGB."""

import glob
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from stylesr_jax.errors import UserError
from stylesr_jax.runtime import files

MAX_PIXELS = 100_000_000  # of a decoded file; larger ones are taken for decompression bombs


def _with_white_behind(image: Image.Image) -> Image.Image:
    """Flatten transparency onto white."""
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Any mode of Pillow's to (H, W, 3) float32 in [0, 255]."""
    if image.mode.startswith(("I", "F")):
        grey = np.asarray(image, np.float32)
        # 16-bit files come as "I;16" or "I"; an "F" file states no range: [0, 1] or [0, 255].
        largest = 65535.0 if image.mode.startswith("I") else 1.0 if grey.max() <= 1.0 else 255.0
        return np.repeat(np.clip(grey * (255.0 / largest), 0.0, 255.0)[..., None], 3, axis=2)
    if image.mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = _with_white_behind(image)
    return np.asarray(image.convert("RGB"), np.float32)


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read any format that Pillow reads, upright as its EXIF orientation says.

    Transparency is laid on white; grey, palette, 16-bit and CMYK images become RGB.

    Returns:
        (height, width, 3) float32 in [-1, 1].

    Raises:
        UserError: the file is missing, no image, truncated, or has over 100 million pixels.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file; check the path")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty; copy or download it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bombs, which are refused below, and bad EXIF
            with Image.open(path) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise UserError(
                        f"{path}: {width}x{height} px is over {MAX_PIXELS // 10**6} million "
                        "pixels; shrink it first"
                    )
                image.load()
                pixels = _to_rgb(ImageOps.exif_transpose(image))
    except UserError:
        raise
    except Image.UnidentifiedImageError:
        raise UserError(f"{path}: not an image that Pillow can read; convert it to PNG") from None
    except Image.DecompressionBombError:
        raise UserError(f"{path}: implausibly many pixels; shrink the image first") from None
    except Exception as error:  # Pillow's readers raise whatever they meet in a damaged file
        raise UserError(f"{path}: damaged or truncated image ({error}); save it again") from error
    return pixels / np.float32(127.5) - np.float32(1.0)


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """A picture's brightness as a mask: (height, width) float32, 0 where black to 1 where white.

    Raises:
        UserError: as `read_image`.
    """
    return (read_image(path).mean(axis=-1) + 1.0) / 2.0


def to_uint8(image: np.ndarray) -> np.ndarray:
    """[-1, 1] floats to 8 bits, rounded; values outside are clipped, never rescaled."""
    return np.clip(np.rint((np.asarray(image) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def write_png(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Write (H, W, 3) or (H, W) floats in [-1, 1], or uint8, as a PNG file, whole or not at all.

    Raises:
        UserError: the folder cannot be written.
    """
    pixels = image if image.dtype == np.uint8 else to_uint8(image)
    with files.atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def find_images(inputs: Sequence[str]) -> list[Path]:
    """The image files that files, folders and globs name (see `images_of`), each once.

    Raises:
        UserError: a pattern or folder holds no image.
    """
    return list(dict.fromkeys(path for text in inputs for path in images_of(text)))


def images_of(text: str) -> list[Path]:
    """The image files that a file, a folder (not its subfolders) or a glob names.

    A folder gives the files whose endings Pillow knows, by name.

    Raises:
        UserError: the pattern or folder holds no image, or cannot be read.
    """
    endings = {
        ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN
    }
    path = Path(text)
    try:
        if path.is_dir():
            some = sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in endings)
            if not some:
                raise UserError(f"{text}: there are no images in this folder")
            return some
        if path.exists() or not glob.has_magic(text):
            return [path]
        some = sorted(Path(p) for p in glob.glob(text, recursive=True) if os.path.isfile(p))
    except OSError as error:
        raise UserError(f"{text} cannot be read ({error.strerror}); check its rights") from error
    if not some:
        raise UserError(f"{text}: no file matches this pattern")
    return some
