"""Colours of any ICC profile to sRGB.

Pillow's ImageCms (Little CMS) converts 8-bit samples. ImageCms has no mode of 16 bits: these go
through the curves and the matrix of the profile (ICC.1:2022, sections 8.3 and F.3) in floats.
"""

import io
import struct
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

from stylesr_jax.images.kinds import printable
from stylesr_jax.images.png import MAX_PROFILE

CURVE_STEPS = 65536  # the values of 16 bits
MAX_NAME = 60  # characters of a profile's name in a note
CONVERTED = "colours converted from"
BROKEN = "the colour profile is broken: ignored"
INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
# The linear primaries of sRGB under D50, the white of profiles, as columns of X, Y, Z
# (IEC 61966-2-1, adapted as Bradford): http://www.brucelindbloom.com/Eqn_RGB_XYZ_Matrix.html
SRGB_TO_XYZ = np.array(
    [
        [0.4360747, 0.3850649, 0.1430804],
        [0.2225045, 0.7168786, 0.0606169],
        [0.0139322, 0.0971045, 0.7141733],
    ]
)


class MatrixProfile(NamedTuple):
    """Device values in [0, 1] to X, Y, Z of D50: a curve for each channel, then a matrix.

    A profile of grey has one curve and no matrix: the curve gives Y alone.
    """

    curves: np.ndarray  # (1 or 3, CURVE_STEPS) float64: values at even steps from 0 to 1
    matrix: np.ndarray | None  # (3, 3)


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@cache
def srgb_profile() -> bytes:
    """The ICC profile of sRGB, the same bytes in every process."""
    profile = bytearray(_srgb().tobytes())
    profile[24:36] = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)  # in place of the time of creation
    return bytes(profile)


def _opened(profile: bytes) -> ImageCms.ImageCmsProfile | None:
    """None for what is no profile."""
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (OSError, ImageCms.PyCMSError):
        return None


def _name(profile: ImageCms.ImageCmsProfile) -> str:
    try:
        text = ImageCms.getProfileDescription(profile)
    except (OSError, ImageCms.PyCMSError, UnicodeError):
        text = ""
    return printable(text.strip(" \0\n")[:MAX_NAME]) or "its profile"


def has_transparency(image: Image.Image) -> bool:
    """Whether an image has opacity or a colour that counts as clear."""
    return image.mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in image.info


def _space(profile: ImageCms.ImageCmsProfile) -> str:
    """Such as "RGB", "GRAY" or "CMYK"."""
    return profile.profile.xcolor_space.strip()  # pyright: ignore[reportAttributeAccessIssue]


def _in_space(image: Image.Image, space: str) -> Image.Image | None:
    """The image in a mode whose channels are the profile's; None if they are others."""
    clear = has_transparency(image)
    if space == "GRAY" and image.mode in ("1", "L", "LA", "La"):
        return image.convert("LA" if clear else "L")
    if space == "CMYK" and image.mode == "CMYK":
        return image
    if space == "RGB" and image.mode != "CMYK":
        return image.convert("RGBA" if clear else "RGB")
    return None


def _converted(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    """From "L", "LA", "RGB", "RGBA" or "CMYK" to sRGB in the same mode, CMYK to RGB."""
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    if image.mode in ("L", "LA"):
        # 256 levels without the optimisation, which is off by 10 of them for a curve of power 1.
        flags |= ImageCms.Flags.NOOPTIMIZE
        ramp = Image.frombytes("L", (256, 1), bytes(range(256)))
        transform = ImageCms.buildTransform(profile, _srgb(), "L", "RGB", INTENT, flags)
        table = transform.apply(ramp).getchannel("G").tobytes()
        opacity = range(256) if image.mode == "LA" else ()
        return image.point([*table, *opacity])
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    return ImageCms.buildTransform(profile, _srgb(), image.mode, mode, INTENT, flags).apply(image)


def _is_srgb(profile: ImageCms.ImageCmsProfile, space: str) -> bool:
    """Whether no colour changes by more than a rounding."""
    if space == "CMYK":
        return False
    levels = np.arange(256, dtype=np.uint8)[None]
    if space == "RGB":
        levels = np.stack(np.meshgrid(*[levels[0, ::15]] * 3), axis=-1).reshape(1, -1, 3)
    result = np.asarray(_converted(Image.fromarray(levels), profile), np.int16)
    return bool(np.abs(result - levels).max() <= 1)


def to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, str]:
    """An 8-bit image by its profile in sRGB, and what is to be said ("": nothing is changed)."""
    source = _opened(profile) if len(profile) <= MAX_PROFILE else None
    if source is None:
        return image, BROKEN
    space = _space(source)
    fitting = _in_space(image, space)
    if fitting is None:
        return image, f"the colour profile is for {printable(space)}, the image is not: ignored"
    try:
        if _is_srgb(source, space):
            return image, ""
        return _converted(fitting, source), f"{CONVERTED} {_name(source)} to sRGB"
    except (OSError, ImageCms.PyCMSError, ValueError):
        return image, BROKEN


def lab_to_srgb(image: Image.Image) -> Image.Image:
    """An image of CIE L*a*b* values, as TIFF files hold them, in sRGB."""
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    exact = ImageCms.Flags.NOOPTIMIZE
    return ImageCms.buildTransform(lab, _srgb(), "LAB", "RGB", INTENT, exact).apply(image)


