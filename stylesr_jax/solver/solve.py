"""From a low-resolution image to high-resolution solutions: observe, search, render."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from stylesr_jax.degradations import Bicubic, Degradation, output_shape, resize, scaled_size
from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Generator
from stylesr_jax.methods import method_named
from stylesr_jax.methods.base import (
    Coordinates,
    Method,
    Stage,
    Value,
    choose,
    decode,
    problem_of,
    race_steps,
    racers,
    render,
    sketch_size,
    sketched,
    stages_of,
    traced_settings,
    view_of,
)
from stylesr_jax.methods.levers import injected_noise, layer_range, noisy_target
from stylesr_jax.methods.terms import Example, Latents, Shared, l1_sum
from stylesr_jax.runtime import program_cache as programs
from stylesr_jax.runtime.memory import release_memory
from stylesr_jax.search.engine import STARTS, SearchResult, search, spread
from stylesr_jax.solver.consistency import corrected, correction

MAX_LOW = 256  # px: what is larger is no low-resolution observation
MIN_LOW = 4
SKETCHES_AT_ONCE = 8  # of the starts tried for a solution
LEVERS_KEY = 2**20  # folded into a start's key for the levers' noise; stages fold in 0, 1, ...
RACE_KEY = 2**21  # and for races

# image, solution, step, steps, terms of the step
Progress = Callable[[int, int, int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Observation:
    """A low-resolution image on a square canvas, as generators make squares.

    Attributes:
        target: (s, s, 3) float32 in [-1, 1], s the longer side; padding repeats the edge.
        mask: (s, s, 1), 1 on the image and 0 on the padding, which no term looks at.
        box: (top, left, height, width) of the image in the canvas.
        exact: whether the search's A is known to have made it, without noise.
    """

    target: np.ndarray
    mask: np.ndarray
    box: tuple[int, int, int, int]
    exact: bool = True

    @property
    def image(self) -> np.ndarray:
        """The image alone, (height, width, 3)."""
        top, left, height, width = self.box
        return self.target[top : top + height, left : left + width]

    def crop(self, images: np.ndarray) -> np.ndarray:
        """The image's part of pictures of the whole canvas (..., H, H, C), at their scale."""
        scale = images.shape[-2] / self.target.shape[0]
        top, left, height, width = (round(v * scale) for v in self.box)
        return images[..., top : top + height, left : left + width, :]


def observe(image: Any) -> Observation:
    """Put a low-resolution image (h, w, 3) in [-1, 1] in the middle of a square canvas.

    Raises:
        UserError: its shape, size or values are not those of such an image.
    """
    image = np.asarray(image, np.float32)
    if image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"an image is an array (height, width, 3), not {image.shape}")
    height, width = image.shape[:2]
    if not MIN_LOW <= min(height, width) <= max(height, width) <= MAX_LOW:
        advice = "shrink it first" if max(height, width) > MAX_LOW else "give a larger one"
        raise UserError(
            f"the low-resolution image is {width}x{height} px; sides from {MIN_LOW} to {MAX_LOW} "
            f"px can be super-resolved: {advice}"
        )
    if not np.isfinite(image).all() or np.abs(image).max() > 1.5:
        raise UserError("the image's values must lie in [-1, 1]; scale 8-bit ones by x / 127.5 - 1")
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    edges = ((top, side - height - top), (left, side - width - left), (0, 0))
    mask = np.pad(np.ones((height, width, 1), np.float32), edges)
    return Observation(np.pad(image, edges, mode="edge"), mask, (top, left, height, width))


