"""Faces in photos from the command line, on an untrained 32 px generator."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import KEPT
from PIL import Image

from commands import upsample_command
from photos import background, face_at, photo_of, portrait
from stylesr_jax.cli.options import evaluate_parser
from stylesr_jax.images.files import read_image
from stylesr_jax.runs import alignment, photos, worker
from stylesr_jax.solver.solve import solve
from where import PORTRAIT

FEW = ("--method", "bicubic", "--solutions", "1")
SEARCH = ("--method", "csgm", "--solutions", "1", "--steps", "6")
LARGE, SMALL = (90.0, 100.0, 48.0, 10.0), (210.0, 90.0, 24.0, -20.0)


@pytest.fixture(autouse=True)
def _cache(monkeypatch):
    monkeypatch.setenv("STYLESR_CACHE", str(KEPT))


@pytest.fixture
def run(tiny_files, monkeypatch):
    """Runs the command with the tiny generator; returns its exit code."""
    return upsample_command(monkeypatch, tiny_files)


@pytest.fixture
def photo(tmp_path):
    """A photo of two faces."""
    photo_of((300, 200), LARGE, SMALL).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def looked(monkeypatch):
    """The networks find what the test says, at first both faces of `photo`; how often they look."""
    state = {"faces": [face_at(*LARGE), face_at(*SMALL)], "times": 0}

    def find(image):
        state["times"] += 1
        return state["faces"]

    monkeypatch.setattr(alignment, "find_faces", find)
    return state


def report(folder, *parts):
    return json.loads(folder.joinpath(*parts).read_text())


def folders(out):
    return sorted(str(path.parent.relative_to(out)) for path in out.rglob("report.json"))


def psnr(a, b):
    return 10.0 * np.log10(255.0**2 / np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2))


# --- photos with faces ----------------------------------------------------------------------


def test_faces_of_a_photo_are_found_and_searched_for_at_their_own_size(run, tmp_path, capsys):
    places = ((250.0, 260.0, 160.0, 15.0), (480.0, 200.0, 90.0, -30.0))
    photo_of((640, 480), *places).save(tmp_path / "photo.png")
    out = tmp_path / "out"
    assert run(tmp_path / "photo.png", "--out", out, *FEW) == 0
    assert folders(out) == ["photo", "photo/face_0", "photo/face_1"]
    whole = report(out, "photo", "report.json")
    assert (whole["status"], whole["found"], len(whole["faces"])) == ("ok", 2, 2)
    for k, (x, y, side, degrees) in enumerate(places):
        one = report(out, "photo", f"face_{k}", "report.json")
        place = one["alignment"]
        size = place["observation_size"]
        # The portrait's own crop is a little smaller than its frame.
        assert 0.85 * side < size < side and one["input_size"] == [size, size]
        assert place["transform"]["center"] == pytest.approx([x, y], abs=0.08 * side)
        assert place["transform"]["rotation_degrees"] == pytest.approx(degrees, abs=6)
        assert np.shape(place["points"]) == (5, 2) and place["seen"] == 1.0
        assert one["face"] == k and place == whole["faces"][k]
        solution = read_image(out / "photo" / f"face_{k}" / "solution_0.png")
        assert solution.shape == (32, 32, 3)
        upright = np.asarray(portrait().resize((32, 32)), float)
        assert psnr(upright, (solution + 1) * 127.5) > 14.0
    said = capsys.readouterr().out
    assert "photo.png: 2 faces, " in said and "photo.png face 1: 1 solution(s)" in said


def test_the_largest_faces_come_first_and_no_more_than_asked_for(run, photo, tmp_path, looked):
    out = tmp_path / "out"
    assert run(photo, "--out", out, "--faces", 1, *FEW) == 0
    assert folders(out) == ["photo", "photo/face_0"]
    assert report(out, "photo", "face_0", "report.json")["input_size"] == [48, 48]
    assert run(photo, "--out", out, "--resume", "--quiet", *FEW) == 0  # the other one too
    assert folders(out) == ["photo", "photo/face_0", "photo/face_1"]
    assert report(out, "photo", "face_1", "report.json")["input_size"] == [24, 24]


def test_how_many_faces_there_are_and_the_time_are_said_before_the_search(
    run, photo, tmp_path, looked, monkeypatch, capsys
):
    monkeypatch.setattr("stylesr_jax.runs.pace.expected_seconds", lambda plan, n: 50.0 * n)
    searched = []
    monkeypatch.setattr(
        worker, "solve", lambda *a, **o: searched.append(capsys.readouterr().out) or solve(*a, **o)
    )
    assert run(photo, "--out", tmp_path / "out", *FEW) == 0
    line = "photo.png: 2 faces, 48 and 24 px; 2 solutions to search for, about 1.7 min"
    assert line in searched[0]


def test_a_photo_without_a_face_ends_with_code_2_and_others_go_on(
    run, photo, tmp_path, looked, capsys
):
    out = tmp_path / "out"
    background((280, 200)).save(tmp_path / "wall.png")
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(tmp_path / "small.png")
    looked["faces"] = []
    assert run(tmp_path / "wall.png", tmp_path / "small.png", "--out", out, *FEW) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("error: wall.png: no face was found in it; turn it upright, mark")
    assert folders(out) == ["small"]
    entries = json.loads((out / "summary.json").read_text())["inputs"]
    assert [entry["status"] for entry in entries] == ["ok", "failed"]


@pytest.mark.parametrize("face", [(150.0, 130.0, 20.0, 0.0), (150.0, 130.0, 160.0, 180.0)])
def test_a_face_that_is_tiny_or_upside_down_is_not_found_and_may_be_marked(
    run, tmp_path, capsys, face
):
    photo_of((300, 260), face).save(tmp_path / "photo.png")
    out = tmp_path / "out"
    assert run(tmp_path / "photo.png", "--out", out, *FEW) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert "photo.png: no face was found in it; turn it upright, mark the faces" in error
    marked = {"photo.png": [face_at(*face).points.tolist()]}
    (tmp_path / "points.json").write_text(json.dumps(marked))
    points = ("--align", tmp_path / "points.json")
    assert run(tmp_path / "photo.png", *points, "--out", out, *FEW) == 0
    side = int(face[2])
    assert report(out, "photo", "face_0", "report.json")["input_size"] == [side, side]


def test_a_face_whose_search_breaks_does_not_stop_the_others(
    run, photo, tmp_path, looked, monkeypatch, capsys
):
    def breaking(observations, keys, **options):
        if observations[0].target.shape[0] == 48:
            raise RuntimeError("no room")
        return solve(observations, keys, **options)

    monkeypatch.setattr(worker, "solve", breaking)
    out = tmp_path / "out"
    assert run(photo, "--out", out, "--paste-back", *FEW) == 2
    assert "photo.png: RuntimeError: no room" in capsys.readouterr().err
    assert folders(out) == ["photo", "photo/face_1"]
    assert report(out, "photo", "report.json")["status"] == "unfinished"
    assert not (out / "photo" / "photo_0.png").exists()


def test_faces_of_one_size_are_searched_together_from_starts_of_their_own(
    run, tmp_path, looked, monkeypatch
):
    first, twin = (80.0, 100.0, 16.0, 0.0), (208.0, 100.0, 16.0, 0.0)
    picture = photo_of((300, 200), first)
    picture.paste(picture.crop((68, 88, 92, 112)), (196, 88))
    picture.save(tmp_path / "twins.png")
    Image.fromarray(np.full((20, 20, 3), 90, np.uint8)).save(tmp_path / "other.png")
    looked["faces"] = [face_at(*first), face_at(*twin)]
    groups = []

    def spy(observations, keys, **options):
        groups.append([one.target for one in observations])
        return solve(observations, keys, **options)

    monkeypatch.setattr(worker, "solve", spy)
    out, inputs = tmp_path / "out", (tmp_path / "twins.png", tmp_path / "other.png")
    assert run(*inputs, "--batch", 2, "--out", out, *SEARCH) == 0
    assert [len(group) for group in groups] == [2, 1]
    np.testing.assert_allclose(*groups[0], atol=1e-4)
    one, other = (read_image(out / "twins" / f"face_{k}" / "solution_0.png") for k in (0, 1))
    assert np.abs(one - other).max() > 0.05


# --- which inputs are aligned ---------------------------------------------------------------


def test_a_framed_portrait_is_taken_as_it_is_at_up_to_256_px(run, tmp_path, looked, capsys):
    picture = portrait()
    picture.save(tmp_path / "face.png")
    looked["faces"] = [face_at(192.0, 192.0, 370.0)]
    out = tmp_path / "out"
    assert run(tmp_path / "face.png", "--out", out, *FEW) == 0
    assert folders(out) == ["face"]
    assert "face.png: reduced from 384x384 to 256x256 px" in capsys.readouterr().out
    seen = report(out, "face", "report.json")
    assert seen["input_size"] == [256, 256] and seen["alignment"] is None
    assert "against_original_at_256px" not in seen["solutions"][0]
    with np.load(out / "face" / "solutions.npz") as saved:
        target = (saved["target"] + 1.0) * 127.5
    by_pillow = np.asarray(picture.resize((256, 256), Image.Resampling.BICUBIC), float)
    assert np.abs(target - by_pillow).max() < 1.5  # Pillow rounds after each axis


def test_a_small_input_is_aligned_if_it_holds_a_better_framed_face(run, tmp_path, looked):
    out = tmp_path / "out"
    photo_of((200, 150), (90.0, 80.0, 60.0, 0.0)).save(tmp_path / "scene.png")
    portrait().resize((64, 64)).save(tmp_path / "face.png")
    looked["faces"] = [face_at(90.0, 80.0, 60.0)]
    assert run(tmp_path / "scene.png", "--out", out, *FEW) == 0
    looked["faces"] = [face_at(32.0, 32.0, 62.0)]
    assert run(tmp_path / "face.png", "--out", out, *FEW) == 0
    looked["faces"] = []
    assert run(tmp_path / "face.png", "--out", tmp_path / "none", *FEW) == 0
    assert folders(out) == ["face", "scene", "scene/face_0"]
    assert folders(tmp_path / "none") == ["face"]


def test_the_smallest_inputs_are_not_looked_at(run, tmp_path, looked):
    portrait().resize((32, 32)).save(tmp_path / "a.png")
    portrait().resize((33, 33)).save(tmp_path / "b.png")
    assert run(tmp_path / "a.png", tmp_path / "b.png", "--out", tmp_path / "out", *FEW) == 0
    assert looked["times"] == 1


def test_align_on_aligns_framed_pictures_too(run, tmp_path, looked):
    portrait().save(tmp_path / "face.png")
    looked["faces"] = [face_at(192.0, 192.0, 370.0)]
    assert run(tmp_path / "face.png", "--align", "on", "--out", tmp_path / "out", *FEW) == 0
    assert folders(tmp_path / "out") == ["face", "face/face_0"]


def test_align_off_takes_pictures_whole_and_warns_of_those_that_are_not_square(
    run, photo, tmp_path, looked, capsys
):
    portrait().save(tmp_path / "face.png")
    options = ("--align", "off", "--out", tmp_path / "out", *FEW)
    looked["faces"] = [face_at(128.0, 128.0, 247.0)]  # of the portrait at 256 px
    assert run(photo, tmp_path / "face.png", *options) == 0
    said = capsys.readouterr().out
    assert "photo.png: 300x200 px is not framed as the generator's faces are" in said
    assert "photo.png: reduced from 300x200 to 256x171 px" in said
    assert "face.png: 384x384" not in said
    assert report(tmp_path / "out", "photo", "report.json")["input_size"] == [256, 171]


@pytest.mark.parametrize(
    ("picture", "faces", "says"),
    [
        (photo_of((300, 300), LARGE), [face_at(*LARGE)], "the largest face in it is not framed"),
        (photo_of((150, 150), LARGE), [face_at(*LARGE)], "the largest face in it is not framed"),
        (background((300, 300)), [], "no face that fills it"),
        (background((150, 150)), [], None),  # as auto: perhaps of too few pixels to be found
        (portrait(), [face_at(128.0, 128.0, 247.0)], None),  # at 256 px
        (portrait().resize((32, 32)), [face_at(16.0, 16.0, 10.0)], None),  # not looked at
    ],
)
def test_align_off_warns_of_square_pictures_that_are_not_framed(
    run, tmp_path, looked, capsys, picture, faces, says
):
    picture.save(tmp_path / "photo.png")
    looked["faces"] = faces
    out = tmp_path / "out"
    assert run(tmp_path / "photo.png", "--align", "off", "--out", out, *FEW) == 0
    said, notes = capsys.readouterr().out, report(out, "photo", "report.json")["notes"]
    assert folders(out) == ["photo"]
    warnings = [note for note in notes if "leave out --align off" in note or "no face" in note]
    assert [note.startswith(says or "-") for note in warnings] == ([] if says is None else [True])
    assert says is None or f"photo.png: {says}" in said


def test_align_off_sees_that_a_portrait_is_framed_and_a_snapshot_is_not():
    assert alignment.note_of_frame(read_image(PORTRAIT)) == []
    snapshot = np.asarray(photo_of((700, 700), (150.0, 200.0, 80.0, 20.0)), np.float32)
    (note,) = alignment.note_of_frame(snapshot / np.float32(127.5) - np.float32(1.0))
    assert note.startswith("the largest face in it is not framed")


def test_networks_are_not_loaded_unless_faces_are_looked_for(run, photo, tmp_path, monkeypatch):
    def load(*_):
        raise AssertionError("loaded")

    monkeypatch.setattr("stylesr_jax.faces.detect.load_params", load)
    monkeypatch.setattr("stylesr_jax.faces.landmarks.load_params", load)
    assert run(photo, "--align", "off", "--out", tmp_path / "out", "--quiet", *FEW) == 0


def test_faces_of_originals_are_degraded_where_that_is_asked_for(
    run, photo, tmp_path, looked, capsys
):
    out = tmp_path / "out"
    assert run(photo, "--lr-size", 24, "--out", out, *FEW) == 0
    assert "photo.png face 0: degraded to 24x24 px" in capsys.readouterr().out
    first, second = (report(out, "photo", f"face_{k}", "report.json") for k in (0, 1))
    assert first["input_size"] == second["input_size"] == [24, 24]
    assert "against_original_at_256px" in first["solutions"][0]
    assert "against_original_at_256px" not in second["solutions"][0]  # it has 24 px already
    how = ("--degradation", "blur(2)|bicubic(12)", "--out", tmp_path / "blurred")
    assert run(photo, *how, "--quiet", *FEW) == 0
    assert report(tmp_path / "blurred", "photo", "face_1", "report.json")["input_size"] == [12, 12]


# --- faces that will not come out well ------------------------------------------------------


@pytest.mark.parametrize(
    ("face", "says"),
    [
        (face_at(150.0, 100.0, 560.0), "reduced from 560 to 256 px"),
        (face_at(10.0, 100.0, 60.0), "only 66% of its frame lies in the photo"),
    ],
)
def test_what_is_odd_about_a_face_is_said(run, photo, tmp_path, looked, capsys, face, says):
    looked["faces"] = [face]
    options = ("--align", "on", "--out", tmp_path / "out", *FEW)
    assert run(photo, *options) == 0
    assert f"photo.png face 0: {says}" in capsys.readouterr().out
    assert says in report(tmp_path / "out", "photo", "face_0", "report.json")["notes"]


def test_a_face_in_profile_is_said_to_be_one(run, photo, tmp_path, looked, capsys):
    face = face_at(150.0, 100.0, 60.0)
    points = face.points.copy()
    points[:, 0] = 150.0 + 0.5 * (points[:, 0] - 150.0)
    looked["faces"] = [dataclasses.replace(face, points=points)]
    assert run(photo, "--out", tmp_path / "out", *FEW) == 0
    assert "photo.png face 0: seen from the side" in capsys.readouterr().out


def test_faces_of_fewer_pixels_than_an_observation_needs_do_not_count(
    run, photo, tmp_path, looked, capsys
):
    looked["faces"] = [face_at(150.0, 100.0, 7.0)]
    assert run(photo, "--out", tmp_path / "out", *FEW) == 2
    assert "no face was found" in capsys.readouterr().err


def test_the_part_of_a_face_beyond_the_photo_is_not_observed(run, photo, tmp_path, looked):
    looked["faces"] = [face_at(10.0, 100.0, 60.0)]
    assert run(photo, "--out", tmp_path / "out", *FEW) == 0
    with np.load(tmp_path / "out" / "photo" / "face_0" / "solutions.npz") as saved:
        mask, target = saved["mask"][..., 0], saved["target"]
    assert (target[:, :19] == 0.0).all() and np.abs(target[:, 21:]).max() > 0.1
    assert (mask[:, :19] == 0.0).all() and (mask[:, 21:] == 1.0).all()


# --- points by hand -------------------------------------------------------------------------


def by_hand(tmp_path, **faces):
    path = tmp_path / "points.json"
    path.write_text(json.dumps({f"{name}.png": value for name, value in faces.items()}))
    return path


def test_points_by_hand_take_the_place_of_the_networks(run, photo, tmp_path, looked, capsys):
    other = tmp_path / "other.png"
    photo_of((300, 200), LARGE, seed=1).save(other)
    marked = [
        face_at(210.0, 90.0, 30.0).points.tolist(),
        face_at(90.0, 100.0, 52.0).points.tolist(),
    ]
    points, out = by_hand(tmp_path, photo=marked, gone=marked), tmp_path / "out"
    assert run(photo, other, "--align", points, "--out", out, *FEW) == 0
    assert looked["times"] == 1  # in the other one
    sizes = [report(out, "photo", f"face_{k}", "report.json")["input_size"][0] for k in (0, 1)]
    assert sizes == [52, 30]
    assert "warning" in (said := capsys.readouterr().out) and "names gone.png, which" in said
    marked = [face_at(90.0, 100.0, 40.0).points.tolist()]
    points = by_hand(tmp_path, photo=marked)
    assert run(photo, "--align", points, "--resume", "--out", out, "--quiet", *FEW) == 0
    assert len([name for name in folders(out) if name.startswith("photo-")]) == 2  # another run


FACE = face_at(100.0, 100.0, 50.0).points.tolist()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "points.json: no JSON"),
        ("[" * 100_000, "points.json: no JSON"),
        ("[]", "points.json: write {"),
        ('{"photo.png": []}', "photo.png: give a list of faces"),
        ('{"photo.png": 3}', "photo.png: give a list of faces"),
        ('{"photo.png": [[[1, 2]]]}', "photo.png, face 0: a face has five points"),
        ('{"photo.png": [[[1, 2], [3]]]}', "photo.png, face 0: five points [x, y]"),
        ('{"photo.png": [[["a", 2]]]}', "photo.png, face 0: five points [x, y]"),
        (json.dumps({"photo.png": [FACE, [[5, 5]] * 5]}), "photo.png, face 1: these five points"),
        (json.dumps({"photo.png": [[[1e999, 5]] * 5]}), "photo.png, face 0: a face has five"),
        (f'{{"photo.png": [[[1{"0" * 400}, 5]]]}}', "photo.png, face 0: five points [x, y]"),
        (json.dumps({"photo.png": [[[x + 230, y] for x, y in FACE]]}), "outside of the photo's"),
        (json.dumps({"photo.png": [[[x / 9, y / 9] for x, y in FACE]]}), "faces need 8 at least"),
    ],
)
def test_points_that_are_no_faces_are_refused_in_a_line(run, photo, tmp_path, capsys, text, says):
    (tmp_path / "points.json").write_text(text)
    points = ("--align", tmp_path / "points.json")
    assert run(photo, *points, "--out", tmp_path / "out", *FEW) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert says in error and not (tmp_path / "out" / "photo").exists()


def test_a_file_of_points_that_is_not_there_is_said_in_a_line(run, photo, tmp_path, capsys):
    assert run(photo, "--align", tmp_path / "gone.json", "--out", tmp_path / "out", *FEW) == 2
    assert "gone.json cannot be read (No such file" in capsys.readouterr().err


# --- putting back ---------------------------------------------------------------------------


def test_solutions_are_put_back_into_the_upright_photo_which_it_shrinks_to(
    run, tmp_path, looked, capsys
):
    upright = photo_of((300, 200), LARGE, SMALL)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    exif.get_ifd(0x8825)[1] = "N"
    turned, out = tmp_path / "photo.jpg", tmp_path / "out"
    turned_pixels = upright.rotate(90, expand=True)
    turned_pixels.save(turned, exif=exif, quality=95, comment=b"private")
    options = ("--paste-back", "--scale", 3, "--method", "bicubic", "--solutions", 2)
    assert run(turned, "--out", out, *options) == 0
    seen = np.asarray(Image.open(turned).rotate(-90, expand=True))
    for i in (0, 1):
        with Image.open(out / "photo" / f"photo_{i}.png") as picture:
            assert picture.size == (900, 600) and not picture.getexif()
            assert set(picture.info) == {"srgb"}
            back = picture.resize((300, 200), Image.Resampling.BICUBIC)
        assert psnr(back, seen) > 40.0
        assert psnr(np.asarray(back)[80:120, 70:110], seen[80:120, 70:110]) > 40.0
    pasted = report(out, "photo", "report.json")["paste_back"]
    assert (pasted["scale"], pasted["files"]) == (3, ["photo_0.png", "photo_1.png"])
    assert min(pasted["downscaled_psnr"]) > 40.0
    assert "photo.jpg: enlarged 3 times with its faces" in capsys.readouterr().out


def test_a_solution_that_is_put_back_is_seen_in_its_place(run, photo, tmp_path, looked):
    plain, out = tmp_path / "plain", tmp_path / "out"
    looked["faces"] = [face_at(90.0, 100.0, 16.0)]  # enlarged twice by the generator's 32 px
    options = ("--paste-back", "--align", "on", "--out", out, *SEARCH)
    assert run(photo, *options) == 0
    assert report(out, "photo", "report.json")["paste_back"]["scale"] == 2
    assert run(photo, "--align", "on", "--paste-back", "--out", plain, *FEW) == 0
    one, other = (read_image(folder / "photo" / "photo_0.png") for folder in (out, plain))
    difference = np.abs(one - other).max(-1)
    assert difference[190:210, 170:190].mean() > 0.02
    assert difference[:, 260:].max() < 0.02 and difference[:120].max() < 0.02


def test_photos_that_would_be_too_large_are_refused_before_the_search(
    run, photo, tmp_path, looked, monkeypatch, capsys
):
    monkeypatch.setattr("stylesr_jax.runs.pasting.MAX_PIXELS", 1_000_000)
    monkeypatch.setattr(worker, "solve", None)
    options = ("--paste-back", "--scale", 5, "--out", tmp_path / "out", *FEW)
    assert run(photo, *options) == 2
    assert "photo.png: --scale 5 makes over 1 million pixels" in capsys.readouterr().err


def test_a_picture_that_is_taken_as_it_is_is_put_back_nowhere(run, tmp_path, looked, capsys):
    portrait().resize((64, 64)).save(tmp_path / "face.png")
    assert run(tmp_path / "face.png", "--paste-back", "--out", tmp_path / "out", *FEW) == 0
    assert "there is no photo to put its solutions back into" in capsys.readouterr().out
    assert not list((tmp_path / "out").rglob("photo_*"))


# --- going on -------------------------------------------------------------------------------


def test_finished_photos_are_skipped_and_missing_parts_done(
    run, photo, tmp_path, looked, monkeypatch, capsys
):
    out, searched = tmp_path / "out", []

    def spy(observations, keys, **options):
        searched.append(observations[0].target.shape[0])
        return solve(observations, keys, **options)

    monkeypatch.setattr(worker, "solve", spy)
    options = ("--out", out, "--resume", "--paste-back", *FEW)
    assert run(photo, *options) == 0
    first = (out / "photo" / "photo_0.png").read_bytes()
    capsys.readouterr()
    assert run(photo, *options) == 0
    assert searched == [48, 24] and looked["times"] == 1
    assert "photo.png: already done" in capsys.readouterr().out
    (out / "photo" / "face_1" / "report.json").unlink()
    assert run(photo, *options) == 0
    assert searched == [48, 24, 24]
    assert (out / "photo" / "photo_0.png").read_bytes() == first
    assert run(photo, *options, "--scale", 2) == 0  # nothing is searched for again
    assert len(searched) == 3
    assert report(out, "photo", "report.json")["paste_back"]["scale"] == 2
    assert read_image(out / "photo" / "photo_0.png").shape == (400, 600, 3)


def test_a_run_without_resume_does_all_faces_again(run, photo, tmp_path, looked, monkeypatch):
    out, written = tmp_path / "out", []
    real = photos.paste

    def spy(*args, **options):
        written.append(len(list(out.rglob("face_*/report.json"))))
        return real(*args, **options)

    monkeypatch.setattr(photos, "paste", spy)
    options = ("--out", out, "--paste-back", "--quiet", *FEW)
    for _ in range(2):
        assert run(photo, *options) == 0
    assert written == [2, 2]
    assert run(photo, "--out", out, "--quiet", *FEW) == 0  # and takes away what is of another run
    assert not list(out.rglob("photo_*.png"))


def test_ctrl_c_keeps_the_faces_that_were_done(run, photo, tmp_path, looked, monkeypatch):
    def interrupted(observations, keys, **options):
        if observations[0].target.shape[0] == 24:
            raise KeyboardInterrupt
        return solve(observations, keys, **options)

    out, options = tmp_path / "out", ("--paste-back", "--resume", *FEW)
    monkeypatch.setattr(worker, "solve", interrupted)
    assert run(photo, "--out", out, *options) == 130
    assert folders(out) == ["photo", "photo/face_0"]
    assert report(out, "photo", "report.json")["status"] == "unfinished"
    before = (out / "photo" / "face_0" / "report.json").stat().st_mtime_ns
    monkeypatch.setattr(worker, "solve", solve)
    assert run(photo, "--out", out, *options) == 0
    assert (out / "photo" / "face_0" / "report.json").stat().st_mtime_ns == before
    assert (out / "photo" / "photo_0.png").is_file()


def test_photos_of_one_name_have_folders_of_their_own(run, photo, tmp_path, looked):
    (tmp_path / "b").mkdir()
    other, out = tmp_path / "b" / "photo.png", tmp_path / "out"
    photo_of((300, 200), LARGE, seed=1).save(other)
    assert run(photo, other, "--out", out, "--quiet", *FEW) == 0
    names = folders(out)
    assert len(names) == 6 and {"photo", "photo/face_0", "photo/face_1"} < set(names)
    entries = json.loads((out / "summary.json").read_text())["inputs"]
    assert [(entry["status"], entry["faces"]) for entry in entries] == [("ok", 2)] * 2


# --- with other options ---------------------------------------------------------------------


def test_a_faces_solutions_are_redrawn_exactly(run, photo, tmp_path, looked):
    out, again = tmp_path / "out", tmp_path / "again"
    options = ("--faces", 1, "--method", "pulse", "--solutions", 1, "--steps", 6, "--quiet")
    assert run(photo, "--out", out, *options) == 0
    folder = out / "photo" / "face_0"
    assert run("--from", folder / "solutions.npz", "--out", again, generator=False) == 0
    assert (folder / "solution_0.png").read_bytes() == (again / "solution_0.png").read_bytes()
    start = ("--start", folder / "solutions.npz", "--out", tmp_path / "started")
    assert run(photo, *start, *options) == 0
    assert folders(tmp_path / "started") == ["photo", "photo/face_0"]


def test_only_images_lie_flat_beside_one_another(run, photo, tmp_path, looked):
    # An aligned picture of a name that a face's files could have had.
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(tmp_path / "photo_face_0.png")
    out = tmp_path / "out"
    options = ("--only-images", "--flat", "--format", "webp", "--paste-back", "--resume", *FEW)
    for _ in range(2):
        assert run(photo, tmp_path / "photo_face_0.png", "--out", out, *options) == 0
    names = {path.name for path in out.iterdir()}
    faces = {"photo_solution_0_face_0.webp", "photo_solution_0_face_1.webp"}
    assert names == faces | {"photo_photo_0.webp", "photo_face_0_solution_0.webp", ".reports"}
    hidden = {str(path.relative_to(out / ".reports")) for path in out.rglob(".reports/**/*.json")}
    reports = {"photo.json", "photo_face_0.json", "face_0/photo.json", "face_1/photo.json"}
    assert hidden == reports | {"summary.json"}
    assert looked["times"] == 1


def test_flat_results_of_faces_have_reports_of_their_own(run, photo, tmp_path, looked):
    out = tmp_path / "out"
    assert run(photo, "--out", out, "--flat", "--quiet", *FEW) == 0
    kinds = ("solution_0{}.png", "grid{}.png", "solutions{}.npz", "report{}.json")
    wanted = {f"photo_{kind.format(f'_face_{k}')}" for kind in kinds for k in (0, 1)}
    assert {path.name for path in out.iterdir()} == wanted | {"photo_report.json"}


def test_events_say_which_face_they_are_of(run, photo, tmp_path, looked, capsys):
    assert run(photo, "--out", tmp_path / "out", "--json", "--paste-back", *FEW) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["start", "faces", "result", "result", "photo"]
    assert (events[1]["found"], events[1]["sizes"], events[1]["solutions"]) == (2, [48, 24], 2)
    assert [event["face"] for event in events[2:4]] == [0, 1]
    assert events[4]["files"] == ["photo_0.png"] and events[4]["downscaled_psnr"][0] > 40.0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--align", "maybe"], "write auto, on, off or FILE.json"),
        (["--scale", "2"], "add --paste-back"),
        (["--scale", "9", "--paste-back"], "whole number 1 to 8"),
        (["--faces", "0"], "whole number"),
        (["--align", "off", "--paste-back"], "leave out --paste-back"),
        (["--align", "off", "--faces", "2"], "leave out --paste-back and --faces"),
        (["--paste-back", "--lr-size", "16"], "leave out --lr-size"),
    ],
)
def test_options_that_do_not_go_together_end_with_code_2(
    run, photo, tmp_path, capsys, arguments, says
):
    assert run(photo, "--out", tmp_path / "out", *arguments, *FEW) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_evaluate_takes_originals_as_they_are(capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate_parser().parse_args(["--images", "a", "--out", "b", "--align", "on"])
    assert stop.value.code == 2
    assert "unrecognized arguments: --align on" in capsys.readouterr().err