def deep_to_srgb(samples: np.ndarray, profile: bytes) -> tuple[np.ndarray, str]:
    """As `to_srgb`, for more than 8 bits.

    Args:
        samples: (H, W, 1 or 3) float32 in [0, 1].

    Returns:
        (H, W, 1 or 3) float32 in [0, 1], and what is to be said.
    """
    source = _opened(profile) if len(profile) <= MAX_PROFILE else None
    if source is None:
        return samples, BROKEN
    grey = samples.shape[2] == 1
    parsed = parse_matrix_profile(profile)
    if parsed is None:
        levels = np.rint(samples * 255.0).astype(np.uint8)
        image, note = to_srgb(Image.fromarray(levels[..., 0] if grey else levels), profile)
        converted = np.asarray(image, np.float32).reshape(*samples.shape[:2], -1) / 255.0
        return (converted if says_converted(note) else samples), note
    _, note = to_srgb(Image.new("L" if grey else "RGB", (1, 1)), profile)
    return (_by_matrix(samples, parsed) if says_converted(note) else samples), note


def says_converted(note: str) -> bool:
    """Whether a note of this module says that colours changed."""
    return note.startswith(CONVERTED)


def _by_matrix(samples: np.ndarray, profile: MatrixProfile) -> np.ndarray:
    """(H, W, 1 or 3) samples in [0, 1] to sRGB values in [0, 1], float32."""
    steps = np.rint(samples * np.float32(CURVE_STEPS - 1)).astype(np.uint16)
    steps = np.broadcast_to(steps, (*samples.shape[:2], len(profile.curves)))
    linear = np.empty(steps.shape, np.float32)
    for i, curve in enumerate(profile.curves.astype(np.float32)):
        linear[..., i] = curve[steps[..., i]]
    if profile.matrix is not None:
        to_linear_srgb = np.linalg.inv(SRGB_TO_XYZ) @ profile.matrix
        linear = linear @ to_linear_srgb.T.astype(np.float32)
    return _srgb_encoded(np.clip(linear, 0.0, 1.0, out=linear))


def _srgb_encoded(linear: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1] to sRGB values in [0, 1] (IEC 61966-2-1)."""
    power = np.power(linear, np.float32(1 / 2.4))
    power *= 1.055
    power -= 0.055
    return np.where(linear <= 0.0031308, np.float32(12.92) * linear, power)


def parse_matrix_profile(profile: bytes) -> MatrixProfile | None:
    """A profile made of curves and a matrix; None for one with tables, and for a broken one."""
    try:
        parsed = _parse(profile)
    except (struct.error, ValueError, KeyError, IndexError):
        return None
    return parsed if parsed and np.isfinite(parsed.curves).all() else None


def _parse(profile: bytes) -> MatrixProfile | None:
    tags = {}
    (count,) = struct.unpack_from(">I", profile, 128)
    for i in range(min(count, 100)):
        name, offset, size = struct.unpack_from(">4sII", profile, 132 + 12 * i)
        tags[name] = profile[offset : offset + size]
    if b"A2B0" in tags or b"A2B1" in tags or profile[20:24] != b"XYZ ":
        return None
    if profile[16:20] == b"GRAY":
        return MatrixProfile(_curve(tags[b"kTRC"])[None], None)
    curves = np.stack([_curve(tags[name]) for name in (b"rTRC", b"gTRC", b"bTRC")])
    columns = [_fixed(tags[name], 8, 3) for name in (b"rXYZ", b"gXYZ", b"bXYZ")]
    return MatrixProfile(curves, np.stack(columns, axis=1))


def _fixed(tag: bytes, offset: int, count: int) -> np.ndarray:
    """Numbers of type s15Fixed16."""
    return np.array(struct.unpack_from(f">{count}i", tag, offset)) / 65536.0


def _curve(tag: bytes) -> np.ndarray:
    """(CURVE_STEPS,) values of a curve of type "curv" (a power or a table) or "para"."""
    x = np.linspace(0.0, 1.0, CURVE_STEPS)
    kind, _, count = struct.unpack_from(">4sII", tag)
    if kind == b"para":
        return _parametric(x, count >> 16, tag)
    if kind != b"curv":
        raise ValueError(f"a curve of type {kind!r}")
    if count == 0:
        return x
    table = np.array(struct.unpack_from(f">{count}H", tag, 12))
    if count == 1:
        return np.power(x, table[0] / 256.0)
    return np.interp(x, np.linspace(0.0, 1.0, count), table / 65535.0)


def _parametric(x: np.ndarray, function: int, tag: bytes) -> np.ndarray:
    """(a x + b)^g + e from x = d on, c x + f below; the first kinds leave parameters out."""
    given = _fixed(tag, 12, (1, 3, 4, 5, 7)[function])
    g, a, b, c, d, e, f = (*given, *(1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)[len(given) :])
    if function in (1, 2):  # a constant where a x + b is negative
        d, e, f, c = -b / a, c, c, 0.0
    power = np.power(np.maximum(a * x + b, 0.0), g) + e
    return np.where(x >= d, power, c * x + f)