@dataclass(frozen=True)
class Solution:
    """One high-resolution image and how it was found.

    Attributes:
        image: (H, W, 3) float32 in [-1, 1], clipped, cropped to the observation's shape, and
            corrected so that A takes it to the observation, see `consistency`.
        generated: (H, W, 3) G, what the generator drew; the image before the correction.
        correction: what was added to it, see `consistency.correction`; None for nothing.
        low: (h, w, 3) A(image), not clipped: to be compared with the observation.
        latents: `objective.Latents` as numpy arrays; `redraw` makes the image from them. None
            for a method that searches nothing.
        terms: weighted terms of the objective at the best step; they sum to `loss`.
        history: each term at each step; NaN where no step was made.
        residual_l1: mean |A(image) - y| on [-1, 1].
        residual_psnr: dB, of A(image) against y, data range 2.
        generated_psnr: dB, of A(G) against y, before the correction.
        best_step: the step whose variables were kept.
        failed_at: step at which the search met a NaN or infinity, or -1.
        diagnostics: what a sampler says of its chain, e.g. its acceptance rate.
    """

    image: np.ndarray
    generated: np.ndarray
    correction: np.ndarray | None
    low: np.ndarray
    latents: Latents | None
    loss: float
    terms: dict[str, float]
    history: dict[str, np.ndarray]
    residual_l1: float
    residual_psnr: float
    generated_psnr: float
    best_step: int
    failed_at: int
    diagnostics: dict[str, float] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """ "ok", or what went wrong."""
        if self.failed_at < 0:
            return "ok"
        return f"not finite at step {self.failed_at}; kept step {self.best_step}"


@dataclass(frozen=True)
class Result:
    """All solutions of one image, in the order of their numbers."""

    observation: Observation
    solutions: tuple[Solution, ...]
    method: str
    settings: dict[str, Value]
    seconds: float
    interrupted: bool

    @property
    def images(self) -> np.ndarray:
        """(solutions, H, W, 3) float32 in [-1, 1]."""
        return np.stack([solution.image for solution in self.solutions])

    @property
    def uncertainty(self) -> np.ndarray:
        """Standard deviation of each pixel over the solutions: (H, W, 3), images in [-1, 1].

        Raises:
            UserError: there are fewer than two solutions.
        """
        if len(self.solutions) < 2:
            raise UserError("a deviation over solutions needs two of them at least: --solutions 2")
        return self.images.std(axis=0, ddof=1)


def key_of(seed: int, name: str) -> Array:
    """The PRNG key of an image: from the seed and its name, whatever else is in the batch."""
    digest = hashlib.sha256(name.encode()).digest()
    return jax.random.fold_in(jax.random.key(seed), int.from_bytes(digest[:4], "big"))


@partial(jax.jit, static_argnames=("coordinates",))
def _begin(
    keys: Array,
    indices: Array,
    shared: Shared,
    examples: Example,
    previous: Any,
    search_keys: Array,
    number: Array,
    *,
    coordinates: Coordinates,
) -> tuple[Any, Array]:
    """A batch's variables for a stage, leading axis B, and the keys (B,) of its search."""
    start = jax.vmap(coordinates.start, in_axes=(0, 0, None, 0, 0))
    own = jax.vmap(jax.random.fold_in, in_axes=(0, None))(search_keys, number)
    return start(keys, indices, shared, examples, previous), own


@partial(jax.jit, static_argnames=("stage", "tries", "mesh"))
def _nearest_keys(
    keys: Array,
    indices: Array,
    shared: Shared,
    examples: Example,
    *,
    stage: Stage,
    tries: int,
    mesh: Mesh | None = None,
) -> Array:
    """`tries` keys derived from each start's own, by how near to the input their starts are.

    Returns:
        (B, tries) keys, the nearest first.
    """
    run = partial(_by_distance, stage, tries)
    if mesh is not None:
        run = spread(run, mesh, (P(STARTS), P(STARTS), P(), P(STARTS)), P(STARTS))
    return run(keys, indices, shared, examples)


