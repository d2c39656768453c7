"""Colours of cheeks: measured where they are, in the units that the literature has."""

import json

import numpy as np
import pytest
from skimage.color import lab2rgb, rgb2lab

from benchmarks import bias
from benchmarks.bias import CLASSES, Cheeks, change, cheeks, spread, table, to_lab
from stylesr_jax.images.files import read_image, write_png
from where import PORTRAIT

POINTS = np.array([[75.0, 95.0], [125.0, 95.0], [100.0, 124.0], [80.0, 144.0], [120.0, 144.0]])


def test_lab_is_that_of_scikit_image():
    image = np.random.default_rng(0).uniform(-1, 1, (32, 32, 3))
    image[0, 0], image[0, 1] = -1.0, 1.0
    np.testing.assert_allclose(to_lab(image), rgb2lab((image + 1) / 2), atol=0.02)


def test_ita_is_that_of_its_definition():
    """ITA = arctan((L* - 50) / b*), in degrees (Chardon et al. 1991)."""
    image = np.broadcast_to(lab2rgb([65.0, 12.0, 15.0]) * 2 - 1, (200, 200, 3))
    measured = cheeks(image, POINTS)
    assert measured.lightness == pytest.approx(65.0, abs=0.1)
    assert measured.ita == pytest.approx(45.0, abs=0.3)


def test_only_the_cheeks_count():
    """Discs that end before eyes, nose and mouth; the rest of the picture may be anything."""
    image = np.random.default_rng(0).uniform(-1, 1, (200, 200, 3))
    rows, columns = np.mgrid[:200, :200] + 0.5
    for x in (72.5, 127.5):
        image[np.hypot(columns - x, rows - 119.5) <= 9.0] = 0.25
    grey = to_lab(np.array([0.25, 0.25, 0.25]))[0]
    assert cheeks(image, POINTS).lightness == pytest.approx(grey, abs=1e-6)


def test_the_portraits_cheeks_are_skin():
    image = read_image(PORTRAIT)
    points = bias.largest_face(image)
    assert points is not None
    assert 55 < cheeks(image, points).lightness < 90
    assert bias.largest_face(np.zeros((64, 64, 3), np.float32)) is None


def test_classes_begin_at_their_bounds():
    measured = [Cheeks(50.0, ita) for ita in (60, 55, 54, 41, 30, 28, 20, 9, -29, -31, -80)]
    shares = spread(measured)
    assert list(shares) == list(CLASSES) and sum(shares.values()) == pytest.approx(100.0)
    counts = [round(share * len(measured) / 100) for share in shares.values()]
    assert counts == [2, 2, 2, 1, 2, 2]


def test_change_says_what_is_drawn_towards_the_mean():
    before = [Cheeks(lightness, 0.0) for lightness in (30.0, 50.0, 70.0, 90.0)]
    after = [Cheeks(60.0 + (one.lightness - 60.0) / 2, 0.0) for one in before]
    found = change(before, after)
    assert found["slope"] == pytest.approx(0.5) and found["mean"] == pytest.approx(0.0)
    assert found["darker_half"] == pytest.approx(10.0)
    assert found["lighter_half"] == pytest.approx(-10.0)


def test_the_command_measures_draws_and_photographs(tmp_path, tiny_files, monkeypatch, capsys):
    """On the tiny generator, whose pictures are no faces: their points are given."""
    monkeypatch.setattr(bias, "largest_face", lambda image: POINTS * image.shape[0] / 200)
    monkeypatch.setattr(bias, "LOW", 8)
    monkeypatch.setattr(bias, "configure", lambda: None)
    monkeypatch.setattr(
        bias,
        "load_prior",
        lambda generator, load=bias.load_prior: load(generator, tiny_files["prior"]),
    )
    settings = {"style_steps": 1, "steps": 1, "tries": 1}
    resolve = bias.method_named

    class Short:
        def __init__(self, name):
            self.kind = resolve(name)

        def resolve(self, preset):
            return self.kind.resolve(preset, settings)

    monkeypatch.setattr(bias, "method_named", Short)
    (tmp_path / "images").mkdir()
    for i in range(3):
        grey = np.full((64, 64, 3), 50 + 60 * i, np.uint8)
        write_png(tmp_path / "images" / f"{i}.png", grey)
    out = tmp_path / "bias.json"
    arguments = ["--draws", "2", "--images", str(tmp_path / "images"), "--out", str(out)]
    assert bias.main([*arguments, "--generator", str(tiny_files["generator"])]) == 0
    report = json.loads(out.read_text())
    assert report["drawn"]["faces"] == 2 and report["photographs"]["faces"] == 3
    searched = report["photographs"]["searched"]
    assert searched["corrected"]["slope"] == pytest.approx(1.0, abs=0.1)
    assert table(report) in capsys.readouterr().out
