"""The page in a real browser, on an untrained 32 px generator."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from functools import partial

import numpy as np
import pytest
from PIL import Image

from browser import CHROMIUM, MISSING, running_server
from photos import photo_of
from stylesr_jax.runs.folder import read_solutions
from stylesr_jax.solver.observation import default_degradation
from stylesr_jax.solver.rendering import add_correction, degrade, redraw
from where import ROOT

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no browser to test in: {MISSING}")
SOON, LATER = 120_000, 600_000  # ms: an answer, a search with its compiling


@pytest.fixture(scope="module")
def server(tiny_files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "tmp"
    folder.mkdir()
    models = ("--generator", tiny_files["generator"], "--prior", tiny_files["prior"])
    with running_server(folder, *models) as running:
        yield running


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(server, chromium):
    """Opens a page; its requests are listed, and none may go elsewhere."""
    contexts, elsewhere = [], []

    def open_tab(width=1200, height=900):
        context = chromium.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SOON)
        own = (server.address, "data:", "blob:")
        page.on("request", lambda r: None if r.url.startswith(own) else elsewhere.append(r.url))
        page.goto(server.address)
        page.wait_for_selector("#shipped")
        return page

    yield open_tab
    for context in contexts:
        context.close()
    assert not elsewhere


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A file of 8x8 px, which is taken as it is."""
    pixels = np.random.default_rng(0).integers(60, 200, (8, 8, 3), np.uint8)
    path = tmp_path_factory.mktemp("photos") / "small.png"
    Image.fromarray(pixels).save(path)
    return path


def _upload(page, path, said):
    page.set_input_files("#file input[type=file]", path)
    _wait(page, said, SOON)


def _wait(page, said, timeout=LATER):
    """Until the status has these words."""
    page.wait_for_function(
        "said => document.querySelector('#status')?.innerText.includes(said)",
        arg=said,
        timeout=timeout,
    )


def _search(page, solutions=1, said="solution(s) in"):
    page.fill("#solutions input[type=number]", str(solutions))
    page.press("#solutions input[type=number]", "Enter")
    page.click("#run")
    _wait(page, said)


def _downloaded(page, button):
    with page.expect_download() as waiting:
        page.click(button)
    return waiting.value.path()


def _solutions(page, generator):
    """What the npz that the page offers holds, and the pictures drawn from it."""
    saved = read_solutions(_downloaded(page, "#npz"), generator)
    draw = partial(redraw, generator, block=saved.config["block"])
    pictures = [
        add_correction(saved.observation.crop(draw(latents)), correction)
        for latents, correction in zip(saved.latents, saved.corrections, strict=True)
    ]
    return saved, pictures


def test_a_photo_is_searched_and_its_solution_taken_home(tab, server, small, tiny):
    page = tab()
    _upload(page, small, "small.png: 8x8 px, 0 faces found")
    assert not [path for path in server.files if path.name == "small.png"]  # once it was read
    _search(page, solutions=1)
    page.wait_for_selector("#gallery img")
    assert "downscaled it matches" in page.inner_text("#about")
    assert page.locator("#curve polyline").count() == 1
    page.wait_for_selector("#slider img")
    saved, (picture,) = _solutions(page, tiny)
    with Image.open(_downloaded(page, "#png")) as image:
        np.testing.assert_array_equal(np.asarray(image), np.rint((picture + 1.0) * 127.5))
    assert saved.observation.image.shape == (8, 8, 3)


# --- refused ---------------------------------------------------------------------------------


