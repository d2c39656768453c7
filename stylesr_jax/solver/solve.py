"""From low-resolution images to high-resolution solutions: search, render, correct."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float, Key

from stylesr_jax.degradations import Degradation
from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Generator
from stylesr_jax.methods import Method, method_named
from stylesr_jax.methods.base import Stage, Value, small_size, stages_of
from stylesr_jax.methods.view import Context, Latents, Start
from stylesr_jax.runtime.memory import release_memory
from stylesr_jax.runtime.program_cache import kept_jit
from stylesr_jax.search import engine
from stylesr_jax.search.engine import STARTS, SearchResult, SearchState
from stylesr_jax.solver.covariance import linear_part
from stylesr_jax.solver.observation import (
    Observation,
    check_fit,
    default_degradation,
    mask_on_canvas,
    on_crop,
    place_on_canvas,
)
from stylesr_jax.solver.rendering import (
    add_correction,
    correction_of,
    degrade,
    redraw,
    redraw_direct,
    residuals,
)
from stylesr_jax.solver.result import Result, Solution
from stylesr_jax.solver.starts import begin, draw, draw_choices, nearest_keys, tries_of

# image, solution, step, steps, terms of the step
Progress = Callable[[int, int, int, int, dict[str, float]], None]
# image, solution, a function that draws the best so far: (H, W, 3) in [-1, 1]
Preview = Callable[[int, int, Callable[[], np.ndarray]], None]

_latents = jax.jit(lambda stage, *args: stage.latents(*args))
_begin = kept_jit(engine.begin)
_advance = kept_jit(engine.advance, static_argnames=("length", "mesh"))


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


class _Job(NamedTuple):
    """One start: which image it is for, and its number among the image's solutions."""

    image: int
    solution: int


