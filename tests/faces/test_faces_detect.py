"""Finding faces: the shipped portrait and drawn faces, pasted where they are known to be."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from photos import background, half_hidden, paste
from stylesr_jax.errors import UserError
from stylesr_jax.faces import detect
from stylesr_jax.faces.align import Transform, is_framed
from stylesr_jax.faces.detect import Candidates, find_faces, merge, overlaps, scales
from stylesr_jax.images.files import read_image, to_uint8
from where import PORTRAIT


@pytest.fixture(scope="module")
def portrait():
    return Image.open(PORTRAIT).convert("RGB")


@pytest.fixture(scope="module")
def portrait_face():
    """The portrait's own face, found at its full size."""
    (face,) = find_faces(read_image(PORTRAIT))
    return face


def floats(picture):
    return np.asarray(picture, np.float32) / np.float32(127.5) - np.float32(1.0)


def at(face, transform, side):
    """Where a face of a photo with that side lies when the photo is pasted at the transform."""
    return transform.to_photo(face.points / side)


def off(face, points):
    """The mean distance of a face's points, over the distance of the eyes."""
    apart = np.linalg.norm(face.points - points, axis=1).mean()
    return apart / np.linalg.norm(points[1] - points[0])


def test_the_portrait_has_one_face_that_is_framed(portrait_face):
    face = portrait_face
    assert face.score > 0.8
    assert face.size == pytest.approx(384, rel=0.08) and abs(face.roll) < 3.0
    assert is_framed(np.zeros((384, 384, 3), np.float32), [face])
    left, right, nose, mouth_left, mouth_right = face.points
    assert left[0] < nose[0] < right[0] and mouth_left[0] < nose[0] < mouth_right[0]
    assert max(left[1], right[1]) < nose[1] < min(mouth_left[1], mouth_right[1])
    assert (face.box[:2] < face.points.min(0)).all() and (face.box[2:] > face.points.max(0)).all()


@pytest.mark.parametrize(
    ("size", "side", "degrees", "center"),
    [
        ((640, 480), 56.0, 0.0, (320.0, 240.0)),  # 24 px from eye to chin
        ((640, 480), 60.0, 35.0, (207.0, 201.0)),  # where tiles meet
        ((640, 480), 120.0, -45.0, (540.0, 380.0)),
        ((500, 620), 430.0, 20.0, (250.0, 310.0)),
        ((400, 400), 180.0, 90.0, (200.0, 200.0)),
        ((300, 300), 260.0, 0.0, (40.0, 150.0)),  # a third lies beyond the border
        ((32, 32), 32.0, 0.0, (16.0, 16.0)),  # 14 px from eye to chin, enlarged to be found
    ],
)
def test_the_portrait_is_found_once_wherever_it_is(
    portrait, portrait_face, size, side, degrees, center
):
    canvas = background(size)
    transform = Transform(np.array(center), side, np.radians(degrees))
    paste(canvas, portrait, transform)
    (face,) = find_faces(floats(canvas))
    assert off(face, at(portrait_face, transform, 384)) < (0.06 if side > 50 else 0.12)


def test_a_mirror_images_points_are_those_of_the_photo(portrait, portrait_face):
    (face,) = find_faces(floats(portrait)[:, ::-1])
    mirrored = face.points[[1, 0, 2, 4, 3]] * [-1.0, 1.0] + [portrait.width, 0.0]
    apart = np.abs(mirrored - portrait_face.points).max()
    assert apart < 0.004 * face.size  # those of a single crop are off by 0.014


def test_several_faces_come_largest_first(portrait, portrait_face, mobile):
    key = jax.random.key(3)
    w = mobile.map_latents(jax.random.normal(key, (1, mobile.z_dim)))
    mean = mobile.map_latents(jax.random.normal(jax.random.key(4), (1000, mobile.z_dim))).mean(0)
    ws = np.broadcast_to(mean + 0.7 * (w - mean), (mobile.num_ws, mobile.w_dim))[None]
    drawn = Image.fromarray(to_uint8(np.asarray(mobile.synthesise(ws)[0])))
    canvas = background((700, 420))
    placed = (
        (portrait, Transform(np.array([130.0, 110.0]), 90.0, 0.3)),
        (drawn, Transform(np.array([480.0, 200.0]), 260.0, -0.2)),
        (drawn, Transform(np.array([190.0, 330.0]), 120.0, 0.0)),
    )
    for photo, transform in placed:
        paste(canvas, photo, transform)
    faces = find_faces(floats(canvas))
    assert [round(face.size, -2) for face in faces] == [300.0, 100.0, 100.0]
    sides = [260.0, 120.0, 90.0]
    for face, side, (_, transform) in zip(
        faces, sides, (placed[1], placed[2], placed[0]), strict=True
    ):
        # FFHQ's frame of a drawn face is the whole picture.
        apart = np.linalg.norm(face.transform.corners - transform.corners, axis=1).mean()
        assert apart < 0.08 * side
    assert off(faces[2], at(portrait_face, placed[0][1], 384)) < 0.05


def test_kept_programs_find_the_same(portrait_face, kept_programs):
    (face,) = find_faces(read_image(PORTRAIT))
    np.testing.assert_allclose(face.points, portrait_face.points, atol=1e-3)


