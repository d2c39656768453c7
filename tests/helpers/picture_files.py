"""Image files that Pillow does not write, for tests of reading."""

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # of PNG, by the number of channels
PHOTOMETRIC = {1: 1, 2: 1, 3: 2, 4: 2}  # of TIFF


def png_chunk(name: bytes, body: bytes) -> bytes:
    checked = name + body
    return struct.pack(">I", len(body)) + checked + struct.pack(">I", zlib.crc32(checked))


def with_chunk(png: bytes, name: bytes, body: bytes) -> bytes:
    """A PNG file with one more chunk behind its header."""
    return png[:33] + png_chunk(name, body) + png[33:]


def iccp(profile: bytes) -> bytes:
    """The body of PNG's chunk for a profile."""
    return b"profile\0\0" + zlib.compress(profile)


def write_deep_png(
    path: Path, samples: np.ndarray, *, chunks: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    path.write_bytes(deep_png(samples, chunks=chunks))


def deep_png(samples: np.ndarray, *, chunks: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """(H, W, 1 to 4) numbers as a PNG file of 16 bits."""
    height, width, channels = samples.shape
    header = struct.pack(">IIBBBBB", width, height, 16, COLOUR_TYPES[channels], 0, 0, 0)
    data = b"".join(b"\0" + row.tobytes() for row in samples.astype(">u2"))
    parts = [png_chunk(b"IHDR", header), *(png_chunk(*chunk) for chunk in chunks)]
    parts += [png_chunk(b"IDAT", zlib.compress(data)), png_chunk(b"IEND", b"")]
    return PNG_SIGNATURE + b"".join(parts)


def write_tiff(
    path: Path,
    samples: np.ndarray,
    *,
    tags: dict[int, tuple[str, tuple[float, ...] | bytes]] | None = None,
) -> None:
    """(H, W, C) samples of any type as an uncompressed TIFF file.

    Args:
        tags: number -> (letter of `struct`: B, H, I or f, values), over the usual ones.
    """
    height, width, channels = samples.shape
    bits = 8 * samples.itemsize
    sample_format = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    entries: dict[int, tuple[str, tuple[float, ...] | bytes]] = {
        256: ("I", (width,)),
        257: ("I", (height,)),
        258: ("H", (bits,) * channels),
        259: ("H", (1,)),
        262: ("H", (PHOTOMETRIC[channels],)),
        273: ("I", (8,)),
        277: ("H", (channels,)),
        278: ("I", (height,)),
        279: ("I", (samples.nbytes,)),
        339: ("H", (sample_format,) * channels),
        **({338: ("H", (2,))} if channels in (2, 4) else {}),
        **(tags or {}),
    }
    data = samples.astype(samples.dtype.newbyteorder("<")).tobytes()
    types = {"B": 1, "H": 3, "I": 4, "f": 11}
    directory, extra = struct.pack("<H", len(entries)), b""
    begin_extra = 8 + len(data) + 2 + 12 * len(entries) + 4
    for number, (letter, values) in sorted(entries.items()):
        packed = struct.pack(f"<{len(values)}{letter}", *values)
        value = packed.ljust(4, b"\0")
        if len(packed) > 4:
            value = struct.pack("<I", begin_extra + len(extra))
            extra += packed + bytes(len(packed) % 2)
        directory += struct.pack("<HHI", number, types[letter], len(values)) + value
    header = b"II" + struct.pack("<HI", 42, 8 + len(data))
    path.write_bytes(header + data + directory + bytes(4) + extra)
