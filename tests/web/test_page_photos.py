"""A photo that is brought to the page: its faces, what is picked, what is shown."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylesr_jax.errors import UserError
from stylesr_jax.images.files import read_image
from stylesr_jax.runs.worker import Source
from stylesr_jax.web import photos
from stylesr_jax.web.photos import WHOLE, face_at, observe, open_photo, portrait, with_faces
from where import PORTRAIT


def _bytes(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def wide():
    """The portrait, small, in the right half of a grey picture."""
    face = Image.open(PORTRAIT).convert("RGB").resize((200, 200))
    canvas = Image.new("RGB", (480, 240), (90, 100, 110))
    canvas.paste(face, (260, 20))
    return open_photo(_bytes(np.asarray(canvas)), "wide.png")


def test_the_shipped_portrait_is_framed_and_taken_whole():
    photo = open_photo(*portrait())
    assert photo.choices[0][1] == WHOLE and len(photo.faces) == 1
    assert photo.description(WHOLE).endswith("1 face found; the picture is reduced to 256 px")
    assert "shrunk to 32 px" in photo.description(WHOLE, 32)
    assert observe(photo, WHOLE).image.shape == (256, 256, 3)


def test_a_face_in_a_photo_comes_first_at_the_size_that_it_has(wide):
    (line, choice), *others = wide.choices
    side = photos.observation_size(wide.faces[0].transform)
    assert choice == "0" and f"{side} px" in line and [name for _, name in others] == [WHOLE]
    assert observe(wide, "0").image.shape == (side, side, 3)


def test_a_photo_that_is_picked_whole_is_said_not_to_be_framed(wide):
    assert photos.UNFRAMED in wide.description(WHOLE)
    assert photos.UNFRAMED not in wide.description("0")
    assert photos.UNFRAMED not in open_photo(*portrait()).description(WHOLE)


def test_observations_are_shrunk_but_never_enlarged(wide):
    assert observe(wide, "0", 16).image.shape == (16, 16, 3)
    assert observe(wide, "0", 256).image.shape[0] == wide.largest("0") < 256
    assert observe(wide, WHOLE, 64).image.shape == (32, 64, 3)


def test_a_small_picture_is_taken_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 255, (9, 7, 3), np.uint8)
    photo = open_photo(_bytes(pixels), "small.png")
    assert photo.choices == [("the picture as it is (7x9 px)", WHOLE)]
    assert photos.NO_FACE in photo.description(WHOLE)
    np.testing.assert_allclose(observe(photo, WHOLE).image, pixels / 127.5 - 1.0, atol=1e-6)


def test_no_other_choice_is_taken(wide):
    for choice in ("", "1", "-1", "../0"):
        with pytest.raises(UserError, match="pick one"):
            observe(wide, choice)


def test_what_the_photo_does_not_show_is_unknown():
    edge = Image.open(PORTRAIT).convert("RGB").crop((0, 60, 300, 384))
    photo = open_photo(_bytes(np.asarray(edge)), "edge.png")
    mask = observe(photo, "0").mask
    assert 0.5 < mask.mean() < 1.0 and mask[mask.shape[0] // 2, mask.shape[1] // 2] == 1.0
    assert "of its frame lies in the photo" in photo.description("0")


def test_observations_are_as_exact_as_their_file_says():
    portrait = Image.open(PORTRAIT).convert("RGB").resize((64, 64))
    file = io.BytesIO()
    portrait.save(file, "JPEG", quality=40)
    jpeg = open_photo(file.getvalue(), "small.jpg")
    noise = observe(jpeg, WHOLE).noise
    assert noise is not None and len(noise.blocks) == 2  # as it was saved
    (note,) = photos.notes_of_noise(observe(jpeg, WHOLE))
    assert "of 255 levels" in note
    resampled = observe(jpeg, WHOLE, 32).noise
    assert resampled is not None and not resampled.blocks and resampled.std > 0.0
    lossless = open_photo(_bytes(np.asarray(portrait)), "small.png")
    assert photos.notes_of_noise(observe(lossless, WHOLE)) == []


def test_seeds_are_those_of_the_command(wide):
    assert wide.content(WHOLE) == wide.sha256
    assert wide.content("0") == Source(Path("x.png"), wide.sha256, face=0).content


def test_clicks_pick_faces(wide):
    scale = photos.shown_scale(wide)
    assert face_at(wide, *(wide.faces[0].transform.center * scale)) == "0"
    assert face_at(wide, 5, 5) == WHOLE


def test_crops_are_drawn_where_the_faces_are(wide):
    plain = photos.with_faces(replace(wide, faces=()))
    changed = (with_faces(wide, "0") != plain).any(-1)
    corners = np.clip(wide.faces[0].transform.corners * photos.shown_scale(wide), 0, None)
    rows, columns = np.nonzero(changed)
    assert changed.any() and rows.min() > corners[:, 1].min() - 4
    assert columns.min() > corners[:, 0].min() - 4
    assert (with_faces(wide, "0") != with_faces(wide)).any()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"no picture at all", "not an image"),
        (b"GIF89a", "damaged|not an image"),
        (_bytes(np.zeros((2, 9, 3), np.uint8)), "4 px are the least"),
    ],
)
def test_what_is_no_photo_is_refused_in_a_line(data, message):
    with pytest.raises(UserError, match=message) as error:
        open_photo(data, "x.png")
    assert "\n" not in str(error.value)


def test_bytes_and_pixels_are_bounded_before_decoding(monkeypatch):
    monkeypatch.setattr(photos, "decode", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(photos, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match="over 0 MB"):
        open_photo(bytes(1001), "large.png")
    with pytest.raises(UserError, match="9000x9000 px is over 50 million"):
        monkeypatch.setattr(photos, "MAX_BYTES", 10**9)
        open_photo(_bytes(np.zeros((9000, 9000), np.uint8)), "large.png")


def test_enlarged_pixels_are_squares():
    image = read_image(PORTRAIT)[:3, :2]
    large = photos.enlarged(image, 9)
    assert large.shape == (9, 6, 3) and (large[:3, :3] == large[0, 0]).all()
    assert photos.at_most(np.zeros((50, 100, 3), np.uint8), 40).shape == (20, 40, 3)
