"""Faces put back into photos: in their place, with the photo unchanged once it is shrunk."""

import numpy as np
import pytest
from PIL import Image

from stylesr_jax.errors import UserError
from stylesr_jax.faces import paste
from stylesr_jax.faces.align import Transform
from stylesr_jax.faces.paste import default_scale, paste_back


def smooth(height, width, seed=0, cells=12):
    """A picture with detail at several scales, as float32 in [-1, 1] that 8 bits hold."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for n in (cells, 4 * cells):
        coarse = Image.fromarray(rng.integers(0, 256, (n, n, 3), np.uint8))
        total += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), float) / 2
    return np.rint(total).astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def shrunk(picture, size):
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC), np.float32)


def psnr(a, b):
    return 10.0 * np.log10(255.0**2 / np.mean((a - b) ** 2))


PHOTO = smooth(90, 130)
FACES = (
    Transform(np.array([50.0, 45.0]), 48.0, 0.4),
    Transform(np.array([120.0, 20.0]), 30.0, 0.0),  # reaches beyond the border
)
SOLUTIONS = (smooth(256, 256, seed=1), smooth(256, 256, seed=2))  # nothing like the photo


@pytest.mark.parametrize("scale", [1, 2, 3, 8])
def test_the_result_shrinks_to_the_photo_whatever_the_solutions_are(scale):
    out = paste_back(PHOTO, FACES, SOLUTIONS, scale)
    assert out.shape == (90 * scale, 130 * scale, 3) and out.dtype == np.uint8
    back, photo = shrunk(out, (130, 90)), (PHOTO + 1.0) * 127.5
    assert psnr(back, photo) > 40.0
    assert np.abs(back - photo).max() <= 6.0
    inside = (slice(30, 60), slice(35, 65))
    assert psnr(back[inside], photo[inside]) > 40.0


def test_extreme_solutions_shrink_to_the_photo_too():
    white = np.ones((64, 64, 3), np.float32)
    out = paste_back(PHOTO, FACES, [white, -white], 4)
    assert psnr(shrunk(out, (130, 90)), (PHOTO + 1.0) * 127.5) > 40.0


def test_a_solution_lies_in_its_place_with_a_soft_edge():
    # The solution is the truth: stripes that the photo, at a fourth of the size, cannot show.
    fine = smooth(480, 480, seed=3, cells=10)
    fine[..., 0] += 0.4 * np.sign(np.sin(np.arange(480) * np.pi / 2 + 0.1))
    fine = np.clip(fine, -1.0, 1.0)
    large = np.uint8(np.rint((fine + 1.0) * 127.5))
    photo = shrunk(large, (120, 120)) / np.float32(127.5) - np.float32(1.0)
    transform = Transform(np.array([60.0, 60.0]), 64.0, 0.0)
    solution = fine[112:368, 112:368]
    out = paste_back(photo, [transform], [solution], 4).astype(np.float32)
    without = paste_back(photo, [], [], 4).astype(np.float32)
    truth = (fine + 1.0) * 127.5

    def error(picture, low, high):
        return np.abs(picture - truth)[low:high, low:high, 0].mean()

    assert error(out, 160, 320) < 0.1 * error(without, 160, 320)
    assert np.abs(out - without)[:60].max() <= 1.0  # corrections fade with the distance
    assert np.abs(out - without)[:, 420:].max() <= 1.0
    middle = [np.abs(out - without)[240, x, 0] for x in range(112, 148)]
    assert max(middle[:3]) < 0.2 * max(middle[-8:])  # nothing jumps at the edge


def test_a_turned_solution_lies_turned():
    marked = np.full((128, 128, 3), -0.5, np.float32)
    marked[24:44, 60:104] = 0.9  # above the middle, to the right
    transform = Transform(np.array([50.0, 50.0]), 60.0, np.radians(90.0))
    fractions = np.array([82.0, 34.0]) / 128
    x, y = transform.to_photo(fractions)
    assert x > 50.0 and y > 50.0  # clockwise
    picture = np.full((200, 200, 3), -0.5, np.float32)
    paste._blend(picture, np.zeros(2), 2, transform, marked)
    bright = np.argwhere(picture[..., 0] > 0.5) + 0.5
    np.testing.assert_allclose(bright.mean(0) / 2, [y, x], atol=0.6)


def test_tiles_leave_no_seams(monkeypatch):
    in_tiles = paste_back(PHOTO, FACES, SOLUTIONS, 4)
    monkeypatch.setattr(paste, "TILE", 10_000)
    at_once = paste_back(PHOTO, FACES, SOLUTIONS, 4)
    difference = np.abs(in_tiles.astype(int) - at_once)
    # Rounds of correction end tile by tile, within the tolerance.
    assert difference.max() <= 4 and difference.mean() < 0.2


@pytest.mark.parametrize("scale", [2, 8])
def test_without_faces_no_pixel_tells_where_tiles_meet(monkeypatch, scale):
    photo = 0.8 * PHOTO  # nothing is clipped
    in_tiles = paste_back(photo, [], [], scale)
    monkeypatch.setattr(paste, "TILE", 10_000)
    at_once = paste_back(photo, [], [], scale)
    assert np.abs(in_tiles.astype(int) - at_once).max() <= 1


def test_without_faces_the_photo_is_enlarged_alike_everywhere():
    photo = np.full((40, 50, 3), 0.25, np.float32)
    out = paste_back(photo, [], [], 3)
    assert out.shape == (120, 150, 3) and len(np.unique(out)) == 1


@pytest.mark.parametrize(
    ("shape", "sizes", "expected"),
    [
        ((480, 640), [256.0], 4),
        ((480, 640), [40.0, 300.0], 4),
        ((480, 640), [60.0], 8),
        ((480, 640), [2000.0], 1),
        ((3000, 4000), [100.0], 2),
        ((6000, 8000), [100.0], 1),
    ],
)
def test_the_default_scale_is_what_the_largest_face_needs(shape, sizes, expected):
    transforms = [Transform(np.zeros(2), size, 0.0) for size in sizes]
    assert default_scale(shape, transforms) == expected


def test_scales_out_of_bounds_are_refused():
    for scale in (0, 9):
        with pytest.raises(UserError, match="1 to 8 times"):
            paste_back(PHOTO, FACES, SOLUTIONS, scale)
    large = np.broadcast_to(np.float32(0.0), (4000, 4000, 3))
    with pytest.raises(UserError, match="smaller scale"):
        paste_back(large, FACES, SOLUTIONS, 2)
