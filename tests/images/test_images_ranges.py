"""Black and white of samples that say no range, and of those whose tags do."""

import numpy as np
import pytest
from PIL import Image

from picture_files import write_deep_png, write_tiff
from stylesr_jax.errors import UserError
from stylesr_jax.images.files import read_picture

SHADES = np.random.default_rng(0).uniform(0.0, 1.0, (16, 24, 1))
SHADES[0, 0], SHADES[0, 1] = 0.0, 1.0
COLOURS = np.random.default_rng(1).uniform(0.0, 1.0, (16, 24, 3))
COLOURS[0, 0], COLOURS[0, 1] = 0.0, 1.0
MAX_SAMPLE, S_MIN, S_MAX, PHOTOMETRIC, SAMPLE_FORMAT = 281, 340, 341, 262, 339


def _assert_shades(path, expected, *, note="", tolerance=0.51):
    picture = read_picture(path)
    expected = np.broadcast_to(expected, (*expected.shape[:2], 3)) * 255.0
    np.testing.assert_allclose((picture.pixels + 1.0) * 127.5, expected, atol=tolerance)
    assert len(picture.notes) == bool(note) and note in "".join(picture.notes)


@pytest.mark.parametrize("values", [SHADES, COLOURS])
def test_16_bits_are_read_in_full(tmp_path, values):
    deep = np.rint(values * 65535).astype(np.uint16)
    write_deep_png(tmp_path / "a.png", deep)
    write_tiff(tmp_path / "a.tif", deep)
    for name in ("a.png", "a.tif"):
        _assert_shades(tmp_path / name, values, tolerance=0.01)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_compressed_16_bit_tiffs(tmp_path, compression):
    deep = np.rint(SHADES[..., 0] * 4095).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.tif", compression=compression)
    _assert_shades(tmp_path / "a.tif", SHADES, note="12-bit")


@pytest.mark.parametrize("bits", [8, 10, 12])
@pytest.mark.parametrize("values", [SHADES, COLOURS])
def test_fewer_bits_in_16_are_known_by_the_largest(tmp_path, bits, values):
    few = np.rint(values * (2**bits - 1)).astype(np.uint16)
    write_deep_png(tmp_path / "a.png", few)
    write_tiff(tmp_path / "a.tif", few)
    for name in ("a.png", "a.tif"):
        _assert_shades(tmp_path / name, values, note=f"{bits}-bit")


def test_grey_with_opacity_in_16_bits(tmp_path):
    opacity = np.full_like(SHADES, 1.0)
    opacity[:, 12:] = 0.5
    both = np.concatenate([SHADES, opacity], axis=2)
    expected = opacity * SHADES + 1.0 - opacity
    for scale, note in ((65535, ""), (4095, "12-bit")):
        write_deep_png(tmp_path / "a.png", np.rint(both * scale))
        _assert_shades(tmp_path / "a.png", expected, note=note)


def test_colours_with_opacity_in_16_bits(tmp_path):
    opacity = np.full_like(SHADES, 0.25)
    both = np.rint(np.concatenate([COLOURS, opacity], axis=2) * 65535).astype(np.uint16)
    write_deep_png(tmp_path / "a.png", both)
    write_tiff(tmp_path / "a.tif", both)
    for name in ("a.png", "a.tif"):
        _assert_shades(tmp_path / name, 0.25 * COLOURS + 0.75, tolerance=0.02)


def test_a_clear_colour_in_16_bits(tmp_path):
    deep = np.rint(COLOURS * 65535).astype(np.uint16)
    clear = deep[3, 4].astype(">u2").tobytes()
    write_deep_png(tmp_path / "a.png", deep, chunks=[(b"tRNS", clear)])
    expected = COLOURS.copy()
    expected[3, 4] = 1.0
    _assert_shades(tmp_path / "a.png", expected)


def test_the_tags_of_tiff_decide(tmp_path):
    dark = np.rint(SHADES * 900).astype(np.uint16)
    for tags, white in (
        ({MAX_SAMPLE: ("H", (4095,))}, 4095),
        ({S_MAX: ("H", (65535,))}, 65535),
        ({S_MAX: ("H", (1000,)), MAX_SAMPLE: ("H", (4095,))}, 1000),
    ):
        write_tiff(tmp_path / "a.tif", dark, tags=tags)
        _assert_shades(tmp_path / "a.tif", dark / white, tolerance=0.01)
    signed = (SHADES * 2.0 - 1.0).astype(np.float32)
    write_tiff(tmp_path / "b.tif", signed, tags={S_MIN: ("f", (-1.0,)), S_MAX: ("f", (1.0,))})
    _assert_shades(tmp_path / "b.tif", SHADES, tolerance=0.01)
    write_tiff(tmp_path / "c.tif", (SHADES * 7).astype(np.float32), tags={S_MAX: ("f", (7.0,))})
    _assert_shades(tmp_path / "c.tif", SHADES, tolerance=0.01)


def test_tags_that_the_values_contradict_do_not_decide(tmp_path):
    bright = np.rint(SHADES * 65535).astype(np.uint16)
    write_tiff(tmp_path / "a.tif", bright, tags={MAX_SAMPLE: ("H", (255,))})
    _assert_shades(tmp_path / "a.tif", SHADES, tolerance=0.01)


