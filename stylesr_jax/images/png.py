"""Chunks of PNG files, as the PNG specification (W3C, third edition) describes them."""

import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT = (b"tEXt", b"zTXt", b"iTXt")
ORIENTATION = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0", b"Raw profile type APP1\0")
MAX_KEPT_TEXT = 65536  # bytes as saved: enough for what says which side is up
MAX_PROFILE = 32 * 2**20  # bytes, decompressed


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, begin and end (length, name and checksum included) of each whole chunk."""
    begin = len(SIGNATURE)
    while begin + 12 <= len(data):
        end = begin + 12 + int.from_bytes(data[begin : begin + 4])
        if end > len(data):
            return
        yield data[begin + 4 : begin + 8], begin, end
        begin = end


def _body(data: bytes, begin: int, end: int) -> memoryview:
    return memoryview(data)[begin + 8 : end - 4]


def _body_before_pixels(data: bytes, wanted: bytes) -> memoryview | None:
    """What the first chunk of a name holds, if one stands before the pixels."""
    for name, begin, end in chunks(data):
        if name == wanted:
            return _body(data, begin, end)
        if name == b"IDAT":
            break
    return None


def without_metadata(data: bytes) -> bytes:
    """A PNG file without its colour profile and texts, which Pillow bounds in size.

    Short texts that may say which side is up stay.
    """
    removed = [
        (begin, end)
        for name, begin, end in chunks(data)
        if name == b"iCCP" or (name in TEXT and not _says_orientation(data, begin, end))
    ]
    if not removed:
        return data
    begins = [0, *(end for _, end in removed)]
    ends = [*(begin for begin, _ in removed), len(data)]
    return b"".join(memoryview(data)[b:e] for b, e in zip(begins, ends, strict=True))


def _says_orientation(data: bytes, begin: int, end: int) -> bool:
    """Whether this is a short text of a kind that Pillow looks in for the orientation."""
    body = bytes(_body(data, begin, min(end, begin + MAX_KEPT_TEXT)))
    if end - begin > MAX_KEPT_TEXT or not body.startswith(ORIENTATION):
        return False
    compressed = data[begin + 4 : begin + 8] == b"zTXt"
    return not compressed or bool(_unpacked(body.partition(b"\0")[2][1:], 16 * MAX_KEPT_TEXT))


def profile(data: bytes) -> bytes | None:
    """The ICC profile, b"" if it cannot be unpacked, None if there is none."""
    body = _body_before_pixels(data, b"iCCP")
    return None if body is None else _unpacked(bytes(body).partition(b"\0")[2][1:], MAX_PROFILE)


def _unpacked(packed: bytes, most: int) -> bytes:
    """Zlib data of at most `most` bytes; b"" if it is broken or longer."""
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(packed, most)
    except zlib.error:
        return b""
    return unpacked if unpacker.eof else b""


def significant_bits(data: bytes) -> int | None:
    """Bits of a sample as the sBIT chunk says, the most of any channel; None without one."""
    return max(_body_before_pixels(data, b"sBIT") or b"", default=None)