def _by_distance(
    stage: Stage, tries: int, keys: Array, indices: Array, shared: Shared, examples: Example
) -> Array:
    def ordered(key: Array, index: Array, example: Example) -> Array:
        tried = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(tries))

        def distance(one: Array) -> Array:
            variables = stage.coordinates.start(one, index, shared, example, None)
            return l1_sum(view_of(stage, shared, example, variables))

        at_once = None if stage.stop is None else SKETCHES_AT_ONCE  # full images take memory
        distances = jax.lax.map(distance, tried, batch_size=at_once)
        return tried[jnp.argsort(jnp.where(jnp.isfinite(distances), distances, jnp.inf))]

    return jax.vmap(ordered)(keys, indices, examples)


def _race(
    stage: Stage,
    keys: Array,
    begin: Callable[[Array, Any, int], tuple[Any, Array]],
    *,
    steps: int,
    report: Callable[[int, dict[str, np.ndarray]], None],
    **options: Any,
) -> Array:
    """Of each start's keys (B, racers) that with the lowest loss at a short search's end: (B,).

    begin(keys, None, number) gives the variables and the search's keys, `options` are `search`'s.

    Raises:
        KeyboardInterrupt: Ctrl-C; nobody has won.
    """
    losses = []
    for racer in range(keys.shape[1]):
        variables, own_keys = begin(keys[:, racer], None, RACE_KEY)
        result = search(
            problem_of(stage),
            variables=variables,
            keys=own_keys,
            steps=steps,
            close=False,
            on_progress=lambda step, _, terms, racer=racer: report(racer * steps + step, terms),
            **options,
        )
        if result.interrupted:
            raise KeyboardInterrupt
        loss = sum(values[-1] for values in result.history.values())
        losses.append(np.where(np.isfinite(loss) & (result.failed_at < 0), loss, np.inf))
    return keys[np.arange(len(keys)), np.argmin(losses, axis=0)]


_decode = jax.jit(decode, static_argnames=("coordinates",))


@partial(jax.jit, static_argnames=("layers", "noisy", "inject", "own_noise", "own_starts", "later"))
def _draw(
    keys: Array,
    indices: Array,
    targets: Array,
    masks: Array,
    groups: Array,
    noise_masks: Array,
    shared: Shared,
    *,
    layers: tuple[int, ...],
    noisy: bool,
    inject: bool,
    own_noise: bool,
    own_starts: bool,
    later: bool = True,
) -> tuple[tuple[Any, ...], Array, Array]:
    """Examples with the noise on their references and in their layers that settings ask for.

    `keys` (B,) are the images', `indices` (B,) number an image's solutions; `later` says that
    there is one that is not its image's first.

    Returns:
        The fields of `Example`s, a key for each start and one for each search; (B,).
    """
    generator = shared.generator

    def one(
        key: Array, index: Array, target: Array, mask: Array, group: Array, noise_mask: Array
    ) -> tuple[tuple[Any, ...], Array, Array]:
        start_key, search_key = jax.random.split(jax.random.fold_in(key, index))
        if not own_starts:
            start_key, _ = jax.random.split(jax.random.fold_in(key, 0))
        target_key, layer_key = jax.random.split(jax.random.fold_in(search_key, LEVERS_KEY))
        injected = None
        if noisy:
            std = shared.settings["noise_std"]
            target = noisy_target(target_key, target, noise_mask, std)
        if inject:
            std = shared.settings["inject_noise"]
            injected = injected_noise(layer_key, generator, layers, std)
        if own_noise:
            change = [jnp.zeros_like(noise) for noise in generator.stored_noise]
            if later:  # the first solution has the stored maps
                drawn = generator.random_noise(jax.random.fold_in(layer_key, 1))
                share = jnp.where(index == 0, 0.0, 1.0)
                pairs = zip(drawn, generator.stored_noise, strict=True)
                change = [share * (a - b) for a, b in pairs]
            injected = tuple(change if injected is None else map(jnp.add, injected, change))
        return (target, mask, group, injected), start_key, search_key

    return jax.vmap(one)(keys, indices, targets, masks, groups, noise_masks)


