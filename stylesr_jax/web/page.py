"""The page's components, and what their events do."""

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.themes import Base, Default

from stylesr_jax.errors import UserError, in_a_line
from stylesr_jax.images.files import read_bytes, read_mask, to_uint8
from stylesr_jax.methods import METHODS, method_named
from stylesr_jax.web import photos, results
from stylesr_jax.web.request import (
    LEVERS,
    MAX_SOLUTIONS,
    NOISE,
    Request,
    levers_of,
    presets_of,
    scribble,
)
from stylesr_jax.web.searches import Models, Update, updates
from stylesr_jax.web.sessions import Found, Session, Sessions

EDITED = 512  # px: longer side of the observation as it is drawn on, about
PORTRAIT_SIDE = 32  # px: of the shipped portrait's observation
PASTED = 1600  # px: longer side of the pasted-back photo as it is shown
NOTICE = """
# Face super-resolution
Several high-resolution faces for one low-resolution face, each of which *downscales to the input*.

**The solutions do not reveal who somebody is.** A generator imagines them; the real face is one of
countless others. Never use them to identify a person or as evidence. The generator carries the
biases of the photographs it was trained on; its weights are for research and non-commercial use.
Photos stay on this machine.
"""
INVITATION = "Drop a photo, or take the shipped one."
SCRIBBLE = """
Solutions downscale to this. Where you scribble on it, each of them gets noise of its own on its
reference: there they vary more.
"""
CSS = """
.gradio-container {max-width: 1200px !important; margin: auto}
.status {min-height: 4em; padding-top: 1.5em; font-size: 1.05em}
.status .error {color: #b3261e; font-weight: 600}
.dark .status .error {color: #ff8a80}
.loss {margin: 0} .loss svg {width: 100%; height: 160px; border: 1px solid currentColor}
.loss figcaption {font-size: 0.85em}
:focus-visible {outline: 3px solid #2563eb !important; outline-offset: 2px}
@media (max-width: 480px) {
  .gradio-container {padding: 8px !important}
  #gallery .grid-container {grid-template-columns: repeat(2, minmax(0, 1fr)) !important}
}
"""
FONT = ["system-ui", "sans-serif"]
FONT_MONO = ["ui-monospace", "monospace"]
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}  # of events
Values = dict[Any, Any]  # component -> value or update


def theme() -> Base:
    """Gradio's own, with the fonts that the reader's machine has."""
    made = Default(font=FONT, font_mono=FONT_MONO)
    return made.set(block_info_text_color="*neutral_600")


def said(text: str, *, error: bool = False) -> str:
    """A line for the status, as HTML."""
    kind = "error" if error else "said"
    return f'<p class="{kind}" role="status" aria-live="polite">{escape(text)}</p>'


def _errors_said(handler: Callable[..., Values]) -> Callable[..., Values]:
    """What goes wrong is a line in the status."""

    @wraps(handler)
    def run(self: "Page", *args: Any) -> Values:
        try:
            return handler(self, *args)
        except Exception as error:
            return {self.status: said(in_a_line(error), error=True)}

    return run


def picture(label: str, name: str, *, format: str, **options: Any) -> gr.Image:
    """A picture that is shown alone; `name` is the id of its element."""
    options = {"buttons": [], **options}
    return gr.Image(label=label, elem_id=name, format=format, interactive=False, **options)