def _status(address, path, *, body=None, **headers):
    request = urllib.request.Request(address + path, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_what_the_page_does_not_ask_for_is_refused(server, small):
    ask = server.address
    assert _status(ask, "/") == 200
    assert _status(ask, "/", Host="evil.example") == 403
    assert _status(ask, "/", Origin="http://evil.example") == 403
    for path in (
        "/etc/passwd",
        str(small),
        f"{server.folder}/../errors.txt",
        "http://evil.example",
    ):
        assert _status(ask, f"/gradio_api/file={path}") == 404
    for file in ("/etc/passwd", str(small), "http://evil.example/x.png"):
        data = {"path": file, "meta": {"_type": "gradio.FileData"}}
        message = {"data": [data], "fn_index": 0, "session_hash": "x"}
        body = json.dumps(message).encode()
        headers = {"Content-Type": "application/json"}
        assert _status(ask, "/gradio_api/queue/join", body=body, **headers) == 403


def test_gradio_itself_takes_uploaded_files_only(tiny_files, tmp_path):
    """Behind the guard: mounted in another application, Gradio takes any file by default."""
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from starlette.testclient import TestClient\n"
        "from stylesr_jax.web.searches import Models\n"
        "from stylesr_jax.web.serve import application\n"
        "folder, generator = sys.argv[1:]\n"
        "guard, _ = application(Models(generator=generator), Path(folder))\n"
        "file = {'path': '/etc/passwd', 'meta': {'_type': 'gradio.FileData'}}\n"
        "message = {'data': [file], 'fn_index': 0, 'session_hash': 'x'}\n"
        "with TestClient(guard.app) as client:\n"
        "    client.post('/gradio_api/queue/join', json=message)\n"
        "    print(client.get('/gradio_api/queue/data?session_hash=x').text)\n"
    )
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(tmp_path), str(tiny_files["generator"])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "Cannot move /etc/passwd" in done.stdout, done.stderr
    assert not any(tmp_path.rglob("passwd"))


# --- slow ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_scribble_reaches_the_search(tab, small, tiny):
    page = tab()
    _upload(page, small, "small.png")
    canvas = page.locator("#editor canvas").first
    canvas.scroll_into_view_if_needed()
    time.sleep(2)  # the editor fits its picture
    box = canvas.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    # The upper left quarter of the picture lies left of and above the middle.
    for down in (30, 60, 90):
        page.mouse.move(middle[0] - 120, middle[1] - down)
        page.mouse.down()
        page.mouse.move(middle[0] - 30, middle[1] - down, steps=12)
        page.mouse.up()
    page.click("text=Fidelity, prior, diversity, noise")
    page.get_by_label("Noise of the reference, where drawn").fill("0.5")
    _search(page, solutions=1)
    saved, (picture,) = _solutions(page, tiny)
    degradation = default_degradation(saved.observation)
    missed = np.abs(degrade(degradation, picture) - saved.observation.image).mean(-1)
    assert missed[:4, :4].max() > 0.1 and missed[:4, :4].mean() > 10 * missed[5:, 5:].mean()
    assert np.unravel_index(missed.argmax(), missed.shape) < (4, 4)


@pytest.mark.slow
def test_stop_keeps_the_best(tab, small):
    page = tab()
    _upload(page, small, "small.png")
    page.fill("#solutions input[type=number]", "8")
    page.press("#solutions input[type=number]", "Enter")
    page.click("#run")
    _wait(page, "of 8: step")
    page.click("#stop")
    _wait(page, "stopped early")
    assert 1 <= page.locator("#gallery img").count() < 8
    assert page.is_enabled("#run") and not page.is_enabled("#stop")


@pytest.mark.slow
def test_what_is_no_photo_is_said_and_the_page_goes_on(tab, small, tmp_path):
    bad = tmp_path / "<b>bad<b>.png"
    bad.write_text("no picture")
    page = tab()
    page.click("#run")
    _wait(page, "bring a photo first")
    _upload(page, bad, "not an image that Pillow can read")
    assert "\n" not in page.inner_text("#status").strip()
    assert page.locator("#status b").count() == 0
    _upload(page, small, "small.png: 8x8 px")


@pytest.mark.slow
def test_a_second_tab_waits_and_sees_its_place(tab, small):
    first, second = tab(), tab()
    for page in (first, second):
        _upload(page, small, "small.png")
    first.fill("#solutions input[type=number]", "4")
    first.press("#solutions input[type=number]", "Enter")
    first.click("#run")
    _wait(first, "of 4: step")
    second.fill("#solutions input[type=number]", "1")
    second.press("#solutions input[type=number]", "Enter")
    second.click("#run")
    _wait(second, "queue: 1/1")
    _wait(first, "4 solution(s)")
    _wait(second, "1 solution(s)")
    assert first.locator("#gallery img").count() == 4
    assert second.locator("#gallery img").count() == 1


