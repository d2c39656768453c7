"""What is shown of a result, and the files that are offered."""

import io
import threading
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from stylesr_jax.errors import UserError
from stylesr_jax.images.files import to_uint8
from stylesr_jax.runs.folder import read_solutions
from stylesr_jax.runs.latents import read_styles
from stylesr_jax.solver.observation import place_on_canvas
from stylesr_jax.solver.rendering import add_correction, redraw
from stylesr_jax.web import results
from stylesr_jax.web.photos import WHOLE, open_photo
from stylesr_jax.web.request import Request
from stylesr_jax.web.searches import Models, updates
from where import PORTRAIT

pytestmark = pytest.mark.usefixtures("kept_programs")
REQUEST = Request(
    method="rls",
    changes={"style_steps": "10", "coarse_steps": "0", "steps": "20", "activation_steps": "4"},
    solutions=2,
)


@pytest.fixture(scope="module")
def models(tiny_files):
    return Models(generator=str(tiny_files["generator"]), prior=str(tiny_files["prior"]))


@pytest.fixture(scope="module")
def result(models):
    values = np.random.default_rng(0).uniform(-0.6, 0.6, (8, 8, 3)).astype(np.float32)
    told = updates(models, place_on_canvas(values), REQUEST, name="", stop=threading.Event())
    return list(told)[-1].result


@pytest.fixture(scope="module")
def photo():
    """The portrait, small, on a grey picture; its file says where and with what it was taken."""
    face = Image.open(PORTRAIT).convert("RGB").resize((160, 160))
    canvas = Image.new("RGB", (300, 200), (90, 100, 110))
    canvas.paste(face, (100, 20))
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    exif.get_ifd(0x8825)[1] = "N"
    file = io.BytesIO()
    canvas.save(file, "PNG", exif=exif)
    return open_photo(file.getvalue(), "photo.png")


def test_pictures_of_a_result(result):
    pictures = results.gallery(result)
    assert [caption.split(":")[0] for _, caption in pictures] == ["solution 0", "solution 1"]
    np.testing.assert_array_equal(pictures[1][0], to_uint8(result.solutions[1].image))
    before, after = results.before_and_after(result, 1)
    assert before.shape == after.shape == (32, 32, 3)
    assert before.dtype == after.dtype == np.uint8
    np.testing.assert_array_equal(after, to_uint8(result.solutions[1].image))
    seen = to_uint8(result.observation.image)
    scale = results.SMALL // 8
    low = results.downscaled(result, 0)[::scale, ::scale]
    assert np.abs(low.astype(int) - seen).max() <= 1
    assert np.abs(results.residual(result, 0).astype(int) - 128).max() <= 4


def test_uncertainty_is_a_map_of_several_solutions(result):
    shade = results.uncertainty(result)
    assert shade is not None and shade.shape == (32, 32) and shade.max() > 0
    assert results.uncertainty(replace(result, solutions=result.solutions[:1])) is None


def test_a_solution_in_a_line(result):
    one = result.solutions[1]
    text = results.description(result, 1)
    assert f"{one.residual_psnr:.1f} dB" in text and f"{one.generated_psnr:.1f} dB" in text


def test_the_loss_curve_is_a_drawing_with_its_text():
    svg = ET.fromstring(results.loss_curve([100.0, 10.0, 1.0], 30, 60))
    points = [tuple(map(float, p.split(","))) for p in svg[0][0].attrib["points"].split()]
    across, down = zip(*points, strict=True)
    assert across == pytest.approx([80.0, 160.0, 240.0])  # half of the steps, half of the width
    assert down[0] < down[1] < down[2] and down[1] == pytest.approx((down[0] + down[2]) / 2)
    assert svg[0].attrib["aria-label"] == svg[1].text
    assert svg[1].text == "loss 1 at step 30 of 60, from 100 (logarithmic scale)"
    assert results.loss_curve([], 0, 0) == results.loss_curve([float("nan")], 1, 2) == ""
    assert "logarithmic" not in results.loss_curve([1.0, -1.0], 20, 20)


def test_latents_redraw_the_solutions(result, models, photo, tmp_path):
    path = results.write_latents(tmp_path, result, REQUEST, models, photo)
    saved = read_solutions(path, models.generator)
    for latents, correction, one in zip(
        saved.latents, saved.corrections, result.solutions, strict=True
    ):
        image = saved.observation.crop(
            redraw(models.generator, latents, block=saved.config["block"])
        )
        np.testing.assert_array_equal(add_correction(image, correction), one.image)
    assert {"generator", "weights_sha256", "method", "block"} <= saved.config.keys()
    styles = read_styles(f"{path}#1", models.generator)
    np.testing.assert_array_equal(styles, result.solutions[1].latents.ws)


def test_pictures_carry_nothing_of_the_photo(result, photo, tmp_path):
    solution = result.solutions[0].image.repeat(16, axis=0).repeat(16, axis=1)
    pasted = results.pasted_back(photo, "0", solution)
    path = results.write_picture(tmp_path, "photo_0", pasted)
    with Image.open(path) as image:
        assert image.size[0] >= 600 and image.size[0] % 300 == 0 and not image.getexif()
        small = np.asarray(image.resize((300, 200), Image.Resampling.BICUBIC), np.float64)
    error = np.mean((small - photo.pixels) ** 2)
    assert 10 * np.log10(255**2 / error) > 40
    with pytest.raises(UserError, match="whole picture"):
        results.pasted_back(photo, WHOLE, result.solutions[0].image)