def draw_options(settings: Mapping[str, Value], generator: Generator) -> dict[str, Any]:
    """The static arguments of `_draw` that settings stand for.

    Raises:
        UserError: the layers to inject noise in are not the generator's.
    """
    return {
        "layers": layer_range(str(settings["inject_layers"]), len(generator.noise_shapes)),
        "noisy": bool(settings["noise_std"]),
        "inject": bool(settings["inject_noise"]),
        "own_noise": settings.get("noise") == "own",
        "own_starts": choose(settings, "starts", {"own": True, "same": False}),
    }


_render = jax.jit(render, static_argnames=("block", "stop"))


@jax.jit
def _degrade(degradation: Degradation, image: Array) -> Array:
    return degradation(image)


def redraw(generator: Generator, latents: Latents, *, block: int = 0) -> np.ndarray:
    """The image (H, W, 3) that a generator draws from latents, clipped to [-1, 1].

    One compiled function for one image: the same latents give the same pixels, whatever they
    were searched together with.
    """
    image = programs.call(_render, generator, latents, out=0, block=block)
    return np.clip(np.asarray(image), -1.0, 1.0)


def device_mesh(count: int | None = None) -> Mesh | None:
    """The first `count` of this process's devices, all by default, to spread starts over.

    Returns:
        A mesh with the axis "starts", or None for a single device.

    Raises:
        UserError: there are fewer devices.
    """
    devices = jax.local_devices()
    count = len(devices) if count is None else count
    if not 1 <= count <= len(devices):
        raise UserError(f"there are {len(devices)} devices here, not {count}")
    return None if count == 1 else Mesh(np.array(devices[:count]), (STARTS,))


DATA_KEY = 2**31  # folded into an image's key for what its data suffer


def degrade_original(
    original: np.ndarray,
    key: Array,
    *,
    resolution: int,
    lr_size: int,
    degradation: Degradation | None = None,
    truth: bool = False,
) -> tuple[Observation, Degradation]:
    """What a method sees of an original, and the A that its search inverts.

    Args:
        original: (H, W, 3) in [-1, 1]; its longer side is first brought to `resolution` px, so
            that a degradation means the same for all originals.
        key: the image's, see `key_of`.
        resolution: the generator's.
        lr_size: px of the longer side where `degradation` is None, which is plain bicubic.
        degradation: what the data suffer.
        truth: tell the search what they suffered; else it assumes plain bicubic.

    Raises:
        UserError: the degradation does not fit the image.
    """
    size = scaled_size(original.shape, resolution)
    large = jnp.clip(resize(jnp.asarray(original), size), -1.0, 1.0)
    key = jax.random.fold_in(key, DATA_KEY)
    suffered = degradation or Bicubic(size=scaled_size(original.shape, lr_size))
    observation = observe(np.clip(np.asarray(suffered.degrade(key, large)), -1.0, 1.0))
    exact = degradation is None or (truth and degradation.exact)
    observation = replace(observation, exact=exact)
    if not truth or degradation is None:
        return observation, default_degradation(observation)
    return observation, told(observation, degradation, key, resolution=resolution)


def told(
    observation: Observation, degradation: Degradation, key: Array, *, resolution: int
) -> Degradation:
    """The degradation as a search is told it, its random parts drawn with `key`.

    Raises:
        UserError: it does not make images of the observation's size.
    """
    realised = degradation.realise(key)
    try:
        _check_fit(realised, observation, resolution)
    except UserError as error:
        raise UserError(
            f"told the truth, {error}; use square images, or leave out --search-degradation truth"
        ) from error
    return realised


def default_degradation(observation: Observation) -> Degradation:
    """Antialiased bicubic down-sampling to the observation's canvas."""
    return Bicubic(size=observation.target.shape[0])