class Page:
    """The components of a page as attributes; methods are what events do, for whichever session."""

    def __init__(self, models: Models, sessions: Sessions) -> None:
        self.models, self.sessions = models, sessions
        with gr.Blocks(
            title="Face super-resolution", analytics_enabled=False, delete_cache=(600, 3600)
        ) as self.blocks:
            gr.Markdown(NOTICE)
            self._photo_part()
            self._settings_part()
            self._search_part()
            self._results_part()
            self._connect_photo()
            self._connect_search()
            self.blocks.unload(self._unload)

    # --- components

    def _photo_part(self) -> None:
        with gr.Row():
            with gr.Column(min_width=300):
                gr.Markdown("## 1. Photo")
                self.file = gr.File(
                    label="Drop a photo here", file_types=["image"], elem_id="file", height=140
                )
                self.shipped = gr.Button("Take the shipped portrait", elem_id="shipped")
                self.shown = picture("Faces found: click one", "shown", format="png")
                self.faces = gr.Radio([], label="What is super-resolved", elem_id="faces")
            with gr.Column(min_width=300):
                gr.Markdown("## 2. Low-resolution observation\n" + SCRIBBLE)
                self.editor = gr.ImageEditor(
                    label="Observation",
                    sources=(),
                    transforms=(),
                    layers=False,
                    brush=gr.Brush(
                        default_size=28, colors=["rgba(255, 0, 128, 0.6)"], color_mode="fixed"
                    ),
                    type="numpy",
                    format="png",
                    canvas_size=(EDITED, EDITED),
                    height=480,
                    buttons=[],
                    elem_id="editor",
                )
                self.side = gr.Slider(
                    photos.SMALLEST,
                    photos.MAX_LOW,
                    photos.MAX_LOW,
                    step=1,
                    label="Longer side, px (the photo's own at most)",
                )
                with gr.Accordion("Or upload a mask (white: noise)", open=False):
                    self.mask = gr.File(label="Mask", file_types=["image"], elem_id="mask")

    def _settings_part(self) -> None:
        gr.Markdown("## 3. Search")
        name = next(iter(METHODS))  # the default
        with gr.Row():
            self.method = gr.Dropdown(
                list(METHODS), value=name, label="Method", info=METHODS[name].summary, min_width=240
            )
            self.preset = gr.Dropdown(
                presets_of(name), value=presets_of(name)[0], label="Preset", min_width=140
            )
            self.solutions = gr.Slider(
                1, MAX_SOLUTIONS, 4, step=1, label="Solutions", elem_id="solutions"
            )
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=120)
        with gr.Accordion("Fidelity, prior, diversity, noise", open=False), gr.Row():
            values = levers_of(name, "balanced")
            self.levers = [
                gr.Textbox(value, label=LEVERS[lever], visible=value is not None, min_width=140)
                for lever, value in values.items()
            ]
            self.noise = gr.Textbox(
                str(NOISE), label="Noise of the reference, where drawn", min_width=140
            )

    def _search_part(self) -> None:
        with gr.Row():
            self.run = gr.Button("Search", variant="primary", elem_id="run")
            self.stop = gr.Button(
                "Stop, keep the best", variant="stop", interactive=False, elem_id="stop"
            )
        self.status = gr.HTML(said(self._invitation), elem_id="status", elem_classes="status")
        with gr.Row():
            with gr.Column(min_width=280):
                self.preview = picture("Best so far", "preview", format="jpeg", height=320)
            with gr.Column(min_width=280):
                self.curve = gr.HTML(elem_id="curve")

    def _results_part(self) -> None:
        gr.Markdown("## 4. Solutions")
        self.gallery = gr.Gallery(
            label="Pick one",
            columns=4,
            height="auto",
            format="jpeg",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="gallery",
        )
        self.about = gr.HTML(elem_id="about")
        with gr.Row():
            self.slider = gr.ImageSlider(
                label="Before (enlarged) and after",
                format="jpeg",
                buttons=["fullscreen"],
                max_height=560,
                min_width=300,
                elem_id="slider",
            )
            with gr.Column(min_width=300):
                with gr.Row():
                    self.low = picture("Downscales to", "low", format="png", min_width=130)
                    label = f"{results.GAIN:.0f} x residual"
                    self.residual = picture(label, "residual", format="png", min_width=130)
                label = "Where the solutions differ (white: most)"
                options: dict[str, Any] = {"image_mode": "L", "height": 320}
                self.uncertainty = picture(label, "uncertainty", format="png", **options)
        with gr.Row():
            self.png = gr.DownloadButton("Download PNG", interactive=False, elem_id="png")
            self.npz = gr.DownloadButton("Download latents (npz)", interactive=False, elem_id="npz")
            self.go_on = gr.Button(
                "Search on from this solution", interactive=False, elem_id="go_on"
            )
            self.paste = gr.Button("Paste back into the photo", interactive=False, elem_id="paste")
        options = {"buttons": ["fullscreen"], "visible": False}
        self.pasted = picture("The photo, enlarged", "pasted", format="jpeg", **options)
        self.pasted_file = gr.DownloadButton(
            "Download the enlarged photo (PNG)", visible=False, elem_id="pasted_file"
        )

    # --- events

    def _connect_photo(self) -> None:
        """Which events change the photo and the settings."""
        views = [self.status, self.shown, self.faces, self.side, self.editor]
        uploaded = self.file.upload(self.open_file, self.file, views, **QUIET)
        uploaded.then(lambda: None, None, self.file, **QUIET)
        self.shipped.click(self.open_shipped, None, views, **QUIET)
        self.faces.input(self.pick, self.faces, views, **QUIET)
        self.shown.select(self.pick_at, None, views, **QUIET)
        self.side.release(self.resize, self.side, views, **QUIET)
        chosen = [self.method, self.preset, *self.levers]
        self.method.input(self.choose_method, self.method, chosen, **QUIET)
        self.preset.input(self.choose_preset, [self.method, self.preset], self.levers, **QUIET)

    def _connect_search(self) -> None:
        """Which events search, and look at solutions."""
        asked = [self.editor, self.mask, self.method, self.preset, self.solutions, self.seed]
        asked += [self.noise, *self.levers]
        pasted = [self.pasted, self.pasted_file]
        looked_at = [self.about, self.slider, self.low, self.residual, self.png, self.go_on]
        looked_at += [self.status, *pasted]
        shown = [self.run, self.stop, self.preview, self.curve, self.gallery, self.uncertainty]
        shown += [self.npz, self.paste, *looked_at]
        options: dict[str, Any] = {"concurrency_id": "search", "concurrency_limit": 1, **QUIET}
        options["show_progress_on"] = self.status  # where a place in the queue is shown
        self.run.click(self.search, asked, shown, **options)
        self.go_on.click(self.search_on, asked, shown, **options)
        self.stop.click(self.halt, None, [self.stop, self.status], concurrency_limit=None, **QUIET)
        self.gallery.select(self.look_at, None, looked_at, **QUIET)
        self.paste.click(self.paste_back, None, [self.status, *pasted], **QUIET)

    def _session(self, request: gr.Request) -> Session:
        return self.sessions.get(request.session_hash or "")

    @property
    def _invitation(self) -> str:
        """What the status says at first, with what is to be said of the generator's file."""
        notes = "; ".join(self.models.notes)
        return INVITATION + (f" Of the generator's file: {notes}." if notes else "")

    def _unload(self, request: gr.Request) -> None:
        self.sessions.forget(request.session_hash or "")

    # --- the photo

    @_errors_said
    def open_file(self, file: str | None, request: gr.Request) -> Values:
        """A photo that was uploaded; the upload is deleted once it is read."""
        if file is None:
            return {self.status: said(self._invitation)}
        path = Path(file)
        try:
            return self._open(read_bytes(path), path.name, request)
        finally:
            path.unlink(missing_ok=True)

    @_errors_said
    def open_shipped(self, request: gr.Request) -> Values:
        """The portrait that comes with the project."""
        return self._open(*photos.portrait(), request, side=PORTRAIT_SIDE)

    def _open(
        self, data: bytes, name: str, request: gr.Request, *, side: int | None = None
    ) -> Values:
        session, photo = self._session(request), photos.open_photo(data, name)
        session.photo, session.choice, session.side = photo, photo.choices[0][1], side
        choices = gr.update(choices=photo.choices, value=session.choice)
        return {**self._views(session), self.faces: choices}

    def _views(self, session: Session) -> Values:
        """What the part for the photo shows."""
        photo, observation = session.brought, session.observation
        largest = photo.largest(session.choice)
        side = max(observation.image.shape[:2])
        ground = photos.enlarged(observation.image, EDITED)
        described = photo.description(session.choice, session.side)
        return {
            self.shown: photos.with_faces(photo, session.choice),
            self.faces: session.choice,
            self.side: gr.update(
                value=side, maximum=largest, minimum=min(photos.SMALLEST, largest - 1)
            ),
            self.editor: {"background": ground, "layers": [], "composite": None},
            self.status: said("; ".join([described, *photos.notes_of_noise(observation)])),
        }

    @_errors_said
    def pick(self, choice: str, request: gr.Request) -> Values:
        """A face, or the whole picture."""
        session = self._session(request)
        session.brought.transform(choice)
        session.choice, session.side = choice, None
        return self._views(session)

    @_errors_said
    def pick_at(self, request: gr.Request, event: gr.SelectData) -> Values:
        """The face that was clicked."""
        choice = photos.face_at(self._session(request).brought, *event.index)
        return self.pick(choice, request)

    @_errors_said
    def resize(self, side: float, request: gr.Request) -> Values:
        """The observation at another size."""
        session = self._session(request)
        largest = session.brought.largest(session.choice)
        session.side = int(side) if side < largest else None
        return self._views(session)

    # --- the search

    @_errors_said
    def choose_method(self, method: str) -> Values:
        """Its presets, and the settings of the first."""
        presets = presets_of(method)
        return {
            self.method: gr.update(info=method_named(method).summary),
            self.preset: gr.update(choices=presets, value=presets[0]),
            **self.choose_preset(method, presets[0]),
        }

    @_errors_said
    def choose_preset(self, method: str, preset: str) -> Values:
        """The settings of a preset."""
        values = levers_of(method, preset).values()
        return {
            lever: gr.update(value=value or "", visible=value is not None)
            for lever, value in zip(self.levers, values, strict=True)
        }

    def search(self, request: gr.Request, *fields: Any) -> Iterator[Values]:
        """Search from where the method begins."""
        yield from self._search(fields, self._session(request), continued=False)

    def search_on(self, request: gr.Request, *fields: Any) -> Iterator[Values]:
        """Search from the solution that is looked at."""
        yield from self._search(fields, self._session(request), continued=True)

    def _search(
        self, fields: Sequence[Any], session: Session, *, continued: bool
    ) -> Iterator[Values]:
        idle = {self.run: gr.update(interactive=True), self.stop: gr.update(interactive=False)}
        try:
            session.stop.clear()
            yield {
                self.run: gr.update(interactive=False),
                self.stop: gr.update(interactive=True),
                self.status: said("Preparing; the first search of a size takes longest"),
                self.preview: None,
                self.curve: "",
            }
            request, start = self._request(fields), self._start(session) if continued else None
            photo, choice, observation = session.brought, session.choice, session.observation
            for update in updates(
                self.models,
                observation,
                request,
                name=photo.content(choice),
                start=start,
                stop=session.stop,
            ):
                if update.result is not None:
                    session.found = Found(photo, choice, request, update.result)
                    yield {**idle, **self._found(session)}
                else:
                    yield self._progress(update, request)
        except Exception as error:
            yield {**idle, self.status: said(in_a_line(error), error=True)}

    def _request(self, fields: Sequence[Any]) -> Request:
        """What the fields ask for."""
        editor, mask_file, method, preset, solutions, seed, noise, *levers = fields
        mask = scribble(editor["layers"]) if editor else None
        if mask_file is not None:
            mask = read_mask(mask_file)
        return Request(
            method=method,
            preset=preset,
            changes={name: text or "" for name, text in zip(LEVERS, levers, strict=True)},
            solutions=int(solutions),
            seed=int(seed or 0),
            noise=noise or "",
            mask=mask,
        )

    def _start(self, session: Session) -> np.ndarray:
        """The styles of the solution that is looked at."""
        latents = session.finding.result.solutions[session.number].latents
        if latents is None:
            raise UserError("nothing was searched: there are no latents to begin from")
        return np.asarray(latents.ws)

    def _progress(self, update: Update, request: Request) -> Values:
        text = (
            f"Solution {update.solution + 1} of {request.solutions}: "
            f"step {update.step} of {update.steps}"
        )
        values: Values = {
            self.status: said(text),
            self.curve: results.loss_curve(update.losses, update.step, update.steps),
        }
        if update.preview is not None:
            values[self.preview] = to_uint8(update.preview)
        return values

    def halt(self, request: gr.Request) -> Values:
        """End the search, with the best so far."""
        self._session(request).stop.set()
        return {
            self.stop: gr.update(interactive=False),
            self.status: said("Stopping; the best so far is kept"),
        }

    # --- solutions

    def _found(self, session: Session) -> Values:
        """What the part for solutions shows of a new result."""
        finding, session.number = session.finding, 0
        result, request = finding.result, finding.request
        latents = results.write_latents(session.folder, result, request, self.models, finding.photo)
        text = f"{len(result.solutions)} solution(s) in {result.seconds:.0f} s"
        if result.interrupted:
            text += ", stopped early"
        map_of_deviations = results.uncertainty(result)
        return {
            self.status: said(text),
            self.gallery: gr.update(value=results.gallery(result), selected_index=0),
            self.uncertainty: gr.update(
                value=map_of_deviations, visible=map_of_deviations is not None
            ),
            self.npz: gr.update(value=str(latents), interactive=True),
            self.paste: gr.update(interactive=finding.photo.transform(finding.choice) is not None),
            self.preview: to_uint8(result.solutions[0].image),
            **self._looked_at(session),
        }

    def _looked_at(self, session: Session) -> Values:
        """What is shown of the solution that is looked at."""
        result, number = session.finding.result, session.number
        image = result.solutions[number].image
        file = results.write_picture(session.folder, f"solution_{number}", image)
        searched = result.solutions[number].latents is not None
        return {
            self.about: said(results.description(result, number)),
            self.slider: results.before_and_after(result, number),
            self.low: results.downscaled(result, number),
            self.residual: results.residual(result, number),
            self.png: gr.update(value=str(file), interactive=True),
            self.go_on: gr.update(interactive=searched),
            self.pasted: gr.update(value=None, visible=False),
            self.pasted_file: gr.update(value=None, visible=False),
        }

    @_errors_said
    def look_at(self, request: gr.Request, event: gr.SelectData) -> Values:
        """A solution of the gallery."""
        session = self._session(request)
        last = len(session.finding.result.solutions) - 1
        session.number = int(np.clip(event.index, 0, last))  # type: ignore[arg-type]
        return self._looked_at(session)

    @_errors_said
    def paste_back(self, request: gr.Request) -> Values:
        """The photo enlarged, with the solution in its face's place."""
        session = self._session(request)
        finding = session.finding
        solution = finding.result.solutions[session.number].image
        pasted = results.pasted_back(finding.photo, finding.choice, solution)
        file = results.write_picture(session.folder, f"photo_{session.number}", pasted)
        return {
            self.status: said(f"The photo is enlarged to {pasted.shape[1]}x{pasted.shape[0]} px"),
            self.pasted: gr.update(value=photos.at_most(pasted, PASTED), visible=True),
            self.pasted_file: gr.update(value=str(file), visible=True),
        }