@contextmanager
def own_options() -> Iterator[None]:
    """JAX's options as the searches need them, whatever a process has set.

    Searches compute in float32, and find and report NaNs themselves.
    """
    with (
        jax.enable_x64(False),
        jax.debug_nans(False),
        jax.debug_infs(False),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


@own_options()
def solve(
    observations: Sequence[Observation],
    keys: Sequence[Array],
    *,
    generator: Generator,
    prior: Any = None,
    perceptual: Any = None,
    method: Method,
    solutions: int = 4,
    degradation: Degradation | None = None,
    noise_mask: np.ndarray | None = None,
    start: Float[Array | np.ndarray, "..."] | None = None,
    batch: int = 1,
    mesh: Mesh | None = None,
    chunk: int = 10,
    on_progress: Progress | None = None,
    on_preview: Preview | None = None,
) -> list[Result]:
    """Search `solutions` starts for each observation, `batch` starts at a time on each device.

    The observations must share one canvas size. Where fewer starts than a batch are left, the
    last one is repeated, so that nothing is compiled for them.

    A start depends on its image's key and its own number only; with `batch` 1, the default on
    CPUs, results do not depend on what else is searched, to the last bit. The setting
    "diversity" ties an image's starts together: then they make up a batch of their own, on one
    device.

    Args:
        keys: one PRNG key for each observation.
        method: with its settings, see `Method.resolve`.
        degradation: A; None is antialiased bicubic down-sampling.
        noise_mask: (h, w) in [0, 1], where the setting "noise_std" adds noise to the references;
            resized to each of them. None is everywhere.
        start: (num_ws, w_dim) styles that all searches begin from, which then differ by their
            noise; None: where the method begins.
        mesh: (see `device_mesh`) spreads starts, of all images, over devices; None takes the
            first one. Which start lands on which device does not change it.
        on_progress: called between chunks; a KeyboardInterrupt that it raises ends the search.
        on_preview: the same, for those who want to see the first start of a batch.

    Returns:
        A result for each observation; after Ctrl-C those of the starts made so far.

    Raises:
        UserError: the method needs a prior or feature network that is not given.
    """
    _check(method, generator, prior, perceptual, solutions, batch)
    degradation = degradation or default_degradation(observations[0])
    check_fit(degradation, observations[0], generator.resolution)
    if start is not None:
        method = method.from_styles()
    if not tuple(method.make_stages()):
        return [_direct(method, o, generator, degradation, solutions) for o in observations]
    if method.diversity and solutions < 2:  # type: ignore[attr-defined]
        if not type(method)().diversity:  # type: ignore[attr-defined]
            raise UserError("diversity pushes solutions apart: it needs two of them at least")
        method = method.replace(diversity=0.0)  # the method's own, of no use to one solution
    if method.diversity:  # type: ignore[attr-defined]
        batch, mesh = solutions, None
    search = _Search(
        method=method.fitted(generator, observations[0].target.shape[0]),
        context=Context(generator, prior, degradation, perceptual),
        observations=observations,
        keys=keys,
        noise_mask=noise_mask,
        start=None if start is None else jnp.asarray(start, jnp.float32),
        mesh=mesh,
        chunk=chunk,
        on_progress=on_progress,
        on_preview=on_preview,
    )
    return _solve_all(search, solutions, batch * (1 if mesh is None else mesh.size))


def _check(
    method: Method,
    generator: Generator,
    prior: Any,
    perceptual: Any,
    solutions: int,
    batch: int,
) -> None:
    """Raise UserError where something that the method needs is not there."""
    if method.needs_prior and prior is None:
        raise UserError(
            f"{method.name} needs a flow prior for {generator.name}; fit one: "
            f"python -m stylesr_jax.fit_prior --generator {generator.name}"
        )
    if solutions < 1 or batch < 1:
        raise UserError(f"solutions ({solutions}) and batch ({batch}) must be 1 or more")
    if getattr(method, "inject_noise", 0.0) and not generator.noise_shapes:
        raise UserError(f"{generator.name} has no noise layers to inject noise in")
    if method.needs_perceptual and perceptual is None:
        raise UserError(f"{method.name} needs the LPIPS feature network (perceptual=...)")


class _Search(NamedTuple):
    """What all batches of a call share."""

    method: Any
    context: Context
    observations: Sequence[Observation]
    keys: Sequence[Array]
    noise_mask: np.ndarray | None
    start: Array | None
    mesh: Mesh | None
    chunk: int
    on_progress: Progress | None
    on_preview: Preview | None


def _solve_all(search: _Search, solutions: int, at_once: int) -> list[Result]:
    """Batch after batch, until all starts are searched or Ctrl-C."""
    by_image: dict[int, list[Solution]] = {i: [] for i in range(len(search.observations))}
    seconds = dict.fromkeys(by_image, 0.0)
    cut = set[int]()  # images that Ctrl-C took steps or starts from
    jobs = [_Job(i, s) for i in by_image for s in range(solutions)]
    for first in range(0, len(jobs), at_once):
        wanted = jobs[first : first + at_once]
        batch = wanted + [wanted[-1]] * (at_once - len(wanted))  # one size is compiled once
        began = time.monotonic()
        try:
            solved, interrupted = _solve_batch(search, batch, len(wanted))
        except KeyboardInterrupt:  # while compiling or drawing: earlier solutions are kept
            solved, interrupted = [], True
        for job, solution in zip(wanted, solved, strict=False):
            by_image[job.image].append(solution)
            seconds[job.image] += (time.monotonic() - began) / len(wanted)
        if interrupted:
            cut = {job.image for job in jobs[first:]}
            break
    return [
        Result(
            observation=search.observations[i],
            solutions=_in_order(search.method, by_image[i]),
            method=search.method.name,
            settings=search.method.settings,
            seconds=seconds[i],
            interrupted=i in cut,
        )
        for i in by_image
        if by_image[i]
    ]


def _in_order(method: Any, solutions: Sequence[Solution]) -> tuple[Solution, ...]:
    """The best by the objective first; a sampler's draws as they were drawn."""
    if method.draws:
        return tuple(solutions)
    return tuple(sorted(solutions, key=lambda solution: (not solution.is_sound, solution.loss)))


def _draw_batch(search: _Search, jobs: Sequence[_Job]) -> tuple[Start, Array, Array, Array]:
    """The starts of a batch, their keys and their searches', and their numbers as starts."""
    observed = [search.observations[job.image] for job in jobs]
    choices = draw_choices(search.method, search.context.generator)
    numbers = np.array([job.solution for job in jobs], np.int32)
    starts, start_keys, search_keys = draw(
        jnp.stack([search.keys[job.image] for job in jobs]),
        jnp.asarray(numbers),
        jnp.stack([o.target for o in observed]),
        jnp.stack([o.mask for o in observed]),
        jnp.array([job.image for job in jobs], jnp.int32),
        jnp.stack([mask_on_canvas(search.noise_mask, o) for o in observed]),
        search.method,
        search.context.generator,
        search.start,
        later=choices["own_noise"] and bool(numbers.any()),
        **choices,
    )
    return starts, start_keys, search_keys, jnp.asarray(numbers * choices["own_starts"])


def _solve_batch(search: _Search, jobs: Sequence[_Job], count: int) -> tuple[list[Solution], bool]:
    """Run every stage for one batch of starts and render the first `count`."""
    stages = stages_of(search.method, search.context.generator)
    starts, start_keys, search_keys, indices = _draw_batch(search, jobs)
    tries = tries_of(search.method)
    if (
        tries > 1 and search.start is None and bool(indices.any())
    ):  # an image's first start is the only one there is
        size = small_size(search.context.generator)
        args = (stages[0].replace(stop=size), start_keys, indices, search.context, starts)
        start_keys = nearest_keys(*args, tries=tries, mesh=search.mesh)
        if search.mesh is not None:
            start_keys = jax.device_put(start_keys, search.mesh.devices.flat[0])
    total = sum(int(stage.steps) for stage in stages)
    histories: list[dict[str, np.ndarray]] = []
    diagnostics: dict[str, np.ndarray] = {}
    result: SearchResult | None = None
    variables: Any = None

    def report(before: int, step: int, terms: Mapping[str, np.ndarray]) -> None:
        if search.on_progress is not None:
            means = {name: float(np.mean(value)) for name, value in terms.items()}
            search.on_progress(*jobs[0], before + step, total, means)

    def show(stage: Stage, state: SearchState) -> None:
        if search.on_preview is not None:
            best = jax.device_get(state.best) if search.mesh else state.best
            draw = partial(_generated, search, stage, jobs[0], 0, starts, best)
            search.on_preview(*jobs[0], lambda: draw()[1])

    for number, stage in enumerate(stages):
        release_memory()
        args = (stage, start_keys, indices, search.context, starts)
        variables, keys = begin(*args, variables, search_keys, jnp.uint32(number))
        if result is not None and result.interrupted:
            continue  # later stages only carry over what was found, for `latents` to read
        run = partial(
            engine.search,
            stage,
            context=search.context,
            starts=starts,
            keys=keys,
            chunk=search.chunk,
            mesh=search.mesh,
            begin=_begin,
            advance=_advance,
        )
        if number and stages[number - 1].coarse and not stage.coarse:
            first, _ = begin(*args, None, search_keys, jnp.uint32(number))
            better = run(variables=variables, steps=0).loss < run(variables=first, steps=0).loss
            variables = engine.select(better, variables, first)
            diagnostics["coarse_phases_kept"] = better
        done = sum(int(earlier.steps) for earlier in stages[:number])
        result = run(
            variables=variables,
            steps=int(stage.steps),
            on_progress=lambda step, _, terms, done=done: report(done, step, terms),
            on_state=partial(show, stage),
        )
        variables = jax.device_get(result.variables) if search.mesh else result.variables
        histories.append(result.history)
        if stage.samples:
            diagnostics |= jax.device_get(jax.vmap(stage.diagnostics)(result.optimiser))
    assert result is not None
    release_memory()
    history = _join(histories)
    solved = [
        _solution(search, stages[-1], job, b, starts, variables, result, history, diagnostics)
        for b, job in enumerate(jobs[:count])
    ]
    return solved, result.interrupted


def _solution(
    search: _Search,
    stage: Stage,
    job: _Job,
    b: int,
    starts: Start,
    variables: Any,
    result: SearchResult,
    history: Mapping[str, np.ndarray],
    diagnostics: Mapping[str, np.ndarray],
) -> Solution:
    """Start `b` of a batch, rendered and corrected."""
    observation = search.observations[job.image]
    latents, generated = _generated(search, stage, job, b, starts, variables)
    degradation = on_crop(search.context.degradation, observation)
    correction, known = None, observation.crop(observation.mask)
    fidelity, part = float(search.method.fidelity), linear_part(degradation)
    if fidelity and part is not None and observation.noise is not None:
        drawn = search.method.noise_std * mask_on_canvas(search.noise_mask, observation)
        noise = observation.noise.unknown_where(known)
        correction = correction_of(
            jnp.asarray(generated),
            observation.crop(starts.target[b]),
            part,
            noise.replace(variance=noise.variance + jnp.square(observation.crop(drawn))),
            jnp.float32(fidelity),
        )
        correction = np.asarray(correction)
    image = add_correction(generated, correction)
    low = degrade(degradation, image)
    residual_l1, residual_psnr = residuals(low, observation.image, known)
    _, generated_psnr = residuals(degrade(degradation, generated), observation.image, known)
    return Solution(
        image=image,
        generated=generated,
        correction=correction,
        low=low,
        latents=jax.tree.map(np.asarray, latents),
        loss=float(result.loss[b]),
        terms={name: float(value[b]) for name, value in result.terms.items()},
        history={name: values[:, b] for name, values in history.items()},
        best_step=int(result.best_step[b]),
        failed_at=int(result.failed_at[b]),
        number=job.solution,
        block=stage.block,
        diagnostics={name: float(value[b]) for name, value in diagnostics.items()},
        residual_l1=residual_l1,
        residual_psnr=residual_psnr,
        generated_psnr=generated_psnr,
    )


def _generated(
    search: _Search, stage: Stage, job: _Job, b: int, starts: Start, variables: Any
) -> tuple[Latents, np.ndarray]:
    """Latents of start `b` of a batch, noise included, and what is drawn from them: (H, W, 3)."""
    generator, observation = search.context.generator, search.observations[job.image]
    start, searched = jax.tree.map(lambda x: x[b], (starts, variables))
    latents = _latents(stage, search.context, start, searched)
    if latents.noise is None:
        latents = latents._replace(noise=generator.stored_noise)
    return latents, observation.crop(redraw(generator, latents, block=stage.block))


def _direct(
    method: Any,
    observation: Observation,
    generator: Generator,
    degradation: Degradation,
    solutions: int,
) -> Result:
    """The result of a method that searches nothing: the same image for each solution."""
    began = time.monotonic()
    image = observation.crop(redraw_direct(method, observation, generator.resolution))
    low = degrade(on_crop(degradation, observation), image)
    residual_l1, residual_psnr = residuals(low, observation.image)
    solution = Solution(
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
    return Result(observation, (solution,) * solutions, method.name, {}, seconds, False)


def _join(histories: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The stages' histories (steps, B) after one another; NaN where a stage lacks a term."""
    names = list(dict.fromkeys(name for history in histories for name in history))

    def parts(name: str) -> Iterator[np.ndarray]:
        for history in histories:
            like = next(iter(history.values()), None)
            if like is not None:
                yield history.get(name, np.full_like(like, np.nan))

    return {name: np.concatenate(list(parts(name))) for name in names}


def upsample(
    image: Any,
    *,
    generator: Generator,
    prior: Any = None,
    method: str | type[Method] | Method = "rls",
    solutions: int = 4,
    key: Key[Array, ""],
    preset: str = "balanced",
    settings: Mapping[str, Value] | None = None,
    degradation: Degradation | None = None,
    perceptual: Any = None,
    noise_mask: np.ndarray | None = None,
    start: Float[Array | np.ndarray, "..."] | None = None,
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
        method: a name (see `methods.METHODS`), a class of your own, or either with its settings.
        solutions: how many starts.
        key: PRNG key; each solution's own key is folded from it and its number.
        preset: "fast", "balanced", "best" or "paper", of a method without settings.
        settings: changes to the preset, by name.
        degradation: A; None is antialiased bicubic down-sampling.
        perceptual: from `load_features("vgg16")`, for methods with an LPIPS term.
        noise_mask: (h, w) in [0, 1]: where the setting "noise_std" adds noise; None: everywhere.
        start: (num_ws, w_dim) styles to begin from, such as `solution.latents.ws`.
        batch: starts searched together on a device.
        mesh: devices to spread the starts over, see `device_mesh`; None takes the first one.
        on_progress: called with (image, solution, step, steps, terms) between chunks.

    Raises:
        UserError: the image, the settings or the method's needs are not met.
    """
    kind = method_named(method) if isinstance(method, str) else method
    chosen = kind.changed(settings or {}) if isinstance(kind, Method) else None
    results = solve(
        [place_on_canvas(image)],
        [key],
        generator=generator,
        prior=prior,
        perceptual=perceptual,
        method=chosen or kind.resolve(preset, settings),
        solutions=solutions,
        degradation=degradation,
        noise_mask=noise_mask,
        start=start,
        batch=min(batch, -(-solutions // (1 if mesh is None else mesh.size))),
        mesh=mesh,
        on_progress=on_progress,
    )
    if not results:
        raise KeyboardInterrupt  # before there was anything to return
    return results[0]