@pytest.mark.slow
def test_a_search_goes_on_from_a_solution(tab, small):
    page = tab()
    _upload(page, small, "small.png")
    _search(page, solutions=2)
    page.locator("#gallery button.thumbnail-item, #gallery button.thumbnail-lg").nth(1).click()
    page.wait_for_function("document.querySelector('#about').innerText.includes('Solution 1')")
    page.fill("#solutions input[type=number]", "1")
    page.press("#solutions input[type=number]", "Enter")
    fresh = int(page.inner_text("#curve figcaption").split(" of ")[1].split(",")[0])
    page.click("#go_on")
    _wait(page, "1 solution(s) in")
    steps = int(page.inner_text("#curve figcaption").split(" of ")[1].split(",")[0])
    assert steps < fresh  # the phase in W is left out


@pytest.mark.slow
def test_a_face_is_picked_and_pasted_back(tab, tmp_path):
    photo = tmp_path / "photo.png"
    photo_of((420, 260), (130, 130, 160, 0), (320, 130, 100, 10)).save(photo)
    page = tab()
    _upload(page, photo, "2 faces found")
    shown = page.locator("#shown img")
    box = shown.bounding_box()
    shown.click(position={"x": box["width"] * 320 / 420, "y": box["height"] / 2})
    page.wait_for_function("document.querySelectorAll('#faces input')[1].checked")
    page.get_by_label("Method").click()
    page.get_by_role("option", name="bicubic").click()
    _search(page, solutions=1)
    page.click("#paste")
    page.wait_for_selector("#pasted img")
    with Image.open(_downloaded(page, "#pasted_file")) as image:
        assert image.size[0] % 420 == 0
        small = image.resize((420, 260), Image.Resampling.BICUBIC)
        error = np.asarray(small, np.float64) - np.asarray(Image.open(photo))
    assert np.mean(error**2) < 255**2 * 1e-4


def _tab_to(page, focused):
    """Press Tab until this is true of the element with the focus."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate(f"(one => {focused})(document.activeElement)"):
            return
    pytest.fail(f"Tab does not reach {focused}")


@pytest.mark.slow
def test_a_mask_can_be_uploaded_and_a_keyboard_suffices(tab, small, tiny, tmp_path):
    white = np.zeros((8, 8), np.uint8)
    white[:4, :4] = 255
    mask = tmp_path / "mask.png"
    Image.fromarray(white).save(mask)
    page = tab(width=390, height=844)
    _upload(page, small, "small.png")
    _tab_to(page, "one.innerText.includes('upload a mask')")
    page.keyboard.press("Enter")
    page.set_input_files("#mask input[type=file]", mask)
    page.wait_for_selector("#mask >> text=mask.png")
    _tab_to(page, "one.matches('#solutions input[type=number]')")
    page.keyboard.type("1")  # in place of what Tab selects
    _tab_to(page, "one.id == 'run'")
    page.keyboard.press("Enter")
    _wait(page, "1 solution(s) in")
    page.wait_for_selector("#gallery img")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for name in ("png", "npz", "go_on"):
        _tab_to(page, f"one.id == '{name}'")
    saved, (picture,) = _solutions(page, tiny)
    degradation = default_degradation(saved.observation)
    missed = np.abs(degrade(degradation, picture) - saved.observation.image).mean(-1)
    assert missed[:4, :4].mean() > 10 * missed[5:, 5:].mean()


@pytest.mark.slow
def test_nothing_is_left_of_a_page_that_was_closed(tiny_files, chromium, small, tmp_path):
    folder = tmp_path / "tmp"
    folder.mkdir()
    models = ("--generator", tiny_files["generator"], "--prior", tiny_files["prior"])
    with running_server(folder, *models) as server:
        page = chromium.new_page()
        page.goto(server.address)
        page.wait_for_selector("#shipped")
        _upload(page, small, "small.png")
        _search(page, solutions=1)
        assert [path for path in server.files if path.name == "solutions.npz"]
        page.close()
        until = time.monotonic() + 60
        while any(
            path.name == "solutions.npz" and "session-" in str(path) for path in server.files
        ):
            assert time.monotonic() < until
            time.sleep(0.5)
    assert server.process.returncode == 143
    assert not any(folder.glob("stylesr-page-*"))
