"""Sound, damaged and lying picture files, for tests of reading."""

import io
import resource
import struct
import sys
import zlib

import numpy as np
from PIL import Image, features

from icc_profiles import cmyk_profile, grey_profile, rgb_profile
from picture_files import PNG_SIGNATURE, iccp, png_chunk, write_deep_png, write_tiff


def saved(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def smooth(mode):
    noise = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(noise).resize((48, 40), Image.Resampling.BICUBIC).convert(mode)


def sound_files(folder):
    """Name -> bytes of small sound files of many kinds."""
    rgb, exif = smooth("RGB"), Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    p3, grey = rgb_profile("Display P3"), grey_profile(1.8)
    inks = cmyk_profile(np.linspace(0, 90, 48).reshape(2, 2, 2, 2, 3))
    deep = np.random.default_rng(1).integers(0, 65536, (20, 24, 3), np.uint16)
    write_deep_png(folder / "deep.png", deep, chunks=[(b"iCCP", iccp(p3))])
    write_tiff(folder / "deep.tif", deep, tags={34675: ("B", p3)})
    write_tiff(folder / "float.tif", (deep[..., :1] / 65535.0).astype(np.float32))
    frames = [smooth("P"), smooth("P").rotate(90)]
    files = {
        "a.png": saved(rgb, "PNG", icc_profile=p3, exif=exif),
        "grey.png": saved(smooth("L"), "PNG", icc_profile=grey),
        "alpha.png": saved(smooth("RGBA"), "PNG"),
        "palette.png": saved(smooth("P"), "PNG", transparency=3),
        "a.jpg": saved(rgb, "JPEG", exif=exif, icc_profile=p3),
        "progressive.jpg": saved(rgb, "JPEG", progressive=True, quality=60),
        "cmyk.jpg": saved(smooth("CMYK"), "JPEG", icc_profile=inks),
        "a.tif": saved(rgb, "TIFF", icc_profile=p3),
        "lzw.tif": saved(rgb, "TIFF", compression="tiff_lzw", exif=exif),
        "jpeg.tif": saved(rgb, "TIFF", compression="jpeg"),
        "a.webp": saved(rgb, "WEBP", icc_profile=p3, exif=exif),
        "lossless.webp": saved(smooth("RGBA"), "WEBP", lossless=True),
        "a.gif": saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animated.png": saved(rgb, "PNG", save_all=True, append_images=[rgb.rotate(90)]),
        "a.bmp": saved(rgb, "BMP"),
        "a.ppm": saved(rgb, "PPM"),
        "a.tga": saved(rgb, "TGA", compression="tga_rle"),
        "a.ico": saved(rgb, "ICO"),
        "a.pcx": saved(rgb, "PCX"),
        "a.sgi": saved(rgb, "SGI"),
        "a.dds": saved(rgb, "DDS"),
        "a.jp2": saved(rgb, "JPEG2000"),
    }
    if "avif" in features.modules and features.check("avif"):
        files["a.avif"] = saved(rgb, "AVIF")
    return files | {path.name: path.read_bytes() for path in folder.iterdir()}


def peak_kilobytes():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


def with_damage(data, rng):
    """A cut, changed bits, a changed run, or a doubled or missing piece, anywhere."""
    kind = rng.integers(5)
    a, b = sorted(rng.integers(0, len(data), 2).tolist())
    if kind == 0:
        return data[:b]
    if kind == 1:
        changed = bytearray(data)
        for place in rng.integers(0, len(data), rng.integers(1, 9)):
            changed[place] ^= 1 << rng.integers(8)
        return bytes(changed)
    if kind == 2:
        b = min(b, a + 16)
        return data[:a] + rng.bytes(b - a) + data[b:]
    return data[:b] + data[a:] if kind == 3 else data[:a] + data[b:]


def with_right_checksums(data):
    """A PNG file whose damage its checksums do not show; any other file as it is."""
    if not data.startswith(PNG_SIGNATURE):
        return data
    parts, begin = [PNG_SIGNATURE], 8
    while begin + 12 <= len(data):
        end = begin + 12 + int.from_bytes(data[begin : begin + 4])
        parts.append(
            png_chunk(data[begin + 4 : begin + 8], data[begin + 8 : min(end, len(data)) - 4])
        )
        begin = end
    return b"".join(parts)


def png_that_claims(width, height, *, depth=8, kind=2):
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(bytes(100)))]
    return PNG_SIGNATURE + b"".join(parts) + png_chunk(b"IEND", b"")


def gif_that_claims(width, height):
    data = bytearray(saved(Image.new("P", (8, 8)), "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def tiff_whose_pages_loop(folder):
    write_tiff(folder / "a.tif", np.zeros((4, 4, 1), np.uint8))
    data = bytearray((folder / "a.tif").read_bytes())
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    struct.pack_into("<I", data, directory + 2 + 12 * count, directory)
    return bytes(data)
