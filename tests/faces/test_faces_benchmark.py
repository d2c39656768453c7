"""The composites of the faces benchmark, and what it counts."""

import numpy as np
import pytest
from PIL import Image

from benchmarks.faces import (
    EYE_TO_CHIN,
    FACELESS,
    Match,
    Pasted,
    compare,
    composite,
    faceless_picture,
    measure,
    side_of,
    summary,
)
from stylesr_jax.faces.align import Face, Transform, ffhq_transform
from where import PORTRAIT

REFERENCE = np.array([[0.375, 0.4756], [0.625, 0.4756], [0.5, 0.62], [0.4, 0.7196], [0.6, 0.7196]])


def pasted_at(transform):
    return Pasted(transform.corners, 0, EYE_TO_CHIN * transform.size)


def face_at(transform):
    points = transform.to_photo(REFERENCE)
    return Face(points, np.concatenate([points.min(0), points.max(0)]), 0.9)


def test_a_composite_says_where_its_faces_are():
    # A photograph that is white in its upper left quarter only tells where its corners are.
    photo = Image.new("RGB", (256, 256))
    photo.paste((255, 255, 255), (0, 0, 128, 128))
    placed = 0
    for seed in range(6):
        picture, pasted = composite(np.random.default_rng(seed), [photo])
        pixels = np.asarray(picture)
        for face in pasted:
            placed += 1
            assert 24 <= face.eye_to_chin <= 400
            assert side_of(face) == pytest.approx(face.eye_to_chin / EYE_TO_CHIN)
            frame = Transform(face.corners.mean(0), side_of(face), ffhq_rotation(face))
            np.testing.assert_allclose(frame.corners, face.corners, atol=1e-6)
            quarters = frame.to_photo(np.array([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75]]))
            columns, rows = quarters.astype(int).T
            brightness = pixels[rows, columns].mean(axis=1)
            assert brightness[0] > 240 and brightness[1:].max() < 15
    assert placed >= 6


def ffhq_rotation(face):
    across = face.corners[1] - face.corners[0]
    return float(np.arctan2(across[1], across[0]))


def test_found_missed_doubled_and_false_faces_are_counted():
    first = Transform(np.array([100.0, 100.0]), 80.0, 0.3)
    second = Transform(np.array([400.0, 100.0]), 60.0, 0.0)
    away = Transform(np.array([250.0, 300.0]), 60.0, 0.0)
    pasted = [pasted_at(first), pasted_at(second)]
    exact = [face_at(first), face_at(first), face_at(away)]
    matches, doubled, false = compare(exact, pasted, [REFERENCE])
    assert (doubled, false) == (1, 1)
    assert matches[0].crop == pytest.approx(0.0, abs=1e-3)
    assert matches[0].points == pytest.approx(0.0, abs=1e-9)
    assert np.isnan(matches[1].crop)


def test_errors_are_relative_to_the_crop_and_to_the_eyes():
    truth = Transform(np.array([100.0, 100.0]), 80.0, 0.3)
    moved = Transform(np.array([108.0, 100.0]), 80.0, 0.3)
    (match,), _, _ = compare([face_at(moved)], [pasted_at(truth)], [REFERENCE])
    assert match.crop == pytest.approx(0.1, abs=1e-3)
    assert match.points == pytest.approx(8.0 / 20.0)
    assert ffhq_transform(face_at(moved).points).size == pytest.approx(80.0, rel=1e-3)


def test_the_summary_is_of_what_was_found():
    pasted = [pasted_at(Transform(np.zeros(2), side, 0.0)) for side in (60.0, 60.0, 200.0, 200.0)]
    matches = [
        Match(pasted[0], 0.01, 0.02),
        Match(pasted[1]),
        Match(pasted[2], 0.03, 0.04),
        Match(pasted[3], 0.02, 0.03),
    ]
    found = summary(matches)
    assert found["found_percent"] == 75.0
    assert (found["pasted_24_to_40_px"], found["found_24_to_40_px"]) == (2, 1)
    assert found["crop_median_percent"] == pytest.approx(2.0)
    assert found["points_median_percent"] == pytest.approx(3.0)


@pytest.mark.parametrize("name", FACELESS)
def test_pictures_without_faces_are_rgb(name):
    picture = faceless_picture(name)
    assert picture.mode == "RGB" and np.asarray(picture).std() > 1.0


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path):
    Image.open(PORTRAIT).save(tmp_path / "portrait.png")
    report = measure(tmp_path, faceless=None, pictures=2, seed=0, sheet=tmp_path / "sheet.png")
    assert report["photographs"] == 1 and report["found_percent"] == 100.0
    assert (tmp_path / "sheet.png").is_file()