def test_pictures_without_faces_have_none():
    rng = np.random.default_rng(0)
    assert find_faces(np.zeros((40, 500, 3), np.float32)) == []
    assert find_faces(rng.uniform(-1, 1, (300, 300, 3)).astype(np.float32)) == []
    assert find_faces(floats(background((600, 450), seed=1))) == []
    assert find_faces(np.zeros((1, 1, 3), np.float32)) == []


def test_a_face_upside_down_is_not_taken_for_an_upright_one(portrait, monkeypatch):
    picture = floats(portrait.rotate(180))
    assert find_faces(picture) == []
    monkeypatch.setattr(detect, "_right_way_up", lambda levels, faces: faces)
    assert len(find_faces(picture)) == 1  # so that the test would see it


@pytest.mark.parametrize(
    ("by", "most"), [("sunglasses", 0.04), ("mask", 0.04), ("hand", 0.04), ("half", 0.2)]
)
def test_a_half_hidden_face_is_found_and_framed_about_where_it_is(portrait_face, by, most):
    canvas = background((300, 260))
    transform = Transform(np.array([150.0, 130.0]), 200.0, 0.0)
    paste(canvas, half_hidden(by), transform)
    (face,) = find_faces(floats(canvas))
    true = transform.to_photo(portrait_face.transform.corners / 384)
    apart = np.linalg.norm(face.transform.corners - true, axis=1).mean()
    assert apart < most * np.linalg.norm(true[1] - true[0])


def test_images_of_other_shapes_are_refused():
    with pytest.raises(UserError, match="height, width, 3"):
        find_faces(np.zeros((10, 10), np.float32))
    with pytest.raises(UserError, match="over 50 million pixels"):
        find_faces(np.broadcast_to(np.float32(0.0), (8000, 8000, 3)))


# --- scales, tiles, merging -----------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 16), (256, 256), (480, 640), (1200, 1600), (6000, 8000)])
def test_scales_halve_from_small_faces_to_faces_that_fill_the_photo(shape):
    found = scales(*shape)
    np.testing.assert_allclose(np.divide(found[1:], found[:-1]), 0.5)
    assert found[-1] * max(shape) <= 128 < 2 * found[-1] * max(shape) + 1e-9
    assert found[0] * max(shape) >= 255.9
    assert found[0] ** 2 * shape[0] * shape[1] <= 1.001 * max(detect.MAX_SCANNED, 256**2)
    if 427 < max(shape) <= 3000:
        assert found[0] == 0.6


@pytest.mark.parametrize("length", [10, 256, 257, 464, 465, 1000, 2401])
def test_each_place_belongs_to_one_tile_that_sees_what_is_around(length):
    starts = detect._starts(length)
    owned = [detect._owned(starts, i) for i in range(len(starts))]
    assert owned[0][0] == -np.inf and owned[-1][1] == np.inf
    assert [high for _, high in owned[:-1]] == [low for low, _ in owned[1:]]
    assert starts[0] == 0 and starts[-1] + detect.TILE >= length
    for start, (low, high) in zip(starts, owned, strict=True):
        assert low == -np.inf or low - start >= detect.OVERLAP / 2
        assert high == np.inf or start + detect.TILE - high >= detect.OVERLAP / 2


def candidates(boxes, scores):
    boxes = np.array(boxes, np.float32)
    points = np.repeat((boxes[:, None, :2] + boxes[:, None, 2:]) / 2, 6, axis=1)
    return Candidates(boxes, points, np.array(scores, np.float32))


def test_overlaps():
    boxes = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [2, 0, 4, 2], [0.5, 0.5, 1.5, 1.5]], np.float64)
    np.testing.assert_allclose(overlaps(boxes[0], boxes), [1.0, 1 / 3, 0.0, 0.25])


def test_merging_takes_the_weighted_mean_of_what_overlaps_the_best():
    found = merge(candidates([[0, 0, 10, 10], [40, 0, 50, 10], [2, 0, 12, 10]], [0.9, 0.8, 0.6]))
    np.testing.assert_allclose(
        found.boxes, [[2 / 7, 0, 10 + 2 / 7, 10], [40, 0, 50, 10]], atol=1e-4
    )
    np.testing.assert_allclose(found.points[:, 0], [[5 + 2 / 7, 5.0], [45.0, 5.0]], atol=1e-4)
    np.testing.assert_allclose(found.scores, [0.9, 0.8], atol=1e-6)
    empty = candidates(np.zeros((0, 4)), [])
    assert len(merge(empty).scores) == 0


def test_of_two_faces_in_one_place_the_better_is_kept(portrait_face):
    worse = dataclasses.replace(portrait_face, score=0.5)
    moved = dataclasses.replace(worse, points=worse.points + 300.0, box=worse.box + 300.0)
    assert detect._distinct([worse, moved, portrait_face]) == [portrait_face, moved]


def test_networks_that_disagree_refuse_a_candidate(portrait_face):
    points = portrait_face.points
    same = np.concatenate([points[:3], points[3:].mean(0)[None], points[:2]])
    distance = np.linalg.norm(points[:2].mean(0) - points[3:].mean(0))
    both = np.stack([same, same + np.array([0.0, 0.6 * distance])])
    found = Candidates(np.zeros((2, 4)), both, np.ones(2))
    assert detect._agree(found, np.stack([points, points])).tolist() == [True, False]
