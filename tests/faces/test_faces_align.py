"""FFHQ's alignment, on points and pictures of which the crop is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stylesr_jax.errors import UserError
from stylesr_jax.faces.align import (
    Face,
    Transform,
    align,
    ffhq_transform,
    grid,
    is_framed,
    observation_size,
    sample,
    seen_fraction,
    taken_as_it_is,
)

# A face in the unit frame: four times the eyes' distance is its side, the eyes' middle lies a
# tenth of the way to the mouth above its centre.
FRAMED = np.array(
    [[0.375, 0.4756], [0.625, 0.4756], [0.5, 0.62], [0.4, 0.7196], [0.6, 0.7196]], np.float64
)
SQUARE = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])


def turned(points, side=1.0, degrees=0.0, center=(0.5, 0.5)):
    """Points of the unit frame, in a frame of that side, angle and centre."""
    return Transform(np.array(center), side, np.radians(degrees)).to_photo(points)


def face_at(side, degrees=0.0, center=(0.5, 0.5)):
    points = turned(FRAMED, side, degrees, center)
    return Face(points, np.concatenate([points.min(0), points.max(0)]), 0.9)


def ramp(height, width):
    """An image whose values are linear in x and y."""
    y, x = np.mgrid[:height, :width].astype(np.float32) + np.float32(0.5)
    image = np.stack([x / width, y / height, (x / width + y / height) / 2], axis=-1)
    return (1.6 * image - 0.8).astype(np.float32)


def ramp_at(points, height, width):
    x, y = points[..., 0] / width, points[..., 1] / height
    return 1.6 * np.stack([x, y, (x + y) / 2], axis=-1) - 0.8


def test_a_framed_face_has_the_whole_frame_as_its_crop():
    np.testing.assert_allclose(ffhq_transform(FRAMED).corners, SQUARE, atol=1e-4)


@given(
    side=st.floats(8.0, 4000.0),
    degrees=st.floats(-179.0, 179.0),
    x=st.floats(-500.0, 5000.0),
    y=st.floats(-500.0, 5000.0),
)
@settings(deadline=None)
def test_the_crop_moves_with_the_face(side, degrees, x, y):
    transform = ffhq_transform(turned(FRAMED, side, degrees, (x, y)))
    expected = turned(SQUARE, side, degrees, (x, y))
    np.testing.assert_allclose(transform.corners, expected, atol=2e-4 * side)
    assert transform.size == pytest.approx(side, rel=1e-3)
    assert np.degrees(transform.rotation) == pytest.approx(degrees, abs=1e-3)


def test_a_long_face_is_framed_by_the_way_from_eyes_to_mouth():
    points = FRAMED.copy()
    points[3:, 1] += 0.2
    down = points[3, 1] - points[0, 1]
    transform = ffhq_transform(points)
    assert transform.size == pytest.approx(3.6 * down)
    np.testing.assert_allclose(transform.center, [0.5, points[0, 1] + 0.1 * down])


def test_points_of_no_face_are_refused():
    with pytest.raises(UserError, match="no face's"):
        ffhq_transform(np.zeros((5, 2)))
    with pytest.raises(UserError, match="five points"):
        ffhq_transform(np.zeros((4, 2)))
    with pytest.raises(UserError, match="five points"):
        ffhq_transform(np.full((5, 2), np.nan))


def test_crop_and_photo_coordinates_are_inverse():
    transform = Transform(np.array([30.0, 70.0]), 41.0, 0.6)
    points = np.random.default_rng(0).uniform(-2, 3, (7, 4, 2))
    np.testing.assert_allclose(transform.to_crop(transform.to_photo(points)), points, atol=1e-12)
    upright = Transform(np.array([8.0, 8.0]), 16.0, 0.0)
    np.testing.assert_allclose(grid(upright, 16)[3, 5], [5.5, 3.5])


def test_interpolation_is_exact_for_linear_images_and_at_pixels():
    image = ramp(12, 20)
    points = np.random.default_rng(0).uniform([2, 2], [18, 10], (50, 2))
    np.testing.assert_allclose(sample(image, points), ramp_at(points, 12, 20), atol=1e-5)
    noise = np.random.default_rng(0).normal(size=(6, 7, 3)).astype(np.float32)
    y, x = np.mgrid[:6, :7] + 0.5
    np.testing.assert_allclose(sample(noise, np.stack([x, y], -1)), noise, atol=1e-6)
    beyond = sample(noise, np.array([[-0.5, 2.5], [7.5, 2.5], [3.5, 6.5]]))
    np.testing.assert_allclose(beyond, [noise[2, 0], noise[2, 6], noise[5, 3]], atol=1e-6)


@pytest.mark.parametrize("side", [8, 48, 256])
def test_a_framed_image_is_its_own_observation(side):
    image = np.random.default_rng(0).uniform(-1, 1, (side, side, 3)).astype(np.float32)
    pixels, seen = align(image, side * FRAMED)
    assert pixels.shape == image.shape and (seen == 1.0).all()
    # Interpolation between pixels of white noise; the crop is off by less than 0.001 of the side.
    np.testing.assert_allclose(pixels, image, atol=0.01 * side)
    assert np.abs(pixels - image).mean() < 0.02 + 0.002 * side


def test_nothing_is_enlarged_and_nothing_is_larger_than_256():
    sides = {3.0: 8, 8.2: 8, 23.6: 24, 199.0: 199, 256.0: 256, 257.0: 256, 3000.0: 256}
    for side, expected in sides.items():
        assert observation_size(Transform(np.zeros(2), side, 0.0)) == expected


@pytest.mark.parametrize(("side", "size"), [(60, None), (300, None), (900, None), (3000, 64)])
def test_a_turned_crop_of_a_linear_image_is_linear(side, size):
    image = ramp(3600, 3600) if side == 3000 else ramp(1000, 1100)
    height, width = image.shape[:2]
    center = (width / 2, height / 2)
    degrees = 30.0 if side < 900 else 3.0
    points = turned(FRAMED, side, degrees, center)
    pixels, seen = align(image, points, size)
    expected = ramp_at(grid(ffhq_transform(points), pixels.shape[0]), height, width)
    inner = (slice(4, -4), slice(4, -4))  # the shrinking kernel is cut off at the crop's border
    np.testing.assert_allclose(pixels[inner], expected[inner], atol=2e-3)
    assert (seen == 1.0).all()


def test_a_large_face_is_shrunk_without_aliasing():
    # Stripes of one pixel are grey at a quarter of the size.
    stripes = np.tile(np.float32([[[1.0]], [[-1.0]]]), (512, 1024, 3))
    pixels, _ = align(stripes, 1024 * FRAMED)
    assert pixels.shape == (256, 256, 3)
    assert np.abs(pixels[8:-8]).max() < 0.05
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8))
    large = np.asarray(small.resize((480, 480), Image.Resampling.BICUBIC), np.float32) / 127.5 - 1
    expected = Image.fromarray(np.uint8((large + 1) * 127.5)).resize((256, 256), 3)
    pixels, _ = align(large, 480 * FRAMED)
    difference = np.abs(pixels - (np.asarray(expected, np.float32) / 127.5 - 1))[8:-8, 8:-8]
    assert difference.mean() < 0.02


def test_what_lies_beyond_the_photo_is_mirrored_and_marked():
    image = ramp(100, 100)
    pixels, seen = align(image, turned(FRAMED, 60.0, 0.0, (15.0, 50.0)))
    assert pixels.shape == (60, 60, 3)
    np.testing.assert_array_equal(seen[:, :14], 0.0)
    np.testing.assert_array_equal(seen[:, 16:], 1.0)
    np.testing.assert_allclose(pixels[:, 14], pixels[:, 15], atol=0.02)
    np.testing.assert_allclose(pixels[:, 5], pixels[:, 24], atol=0.02)
    assert np.abs(pixels[:, 5] - pixels[:, 15]).max() > 0.1


@pytest.mark.parametrize("size", [7, 257])
def test_observations_of_other_sizes_are_refused(size):
    with pytest.raises(UserError, match="8 to 256 px"):
        align(ramp(100, 100), 100 * FRAMED, size)


# --- inputs that need no alignment ----------------------------------------------------------


def blank(height, width):
    return np.zeros((height, width, 3), np.float32)


FRAMED_FACE = face_at(128.0, 0.0, (64.0, 64.0))


@pytest.mark.parametrize(
    ("face", "expected"),
    [
        (FRAMED_FACE, True),
        (face_at(140.0, 3.0, (66.0, 63.0)), True),
        (face_at(128.0, 0.0, (90.0, 64.0)), False),
        (face_at(160.0, 0.0, (64.0, 64.0)), False),
        (face_at(90.0, 0.0, (64.0, 64.0)), False),
        (face_at(128.0, 30.0, (64.0, 64.0)), False),
    ],
)
def test_framed_images(face, expected):
    assert is_framed(blank(128, 128), [face]) is expected
    other = face_at(30.0, 0.0, (15.0, 15.0))
    assert is_framed(blank(128, 128), [other, face]) is expected


def test_images_without_faces_or_not_square_are_not_framed():
    assert not is_framed(blank(128, 128), [])
    assert not is_framed(blank(128, 200), [FRAMED_FACE])


def test_the_seen_fraction_of_a_crop():
    image = blank(200, 300)
    large = face_at(90.0, 10.0, (200.0, 120.0))
    cut = face_at(190.0, 0.0, (290.0, 100.0))
    assert seen_fraction(image, large.transform) == 1.0
    assert seen_fraction(image, cut.transform) == pytest.approx(0.55, abs=0.05)


@pytest.mark.parametrize(
    ("shape", "faces", "expected"),
    [
        ((128, 128), [FRAMED_FACE], True),
        ((512, 512), [face_at(512.0, 0.0, (256.0, 256.0))], True),
        ((64, 64), [], True),
        ((256, 200), [], True),
        ((257, 200), [], False),
        ((256, 256), [face_at(90.0, 0.0, (100.0, 100.0))], False),
        ((256, 256), [face_at(400.0, 0.0, (128.0, 128.0))], True),
        ((800, 600), [face_at(90.0, 0.0, (100.0, 100.0))], False),
    ],
)
def test_inputs_that_are_taken_as_they_are(shape, faces, expected):
    assert taken_as_it_is(blank(*shape), faces) is expected