def solve(
    observations: Sequence[Observation],
    keys: Sequence[Array],
    *,
    generator: Generator,
    prior: Any = None,
    perceptual: Any = None,
    method: Method,
    settings: Mapping[str, Value],
    solutions: int = 4,
    degradation: Degradation | None = None,
    noise_mask: np.ndarray | None = None,
    batch: int = 1,
    mesh: Mesh | None = None,
    chunk: int = 10,
    on_progress: Progress | None = None,
) -> list[Result]:
    """Search `solutions` starts for each observation, `batch` starts at a time on each device.

    The observations must share one canvas size. Where fewer starts than a batch are left, the
    last one is repeated, so that nothing is compiled for them.

    A start depends on its image's key and its own number only; with `batch` 1, the default on
    CPUs, results do not depend on what else is searched, to the last bit. The setting
    "diversity" ties an image's starts together: then they make up a batch of their own, on one
    device.

    `mesh` (see `device_mesh`) spreads starts, of all images, over devices; None takes the first
    one. Which start lands on which device does not change it.

    `noise_mask` (h, w) in [0, 1] says where the setting "noise_std" adds noise to the
    references; it is resized to each of them, and None is everywhere.

    Returns:
        A result for each observation; after Ctrl-C those of the starts made so far.

    Raises:
        UserError: the method needs a prior or feature network that is not given.
    """
    if method.needs_prior and prior is None:
        raise UserError(
            f"{method.name} needs a flow prior for {generator.name}; fit one: "
            f"python -m stylesr_jax.fit_prior --generator {generator.name}"
        )
    if solutions < 1 or batch < 1:
        raise UserError(f"solutions ({solutions}) and batch ({batch}) must be 1 or more")
    if settings.get("diversity") and solutions < 2:
        if not method.settings.get("diversity"):
            raise UserError("diversity pushes solutions apart: it needs two of them at least")
        settings = {**settings, "diversity": 0.0}  # the method's own: one solution has no use of it
    if settings.get("inject_noise") and not generator.noise_shapes:
        raise UserError(f"{generator.name} has no noise layers to inject noise in")
    if method.needs_perceptual and perceptual is None:
        raise UserError(f"{method.name} needs the LPIPS feature network (perceptual=...)")
    degradation = degradation or default_degradation(observations[0])
    _check_fit(degradation, observations[0], generator.resolution)
    if method.direct is not None:
        return [_direct(method, o, generator, degradation, solutions) for o in observations]
    numbers = traced_settings(settings)
    if method.measure is not None:
        numbers |= method.measure(generator)
    shared = Shared(generator, prior, degradation, perceptual, numbers)
    stages = stages_of(method, settings)
    stages = sketched(stages, generator, observations[0].target.shape[0])
    options = draw_options(settings, generator)
    if settings["diversity"]:
        batch, mesh = solutions, None
    at_once = batch * (1 if mesh is None else mesh.size)
    found: dict[int, list[Solution]] = {i: [] for i in range(len(observations))}
    seconds = dict.fromkeys(found, 0.0)
    interrupted, cut = False, set[int]()  # cut: images that Ctrl-C took steps or starts from
    jobs = [(i, s) for i in found for s in range(solutions)]
    for first in range(0, len(jobs), at_once):
        wanted = jobs[first : first + at_once]
        some = wanted + [wanted[-1]] * (at_once - len(wanted))  # one size is compiled once
        began = time.monotonic()
        observed = [observations[i] for i, _ in some]
        try:
            fields, start_keys, search_keys = programs.call(
                _draw,
                jnp.stack([keys[i] for i, _ in some]),
                np.array([s for _, s in some], np.int32),
                np.stack([o.target for o in observed]),
                np.stack([o.mask for o in observed]),
                np.array([i for i, _ in some], np.int32),
                np.stack([_on_canvas(noise_mask, o) for o in observed]),
                shared,
                keep=mesh is None,
                later=options["own_noise"] and any(s > 0 for _, s in some),
                **options,
            )
            solved, interrupted = _solve_batch(
                some,
                observed,
                Example(*fields),
                start_keys,
                np.array([s if options["own_starts"] else 0 for _, s in some], np.int32),
                search_keys,
                shared=shared,
                stages=stages,
                settings=settings,
                noise_mask=noise_mask,
                count=len(wanted),
                mesh=mesh,
                chunk=chunk,
                on_progress=on_progress,
            )
        except KeyboardInterrupt:  # while compiling or drawing: earlier solutions are kept
            cut = {i for i, _ in jobs[first:]}
            break
        for (i, _), solution in zip(wanted, solved, strict=True):
            found[i].append(solution)
            seconds[i] += (time.monotonic() - began) / len(wanted)
        if interrupted:
            cut = {i for i, _ in jobs[first:]}
            break
    return [
        Result(
            observation=observations[i],
            solutions=tuple(found[i]),
            method=method.name,
            settings=dict(settings),
            seconds=seconds[i],
            interrupted=i in cut,
        )
        for i in found
        if found[i]
    ]