def test_12_bits_packed(tmp_path):
    numbers = np.rint(SHADES[..., 0] * 4095).astype(np.uint32).reshape(-1, 2)
    packed = (numbers[:, 0] << 12) | numbers[:, 1]
    octets = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1).astype(np.uint8)
    write_tiff(
        tmp_path / "a.tif",
        octets.reshape(16, 36, 1),
        tags={256: ("I", (24,)), 258: ("H", (12,))},
    )
    _assert_shades(tmp_path / "a.tif", SHADES, tolerance=0.05)


def test_significant_bits_of_png(tmp_path):
    dark = np.rint(SHADES * 900).astype(np.uint16)
    for bits, white in ((16, 65535), (12, 4095), (10, 1023)):
        write_deep_png(tmp_path / "a.png", dark, chunks=[(b"sBIT", bytes([bits]))])
        _assert_shades(tmp_path / "a.png", dark / white, tolerance=0.01)
    # As the specification wants it: 12 bits scaled to 16.
    scaled = np.rint(SHADES * 65535).astype(np.uint16)
    write_deep_png(tmp_path / "b.png", scaled, chunks=[(b"sBIT", bytes([12]))])
    _assert_shades(tmp_path / "b.png", SHADES, tolerance=0.01)


@pytest.mark.parametrize("white", [1, 255, 1023, 4095, 65535])
def test_32_bit_integers(tmp_path, white):
    values = np.rint(SHADES * white).astype(np.int32)
    write_tiff(tmp_path / "a.tif", values)
    note = "0 and 1" if white == 1 else f"{white.bit_length()}-bit"
    _assert_shades(tmp_path / "a.tif", values / white, note=note, tolerance=0.01)


def test_floats(tmp_path):
    for scale, expected, note in (
        (1.0, SHADES, ""),
        (0.02, SHADES * 0.02, ""),
        (1.004, np.minimum(SHADES * 1.004, 1.0), "cut at 1"),
        (255.0, SHADES, "0 to 255"),
        (130.0, SHADES * 130 / 255, "0 to 255"),
    ):
        write_tiff(tmp_path / "a.tif", (SHADES * scale).astype(np.float32))
        _assert_shades(tmp_path / "a.tif", expected, note=note, tolerance=0.01)


def test_what_has_no_range_is_refused_with_what_is_expected(tmp_path):
    broken = SHADES.astype(np.float32)
    broken[2, 3] = np.nan
    infinite = SHADES.astype(np.float32)
    infinite[2, 3] = np.inf
    for samples, says in (
        (broken, "NaN"),
        (infinite, "NaN or infinite"),
        (SHADES.astype(np.float32) - 0.5, "negative"),
        ((SHADES * 200 - 100).astype(np.int32), "negative"),
        ((SHADES * 200 - 100).astype(np.int16), "negative"),
        ((SHADES * 7).astype(np.float32), "up to 7 of no stated range"),
        ((SHADES * 60000).astype(np.float32), "up to 60000 of no stated range"),
        (np.rint(SHADES * 7).astype(np.int32), "up to 7 of no stated range"),
        (np.rint(SHADES * 2e6).astype(np.int32), "up to 2e\\+06 of no stated range"),
    ):
        write_tiff(tmp_path / "a.tif", samples)
        with pytest.raises(UserError, match=says) as caught:
            read_picture(tmp_path / "a.tif")
        assert "from 0 to 1" in str(caught.value) and "\n" not in str(caught.value)


def test_white_may_be_zero(tmp_path):
    grey = np.rint(SHADES * 65535).astype(np.uint16)
    write_tiff(tmp_path / "a.tif", grey, tags={PHOTOMETRIC: ("H", (0,))})
    _assert_shades(tmp_path / "a.tif", 1.0 - SHADES, tolerance=0.01)
    write_tiff(tmp_path / "b.tif", (grey >> 8).astype(np.uint8), tags={PHOTOMETRIC: ("H", (0,))})
    _assert_shades(tmp_path / "b.tif", 1.0 - (grey >> 8) / 255.0, tolerance=0.01)


def test_all_black_is_black(tmp_path):
    write_tiff(tmp_path / "a.tif", np.zeros((8, 8, 1), np.uint16))
    _assert_shades(tmp_path / "a.tif", np.zeros((8, 8, 1)))


def test_maxval_of_pgm(tmp_path):
    values = np.rint(SHADES[..., 0] * 1023).astype(">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 24 16 4095\n" + values.tobytes())
    _assert_shades(tmp_path / "a.pgm", values[..., None] / 4095.0, tolerance=0.01)
    colours = np.rint(COLOURS * 4095).astype(">u2")
    (tmp_path / "a.ppm").write_bytes(b"P6 24 16 4095\n" + colours.tobytes())
    _assert_shades(tmp_path / "a.ppm", COLOURS, tolerance=0.6)


def test_16_bit_planes_are_refused(tmp_path):
    """Pillow would read them as noise."""
    deep = np.rint(COLOURS * 65535).astype(np.uint16)
    write_tiff(tmp_path / "a.tif", deep, tags={284: ("H", (2,))})
    with pytest.raises(UserError, match="16-bit planes"):
        read_picture(tmp_path / "a.tif")
