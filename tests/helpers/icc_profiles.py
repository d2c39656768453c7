"""ICC profiles (ICC.1:2001-04) made from numbers, for tests of colours."""

import struct

import numpy as np

D50 = (0.9642, 1.0, 0.8249)
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
D65_WHITE, D50_WHITE = (0.3127, 0.3290), (0.3457, 0.3585)  # x, y
PRIMARIES = {  # x, y of red, green and blue, and of white
    "sRGB": ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), D65_WHITE),
    "Display P3": ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), D65_WHITE),
    "Adobe RGB (1998)": ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), D65_WHITE),
    "ProPhoto RGB": ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), D50_WHITE),
}
GAMMAS = {"Adobe RGB (1998)": 563 / 256, "ProPhoto RGB": 461 / 256}  # the others have sRGB's curve


def _xyz(x: float, y: float) -> np.ndarray:
    return np.array([x / y, 1.0, (1.0 - x - y) / y])


def matrix_of(name: str) -> np.ndarray:
    """Linear device values to X, Y, Z under D50: (3, 3)."""
    *primaries, white = PRIMARIES[name]
    columns = np.stack([_xyz(*p) for p in primaries], axis=1)
    matrix = columns * np.linalg.solve(columns, _xyz(*white))
    cones = BRADFORD @ np.array(D50) / (BRADFORD @ _xyz(*white))
    return np.linalg.inv(BRADFORD) @ np.diag(cones) @ BRADFORD @ matrix


def decoded(values: np.ndarray, name: str) -> np.ndarray:
    """Device values in [0, 1] to linear light."""
    if name in GAMMAS:
        return values ** GAMMAS[name]
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encoded(linear: np.ndarray) -> np.ndarray:
    """Linear light to sRGB values in [0, 1]; what is outside is cut."""
    linear = np.clip(linear, 0.0, 1.0)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def in_srgb(values: np.ndarray, name: str) -> np.ndarray:
    """(..., 3) device values in [0, 1] in sRGB."""
    xyz = decoded(values, name) @ matrix_of(name).T
    return encoded(xyz @ np.linalg.inv(matrix_of("sRGB")).T)


def _tag(kind: bytes, body: bytes) -> bytes:
    return kind + bytes(4) + body


def _fixed(*numbers: float) -> bytes:
    return struct.pack(f">{len(numbers)}i", *(round(n * 65536) for n in numbers))


def _described(text: str) -> bytes:
    ascii_text = text.encode() + b"\0"
    return _tag(b"desc", struct.pack(">I", len(ascii_text)) + ascii_text + bytes(78))


def power_curve(gamma: float) -> bytes:
    return _tag(b"curv", struct.pack(">IH", 1, round(gamma * 256)))


def srgb_curve() -> bytes:
    parameters = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    return _tag(b"para", struct.pack(">HH", 3, 0) + _fixed(*parameters))


def table_curve(values: np.ndarray) -> bytes:
    numbers = np.rint(values * 65535).astype(">u2")
    return _tag(b"curv", struct.pack(">I", numbers.size) + numbers.tobytes())


def profile(
    space: bytes,
    tags: dict[bytes, bytes],
    name: str,
    *,
    pcs: bytes = b"XYZ ",
    kind: bytes = b"mntr",
) -> bytes:
    """The header, the table of tags, and the tags."""
    tags = {b"desc": _described(name), b"wtpt": _tag(b"XYZ ", _fixed(*D50)), **tags}
    table, body = b"", b""
    begin = 132 + 12 * len(tags)
    for key, tag in tags.items():
        table += struct.pack(">4sII", key, begin + len(body), len(tag))
        body += tag + bytes(-len(tag) % 4)
    header = struct.pack(
        ">I4sI4s4s4s6H4s4sI4s4sQI",
        begin + len(body), b"test", 0x02400000, kind, space, pcs, 2000, 1, 1, 0, 0, 0,
        b"acsp", b"test", 0, b"test", b"test", 0, 0,
    )  # fmt: skip
    header += _fixed(*D50)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def rgb_profile(name: str, *, curve: bytes | None = None) -> bytes:
    """One of PRIMARIES, with its own curve or another."""
    if curve is None:
        curve = power_curve(GAMMAS[name]) if name in GAMMAS else srgb_curve()
    columns = matrix_of(name).T
    keys = ((b"rXYZ", b"rTRC"), (b"gXYZ", b"gTRC"), (b"bXYZ", b"bTRC"))
    tags = {}
    for (colour, trc), column in zip(keys, columns, strict=True):
        tags |= {colour: _tag(b"XYZ ", _fixed(*column)), trc: curve}
    return profile(b"RGB ", tags, name)


def grey_profile(gamma: float) -> bytes:
    return profile(b"GRAY", {b"kTRC": power_curve(gamma)}, f"grey of gamma {gamma}")


def cmyk_profile(lab_of_corners: np.ndarray) -> bytes:
    """A table of two points a side: (2, 2, 2, 2, 3) L*, a*, b* by C, M, Y, K."""
    lab = lab_of_corners.reshape(-1, 3)
    levels = np.stack([lab[:, 0] * 2.55, lab[:, 1] + 128, lab[:, 2] + 128], axis=1)
    identity = bytes(range(256))
    body = struct.pack(">BBBB", 4, 3, 2, 0) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    body += identity * 4 + np.rint(levels).astype(np.uint8).tobytes() + identity * 3
    table = _tag(b"mft1", body)
    return profile(b"CMYK", {b"A2B0": table}, "test inks", pcs=b"Lab ", kind=b"prtr")