def _check_fit(degradation: Degradation, observation: Observation, resolution: int) -> None:
    """Raise UserError unless A makes images of the observation's shape."""
    shape = output_shape(degradation, (resolution, resolution, 3))
    if shape != observation.target.shape:
        raise UserError(
            f"the degradation {degradation} makes images of {shape}, but the one observed is "
            f"{observation.target.shape} on its square canvas; give a degradation to that size"
        )


def _on_canvas(noise_mask: np.ndarray | None, observation: Observation) -> np.ndarray:
    """A noise mask (h, w) in [0, 1] at the observation's size, on its canvas: (s, s, 1)."""
    if noise_mask is None:
        return observation.mask
    mask = np.asarray(noise_mask, np.float32)
    if mask.ndim != 2 or mask.size == 0 or not (mask.min() >= 0.0 and mask.max() <= 1.0):
        raise UserError("a noise mask is an array (height, width) with values in [0, 1]")
    top, left, height, width = observation.box
    small = resize(jnp.asarray(mask[..., None]), (height, width), kernel="area")
    canvas = np.zeros_like(observation.mask)
    canvas[top : top + height, left : left + width] = np.asarray(small)
    return canvas


def _residuals(low: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Mean |A(x) - y| and the PSNR in dB."""
    error = low - reference
    mse = float(np.mean(np.square(error)))
    return float(np.mean(np.abs(error))), float(10 * np.log10(4.0 / max(mse, 1e-12)))


_correction = jax.jit(correction)
_corrected = jax.jit(corrected)


def add_correction(image: np.ndarray, correction: np.ndarray | None) -> np.ndarray:
    """What was generated (H, W, 3) with its correction, clipped; without one, as it is."""
    if correction is None:
        return image
    return np.asarray(programs.call(_corrected, image, correction, out=0))


def on_crop(degradation: Degradation, observation: Observation) -> Degradation:
    """A for the observation's part of an image alone, where that differs from A for the canvas."""
    if degradation == default_degradation(observation):
        return Bicubic(size=observation.image.shape[:2])
    return degradation


_enlarge = jax.jit(
    lambda method, low, resolution: jnp.clip(method(low, resolution), -1.0, 1.0),
    static_argnums=(0, 2),
)


def redraw_direct(method: Method, observation: Observation, resolution: int) -> np.ndarray:
    """What a method without a search makes of an observation: (H, W, 3), clipped to [-1, 1]."""
    assert method.direct is not None
    return np.asarray(_enlarge(method.direct, jnp.asarray(observation.target), resolution))


def _direct(
    method: Method,
    observation: Observation,
    generator: Generator,
    degradation: Degradation,
    solutions: int,
) -> Result:
    """The result of a method that searches nothing: the same image for each solution."""
    began = time.monotonic()
    image = observation.crop(redraw_direct(method, observation, generator.resolution))
    low = np.asarray(_degrade(on_crop(degradation, observation), jnp.asarray(image)))
    residual_l1, residual_psnr = _residuals(low, observation.image)
    one = Solution(
        image=image,
        generated=image,
        correction=None,
        low=low,
        latents=None,
        loss=0.0,
        terms={},
        history={},
        best_step=0,
        failed_at=-1,
        residual_l1=residual_l1,
        residual_psnr=residual_psnr,
        generated_psnr=residual_psnr,
    )
    seconds = time.monotonic() - began
    return Result(observation, (one,) * solutions, method.name, {}, seconds, False)


def _solve_batch(
    jobs: Sequence[tuple[int, int]],
    observations: Sequence[Observation],
    examples: Example,
    start_keys: Array,
    indices: np.ndarray,
    search_keys: Array,
    *,
    shared: Shared,
    stages: Sequence[Stage],
    settings: Mapping[str, Value],
    noise_mask: np.ndarray | None,
    count: int,
    mesh: Mesh | None,
    chunk: int,
    on_progress: Progress | None,
) -> tuple[list[Solution], bool]:
    """Run every stage for one batch of (image, solution) pairs and render the first `count`."""
    programs.make_room()
    total = sum(int(settings[stage.steps]) for stage in stages)
    histories: list[dict[str, np.ndarray]] = []
    diagnostics: dict[str, np.ndarray] = {}
    result: SearchResult | None = None
    variables: Any = None
    done = 0

    def report(done: int, terms: dict[str, np.ndarray]) -> None:
        if on_progress is not None:
            means = {name: float(np.mean(value)) for name, value in terms.items()}
            on_progress(jobs[0][0], jobs[0][1], done, total, means)

    def begin(stage: Stage, keys: Array, previous: Any, number: int) -> tuple[Any, Array]:
        args = (keys, indices, shared, examples, previous, search_keys, np.uint32(number))
        return programs.call(_begin, *args, keep=mesh is None, coordinates=stage.coordinates)

    tries = int(settings.get("tries", 1))
    if tries > 1 and int(indices.max()) > 0:  # an image's first start is the only one there is
        args = (start_keys, indices, shared, examples)
        size = sketch_size(shared.generator, observations[0].target.shape[0])
        options = {"stage": replace(stages[0], stop=size), "tries": tries, "mesh": mesh}
        tried = programs.call(_nearest_keys, *args, out=0, keep=mesh is None, **options)
        if mesh is not None:
            tried = jax.device_put(tried, mesh.devices.flat[0])
        start_keys = tried[:, 0]
        done = race_steps(settings)
        total += done
        if done:
            start_keys = _race(
                stages[0],
                tried[:, : racers(settings)],
                partial(begin, stages[0]),
                steps=int(settings["race_steps"]),
                report=report,
                shared=shared,
                examples=examples,
                chunk=chunk,
                mesh=mesh,
            )
    for number, stage in enumerate(stages):
        release_memory()
        variables, own_keys = begin(stage, start_keys, variables, number)
        if result is not None and result.interrupted:
            continue  # later stages only carry over what was found, for `decode` to read

        result = search(
            problem_of(stage),
            shared=shared,
            examples=examples,
            variables=variables,
            keys=own_keys,
            steps=int(settings[stage.steps]),
            chunk=chunk,
            mesh=mesh,
            on_progress=lambda step, _, terms, done=done: report(done + step, terms),
        )
        variables = result.variables if mesh is None else jax.device_get(result.variables)
        histories.append(result.history)
        done += int(settings[stage.steps])
        if stage.diagnose is not None:
            values = jax.vmap(stage.diagnose)(result.optimiser)
            diagnostics = {name: np.asarray(value) for name, value in values.items()}
    assert result is not None
    release_memory()
    solved = []
    for b, observation in enumerate(observations[:count]):
        example, own = jax.tree.map(lambda x, b=b: x[b], (examples, variables))
        latents = _decode(stages[-1].coordinates, shared, example, own)
        if latents.noise is None:
            latents = latents._replace(noise=shared.generator.stored_noise)
        whole = redraw(shared.generator, latents, block=stages[-1].block)
        generated, seen = observation.crop(whole), on_crop(shared.degradation, observation)
        correction = None
        if fidelity := observation.exact * float(settings.get("fidelity", 0.0)):
            noise = float(settings.get("noise_std", 0.0)) * _on_canvas(noise_mask, observation)
            correction = programs.call(
                _correction,
                generated,
                observation.crop(np.asarray(examples.target[b])),
                seen,
                np.square(observation.crop(noise)),
                np.float32(fidelity),
                out=0,
            )
            correction = np.asarray(correction)
        image = add_correction(generated, correction)
        low = np.asarray(_degrade(seen, image))
        residual_l1, residual_psnr = _residuals(low, observation.image)
        _, generated_psnr = _residuals(np.asarray(_degrade(seen, generated)), observation.image)
        solved.append(
            Solution(
                image=image,
                generated=generated,
                correction=correction,
                low=low,
                latents=jax.tree.map(np.asarray, latents),
                loss=float(result.loss[b]),
                terms={name: float(value[b]) for name, value in result.terms.items()},
                history=_join([{n: v[:, b] for n, v in h.items()} for h in histories]),
                best_step=int(result.best_step[b]),
                failed_at=int(result.failed_at[b]),
                diagnostics={name: float(value[b]) for name, value in diagnostics.items()},
                residual_l1=residual_l1,
                residual_psnr=residual_psnr,
                generated_psnr=generated_psnr,
            )
        )
    return solved, result.interrupted


def _join(histories: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The stages' histories after one another; NaN where a stage lacks a term."""
    names = list(dict.fromkeys(name for history in histories for name in history))
    lengths = [len(next(iter(h.values()), ())) for h in histories]
    return {
        name: np.concatenate(
            [h.get(name, np.full(n, np.nan)) for h, n in zip(histories, lengths, strict=True)]
        )
        for name in names
    }


def upsample(
    image: Any,
    *,
    generator: Generator,
    prior: Any = None,
    method: str | Method = "rls",
    solutions: int = 4,
    key: Array,
    preset: str = "balanced",
    settings: Mapping[str, Value] | None = None,
    degradation: Degradation | None = None,
    perceptual: Any = None,
    noise_mask: np.ndarray | None = None,
    batch: int = 1,
    mesh: Mesh | None = None,
    on_progress: Progress | None = None,
) -> Result:
    """Find high-resolution images that down-scale to `image` and look like the generator's.

    Args:
        image: (h, w, 3) in [-1, 1], sides from 4 to 256 px; a non-square one is searched on a
            square canvas of which only its own part counts, and comes back in its own shape.
        generator: from `load_generator`.
        prior: from `load_prior(generator)`; None where the method has no prior.
        method: a name (see `methods.METHODS`) or a `Method` of your own.
        solutions: how many starts.
        key: PRNG key; each solution's own key is folded from it and its number.
        preset: "fast", "balanced", "best" or "paper".
        settings: changes to the preset, by name; the levers of `levers.LEVERS` are among them.
        degradation: A; None is antialiased bicubic down-sampling.
        perceptual: from `load_features("vgg16")`, for methods with an LPIPS term.
        noise_mask: (h, w) in [0, 1]: where the setting "noise_std" adds noise; None: everywhere.
        batch: starts searched together on a device.
        mesh: devices to spread the starts over, see `device_mesh`; None takes the first one.
        on_progress: called with (image, solution, step, steps, terms) between chunks.

    Raises:
        UserError: the image, the settings or the method's needs are not met.
    """
    chosen = method_named(method) if isinstance(method, str) else method
    results = solve(
        [observe(image)],
        [key],
        generator=generator,
        prior=prior,
        perceptual=perceptual,
        method=chosen,
        settings=chosen.resolve(preset, settings),
        solutions=solutions,
        degradation=degradation,
        noise_mask=noise_mask,
        batch=min(batch, -(-solutions // (1 if mesh is None else mesh.size))),
        mesh=mesh,
        on_progress=on_progress,
    )
    if not results:
        raise KeyboardInterrupt  # before there was anything to return
    return results[0]
