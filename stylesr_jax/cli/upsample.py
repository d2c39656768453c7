"""Super-resolve face photos: python -m stylesr_jax.upsample INPUT... --out DIR.

An input of at most 256 px is itself the low-resolution observation, at any size and aspect: it
is put in the middle of a square canvas, only its own pixels count, and the solutions are cropped
back to its shape. A larger input is first degraded until its longer side is --lr-size, and the
original is kept to score the solutions against.

The pictures show plausible faces that the generator imagines. They do not tell who somebody is:
never use them to identify a person. The embedded weights are for research, non-commercial use;
they carry the biases of FFHQ, the photographs they were trained on.
"""

import argparse
import json
import os
import platform
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stylesr_jax.cli.options import PRESETS, add_scale, change, join, parser_of, whole
from stylesr_jax.errors import UserError, in_a_line

if TYPE_CHECKING:
    import numpy as np

    from stylesr_jax.degradations import Degradation
    from stylesr_jax.runs.claims import Claim
    from stylesr_jax.runs.pipeline import Pipeline
    from stylesr_jax.solver.solve import Observation, Result


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("upsample", __doc__)
    add = parser.add_argument
    add("inputs", nargs="*", metavar="INPUT", help="image files, folders or patterns")
    add("--out", metavar="DIR", help="where DIR/STEM/ is written for each input")
    add("--generator", metavar="NAME|PATH", help="default mobile-ffhq-1024; with --from, its own")
    add("--class", dest="label", type=whole(0, 10**6), metavar="K", help="of a conditional model")
    add("--prior", metavar="FILE", help="flow prior; default: the one that fits the generator")
    add("--method", default="rls", help="which search; see the README (default rls)")
    add("--preset", default="balanced", metavar="NAME", help=f"{', '.join(PRESETS)} and others")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="e.g. rls.lambda_w=0.1")
    add("--solutions", type=whole(1, 1000), default=4, metavar="N", help="default 4")
    add("--steps", type=whole(1, 100_000), metavar="N", help="gradient steps for each solution")
    add("--seed", type=whole(0, 2**32 - 1), default=0, metavar="S", help="default 0")
    add("--lr-size", type=whole(4, 256), default=32, metavar="N", help="for large inputs")
    add("--degradation", metavar="SPEC", help="for large inputs: e.g. 'blur(2)|bicubic(32)'")
    add(
        "--search-degradation",
        choices=("bicubic", "truth"),
        default="bicubic",
        help="what the search assumes of --degradation: plain bicubic (default), or the truth; "
        "small inputs too may be said to have come about so",
    )
    add("--noise-std", metavar="STD", help="Gaussian noise on each solution's reference in [-1, 1]")
    add("--noise-mask", metavar="FILE", help="white where --noise-std adds noise; default: all")
    add("--inject-noise", metavar="STD[@LAYERS]", help="in synthesis layers, e.g. 0.02@3-8")
    add("--diversity", metavar="WEIGHT", help="push an image's solutions apart, e.g. 0.02")
    add("--uncertainty", action="store_true", help="write each pixel's deviation over solutions")
    add("--resume", action="store_true", help="skip inputs that DIR holds a finished report of")
    add_scale(parser)
    add("--from", dest="source", metavar="NPZ", help="redraw the pictures of a solutions.npz")
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument("--quiet", action="store_true", help="print errors only")
    volume.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser


# --- What is printed ------------------------------------------------------------------------


class _Console:
    """Progress as a bar, as JSON lines, or not at all; errors always."""

    def __init__(self, *, quiet: bool, as_json: bool) -> None:
        self.quiet, self.as_json = quiet, as_json
        self._bar: Any = None
        self._shown = ("", 0)  # label and total of the bar
        self._lock = threading.RLock()  # the search and the writing thread both speak

    def say(self, event: str, text: str, **values: Any) -> None:
        with self._lock:
            if self.as_json:
                self._print_json({"event": event, **values})
            elif not self.quiet:
                if self._bar is not None:
                    self._bar.write(text)
                else:
                    print(text, flush=True)

    def error(self, message: str, **values: Any) -> None:
        with self._lock:
            self.close()
            if self.as_json:
                self._print_json({"event": "error", "message": message, **values})
            print(f"error: {message}", file=sys.stderr, flush=True)

    @staticmethod
    def _print_json(values: Mapping[str, Any]) -> None:
        from stylesr_jax.runs.folder import finite

        print(json.dumps(finite(values)), flush=True)

    def progress(self, label: str, done: int, total: int, terms: Mapping[str, float]) -> None:
        if self.as_json:
            values = {name: round(value, 6) for name, value in terms.items()}
            self.say("step", "", label=label, step=done, steps=total, terms=values)
        elif not self.quiet:
            with self._lock:
                self._show(label, done, total, terms)

    def _show(self, label: str, done: int, total: int, terms: Mapping[str, float]) -> None:
        from tqdm import tqdm

        if self._bar is None or self._shown != (label, total):
            self.close()
            self._shown = (label, total)
            self._bar = tqdm(total=total, desc=label, unit="step", leave=False, disable=None)
        self._bar.n = done
        self._bar.set_postfix({name: f"{value:.3g}" for name, value in terms.items()})
        if done >= total:
            self.close()

    def close(self) -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.close()
                self._bar = None


# --- How long it will take ------------------------------------------------------------------


class _Rates:
    """Seconds a step of earlier runs on this machine, kept in the cache for the estimate."""

    def __init__(self, key: str) -> None:
        from stylesr_jax.runtime import files

        self.path, self.key = files.cache_dir() / "rates.json", key

    def _read(self) -> dict[str, float]:
        with suppress(OSError, ValueError):
            return json.loads(self.path.read_text())
        return {}

    def seconds_per_step(self) -> float | None:
        return self._read().get(self.key)

    def record(self, seconds: float) -> None:
        from stylesr_jax.runs.folder import write_json

        with suppress(UserError):  # an unwritable cache costs the estimate, not the run
            write_json(self.path, {**self._read(), self.key: seconds})


def _guessed_seconds_per_step(generator: Any) -> float:
    """A first estimate, from this machine's matrix-product rate measured on the spot.

    A step of the default generator was measured to cost what products of 80 GFLOP do, one of
    StyleGAN2 at 256 px of 75 GFLOP (benchmarks/results); other sizes are scaled by their pixels.
    """
    import jax
    import jax.numpy as jnp

    size, repeats = 1024, 5
    matrix = jnp.ones((size, size))
    product = jax.jit(jnp.dot)
    product(matrix, matrix).block_until_ready()
    began = time.monotonic()
    for _ in range(repeats):
        product(matrix, matrix).block_until_ready()
    rate = repeats * 2 * size**3 / max(time.monotonic() - began, 1e-6)
    reference, cost = (1024, 80e9) if generator.config.architecture == "mobile" else (256, 75e9)
    return cost * (generator.resolution / reference) ** 2 / rate


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


# --- A run ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """Everything loaded and checked before the first input."""

    args: argparse.Namespace
    method: Any
    settings: dict[str, Any]
    generator: Any
    prior: Any
    perceptual: Any
    identity: dict[str, Any]  # what decides all inputs' results, as their reports have it
    noise_mask: Any
    degradation: "Degradation | None"
    mesh: Any


def _changes(args: argparse.Namespace) -> dict[str, str]:
    """--set NAME=VALUE and the levers as changes to the method's settings."""
    changes: dict[str, Any] = {}
    for name in ("noise_std", "diversity"):
        if getattr(args, name) is not None:
            changes[name] = getattr(args, name)
    if args.inject_noise is not None:
        changes["inject_noise"], at, layers = args.inject_noise.partition("@")
        if at:
            changes["inject_layers"] = layers
    for text in args.set:
        method, setting, value = change(text)
        if method != args.method:
            raise UserError(f"--set {text}: the method is {args.method}, not {method}")
        changes[setting] = value
    return changes


def _prepare(args: argparse.Namespace, console: _Console) -> _Run:
    import jax

    from stylesr_jax.degradations import degradation_identity, parse
    from stylesr_jax.images.files import read_mask
    from stylesr_jax.loading import generator_from_file, generator_path
    from stylesr_jax.methods import method_named
    from stylesr_jax.methods.base import stages_of, with_budget
    from stylesr_jax.methods.levers import layer_range
    from stylesr_jax.runtime import files
    from stylesr_jax.runtime.weights import DEFAULT
    from stylesr_jax.solver.solve import device_mesh

    method = method_named(args.method)
    settings = method.resolve(args.preset, _changes(args))
    stages = stages_of(method, settings)
    if args.steps is not None:
        if not stages:
            raise UserError(f"--steps {args.steps}: {method.name} searches nothing")
        settings = with_budget(method, settings, args.steps)
    if args.noise_mask is not None and not settings.get("noise_std"):
        raise UserError("--noise-mask needs --noise-std, e.g. --noise-std 0.1")
    if (args.uncertainty or method.draws) and args.solutions < 2:
        raise UserError("a deviation over solutions needs two of them at least: --solutions 2")
    degradation = parse(args.degradation) if args.degradation else None
    path = generator_path(args.generator or DEFAULT)
    generator = generator_from_file(path)
    if args.label is not None:
        generator = generator.with_class(args.label, key=jax.random.key(0))
    elif generator.label_dim:
        raise UserError(
            f"{generator.name} is conditional: choose --class 0 to {generator.label_dim - 1}"
        )
    layer_range(str(settings.get("inject_layers", "all")), len(generator.noise_shapes))
    prior = prior_sha256 = perceptual = noise_mask = None
    if args.noise_mask is not None:
        noise_mask = read_mask(args.noise_mask)
    if method.needs_prior:
        from stylesr_jax.priors.flow import flow_sha256, load_prior

        prior = load_prior(generator, path=args.prior)
        prior_sha256 = flow_sha256(prior)
    if method.needs_perceptual:
        from stylesr_jax.metrics.lpips import load_features

        perceptual = load_features("vgg16")
    return _Run(
        args,
        method,
        settings,
        generator,
        prior,
        perceptual,
        {
            "method": method.name,
            "settings": settings,
            "seed": args.seed,
            "noise_mask_sha256": files.sha256(args.noise_mask) if args.noise_mask else None,
            "lr_size": args.lr_size,
            "degradation": degradation_identity(degradation),
            "search_degradation": args.search_degradation,
            "class": args.label,
            "weights_sha256": files.sha256(path),
            "prior_sha256": prior_sha256,
        },
        noise_mask,
        degradation,
        device_mesh(args.devices),
    )


def _observe(run: _Run, path: Path) -> tuple["Observation", "Degradation", bool]:
    """The observation of one input, the A to invert, and whether the input is an original."""
    import jax

    from stylesr_jax.images.files import read_image
    from stylesr_jax.solver.solve import (
        DATA_KEY,
        MAX_LOW,
        default_degradation,
        degrade_original,
        key_of,
        observe,
        told,
    )

    image = read_image(path)
    key = key_of(run.args.seed, path.name)
    resolution, truth = run.generator.resolution, run.args.search_degradation == "truth"
    try:
        if max(image.shape[:2]) > MAX_LOW:
            seen = degrade_original(
                image,
                key,
                resolution=resolution,
                lr_size=run.args.lr_size,
                degradation=run.degradation,
                truth=truth,
            )
            return *seen, True
        observation = observe(image)
        if run.degradation is None:
            return observation, default_degradation(observation), False
        if not truth:
            raise UserError(
                f"it is small already, and --degradation damages inputs of over {MAX_LOW} px; "
                "if that is how it came about, add --search-degradation truth"
            )
        data_key = jax.random.fold_in(key, DATA_KEY)
        assumed = told(observation, run.degradation, data_key, resolution=resolution)
        observation = replace(observation, exact=run.degradation.exact)
        return observation, assumed, False
    except UserError as error:
        raise UserError(f"{path.name}: {error}") from error


def _scores(result: "Result", original: "np.ndarray") -> list[dict[str, float]]:
    """PSNR, SSIM and LPIPS of each solution to the original, both at 256 px (longer side)."""
    from stylesr_jax.metrics.image import scores
    from stylesr_jax.metrics.lpips import load_features
    from stylesr_jax.metrics.scorer import at_shape
    from stylesr_jax.runtime.program_cache import kept_jit

    height, width = original.shape[:2]
    scale = 256 / max(height, width)
    size = (max(round(height * scale), 16), max(round(width * scale), 16))
    reference, network = at_shape(original, size), load_features("vgg16")
    score = kept_jit(scores)
    found = [score(solution.image, reference, network) for solution in result.solutions]
    return [{name: float(value) for name, value in one._asdict().items()} for one in found]


def _device() -> str:
    import jax

    device = jax.local_devices()[0]
    kind = platform.processor() or platform.machine() if device.platform == "cpu" else ""
    cores = f", {os.cpu_count()} cores" if device.platform == "cpu" else ""
    return f"{device.platform} ({device.device_kind or kind}{cores}) x {jax.local_device_count()}"


def _report(
    run: _Run, one: "_Input", result: "Result", original: "np.ndarray | None"
) -> dict[str, Any]:
    from stylesr_jax.generators.mobile.native.blocks import blocks_of
    from stylesr_jax.runtime.machine import versions

    observation = result.observation
    report: dict[str, Any] = {
        "status": "interrupted" if result.interrupted else "ok",
        **one.facts,
        "input": str(one.path),
        "input_size": list(observation.image.shape[1::-1]),
        "settings": result.settings,
        "preset": run.args.preset,
        "generator": run.generator.name,
        "device": _device(),
        "blocks": None if run.method.direct else blocks_of(run.generator),
        "host": platform.node(),
        "versions": versions(),
        "seconds": result.seconds,
        "solutions": [
            {
                "file": f"solution_{i}.png",
                "status": solution.status,
                "loss": solution.loss,
                "terms": solution.terms,
                "residual_l1": solution.residual_l1,
                "residual_psnr": solution.residual_psnr,
                "generated_psnr": solution.generated_psnr,
                "best_step": solution.best_step,
                "steps": len(next(iter(solution.history.values()), ())),
                "diagnostics": solution.diagnostics,
            }
            for i, solution in enumerate(result.solutions)
        ],
        "history": {
            f"solution_{i}": {name: values.tolist() for name, values in solution.history.items()}
            for i, solution in enumerate(result.solutions)
        },
        "notice": "These faces are imagined; they do not identify anyone.",
    }
    if original is not None:
        for entry, scores in zip(report["solutions"], _scores(result, original), strict=True):
            entry["against_original_at_256px"] = scores
    return report


def _folders(paths: list[Path], out: Path) -> list[Path]:
    """DIR/STEM for each input; inputs that share a stem get the ending too, then a number."""
    taken: set[str] = set()
    stems = Counter(path.stem for path in paths)
    folders = []
    for path in paths:
        name = path.stem if stems[path.stem] == 1 else path.name
        unique, number = name, 2
        while unique in taken:
            unique, number = f"{name}-{number}", number + 1
        taken.add(unique)
        folders.append(out / unique)
    return folders


def _fingerprint(run: _Run, path: Path) -> dict[str, Any]:
    """What decides an input's result, as its report has it."""
    from stylesr_jax.runtime.files import sha256

    if not path.exists():
        raise UserError(f"{path}: no such file; check the path")
    try:
        content = sha256(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    return {"input_sha256": content, **run.identity}


def _finished(folder: Path, run: _Run, facts: Mapping[str, Any]) -> bool:
    """Whether the folder holds a whole result of the same input and settings."""
    try:
        report = json.loads((folder / "report.json").read_text())
    except (OSError, ValueError):
        return False
    same = all(report.get(name) == value for name, value in facts.items())
    return same and report["status"] == "ok" and len(report["solutions"]) == run.args.solutions


@dataclass(frozen=True)
class _Input:
    """One input that was read.

    Attributes:
        facts: what decides its result, as its report has it.
        degradation: the A that the search inverts.
        was_larger: than an observation may be, so that solutions are scored against the file.
        claim: on a shared folder, until the result is written.
    """

    path: Path
    folder: Path
    facts: dict[str, Any]
    observation: "Observation"
    degradation: "Degradation"
    was_larger: bool
    claim: "Claim | None" = None

    @property
    def canvas(self) -> int:
        """Pixels of a side: inputs of equal canvas are searched together."""
        return self.observation.target.shape[0]


_Place = tuple[Path, Path]  # an input and its folder


class _Work:
    """All inputs of a command, in turns with other processes if the folder is shared."""

    def __init__(self, run: _Run, work: list[_Place], console: _Console, rates: _Rates) -> None:
        from stylesr_jax.runs.claims import Claims

        args = run.args
        self.run, self.work, self.console, self.rates = run, work, console, rates
        self.claims = Claims(Path(args.out) / ".claims", args.stale) if args.share else None
        self.failed: dict[Path, str] = {}
        self.interrupted = False
        self._batches: dict[int, int] = {}  # canvas -> starts on a device
        self._held: list[_Place] = []  # what others have claimed
        self._claimed: list[Claim] = []

    def do(self) -> int:
        """Do all that is left; returns the exit code."""
        from stylesr_jax.runs.claims import work_off

        try:
            work_off(self.work, self._attempt, self.claims)
        finally:
            for claim in self._claimed:
                claim.release()
        if self.interrupted:
            self.console.error("interrupted; the best so far was saved")
            return 130
        if len(self.work) > 1:
            work = sorted(self.work)
            solved = {path for path, folder in work if self._solved_elsewhere(path, folder)}
            failed = {path: text for path, text in self.failed.items() if path not in solved}
            _write_summary(Path(self.run.args.out), work, failed)
        return 2 if self.failed else 0

    def _solved_elsewhere(self, path: Path, folder: Path) -> bool:
        """Whether another worker has solved what failed here."""
        if self.claims is None or path not in self.failed:
            return False
        with suppress(UserError):
            return _finished(folder, self.run, _fingerprint(self.run, path))
        return False

    def _attempt(self, work: Sequence[_Place]) -> list[_Place]:
        """One pass; returns what other workers hold."""
        from stylesr_jax.runs.pipeline import Pipeline, grouped

        self._held = []
        with Pipeline(ahead=8) as pipeline:
            found = pipeline.read(self._read, work)
            for group in grouped(self._claim(found), self._together, self._images_together):
                self._solve(group, pipeline)
                if self.interrupted:
                    break
        return [] if self.interrupted else self._held

    def _read(self, place: _Place) -> tuple[_Place, "_Input | UserError | str"]:
        """On the reading thread: the input, or why there is nothing to do: "done", "held"."""
        path, folder = place
        args = self.run.args
        try:
            facts = _fingerprint(self.run, path)
            if (args.resume or args.share) and _finished(folder, self.run, facts):
                return place, "done"
            if self.claims is not None and not self.claims.is_free(_claim_key(facts, folder)):
                return place, "held"
            return place, _Input(path, folder, facts, *_observe(self.run, path))
        except UserError as error:
            return place, error
        except Exception as error:  # one odd file must not end the folder
            return place, UserError(f"{path}: {in_a_line(error)}")

    def _claim(
        self, found: "Iterator[tuple[_Place, _Input | UserError | str]]"
    ) -> Iterator[_Input]:
        """Those inputs that are this process's to solve."""
        for place, one in found:
            if isinstance(one, UserError):
                self._fail(place, one)
            elif one == "done":
                self.console.say("skip", f"{place[0].name}: already done", input=str(place[0]))
            elif isinstance(one, str):
                self._held.append(place)
            elif self.claims is None:
                yield one
            elif (claim := self.claims.take(_claim_key(one.facts, one.folder))) is None:
                self._held.append(place)
            elif _finished(one.folder, self.run, one.facts):
                claim.release()  # somebody was faster
            else:
                self._claimed.append(claim)
                yield replace(one, claim=claim)

    def _batch(self, one: _Input) -> int:
        """Starts that a device searches together for inputs of this canvas."""
        from stylesr_jax.solver.batching import choose_batch

        run = self.run
        if one.canvas not in self._batches:
            self._batches[one.canvas] = choose_batch(
                run.args.batch,
                starts=len(self.work) * run.args.solutions,
                solutions=run.args.solutions,
                mesh=run.mesh,
                method=run.method,
                settings=run.settings,
                side=one.canvas,
                generator=run.generator,
                prior=run.prior,
                perceptual=run.perceptual,
            )
        return self._batches[one.canvas]

    def _together(self, one: _Input) -> Any:
        """Inputs of equal canvas are searched together, unless each is told its own truth."""
        truth = self.run.degradation is not None and self.run.args.search_degradation == "truth"
        return (one.canvas, one.folder if truth else None)

    def _images_together(self, one: _Input) -> int:
        from stylesr_jax.runs.pipeline import images_together

        devices = 1 if self.run.mesh is None else self.run.mesh.size
        return images_together(self._batch(one) * devices, self.run.args.solutions)

    def _solve(self, group: Sequence[_Input], pipeline: "Pipeline") -> None:
        """Search for inputs of one canvas and hand the results to the writing thread."""
        from stylesr_jax.methods.base import race_steps
        from stylesr_jax.solver.batching import within_memory
        from stylesr_jax.solver.solve import key_of, solve

        run, clock = self.run, list[tuple[float, int, int]]()

        def on_progress(image: int, index: int, step: int, steps: int, terms: Any) -> None:
            before = index * steps - min(index, 1) * race_steps(run.settings)  # the first has none
            clock.append((time.monotonic(), image, before + step))
            label = f"{group[image].path.name} {index + 1}/{run.args.solutions}"
            self.console.progress(label, step, steps, terms)

        def search(batch: int) -> list["Result"]:
            return solve(
                [one.observation for one in group],
                [key_of(run.args.seed, one.path.name) for one in group],
                generator=run.generator,
                prior=run.prior,
                perceptual=run.perceptual,
                method=run.method,
                settings=run.settings,
                solutions=run.args.solutions,
                degradation=group[0].degradation,
                noise_mask=run.noise_mask,
                batch=batch,
                mesh=run.mesh,
                on_progress=on_progress,
            )

        try:
            results, batch = within_memory(self._batch(group[0]), search)
        except Exception as error:
            if len(group) > 1:  # the others may be sound
                for one in group:
                    if not self.interrupted:
                        self._solve([one], pipeline)
            else:
                self._fail((group[0].path, group[0].folder), error)
                self._release(group[0])
            return
        self._batches[group[0].canvas] = batch
        self.console.close()
        whole_group = {id(one.observation): one for one in group}
        self.interrupted |= any(result.interrupted for result in results)
        pipeline.write_group(
            self._write, [(whole_group[id(one.observation)], one) for one in results]
        )
        self.interrupted |= len(results) < len(group)
        alone = [(when, step) for when, image, step in clock if image == 0]
        if batch == 1 and len(alone) > 1 and alone[-1][1] > alone[0][1]:
            self.rates.record((alone[-1][0] - alone[0][0]) / (alone[-1][1] - alone[0][1]))

    def _write(self, one: _Input, result: "Result") -> None:
        """On the writing thread: an input's folder, unless another process took it over."""
        try:
            if one.claim is not None and not one.claim.is_mine():
                self._held.append((one.path, one.folder))
            else:
                _write_folder(self.run, one, result, self.console)
        except Exception as error:  # of one input; the others are written
            self._fail((one.path, one.folder), error)
        finally:
            self._release(one)

    def _release(self, one: _Input) -> None:
        if one.claim is not None:
            one.claim.release()
            self._claimed.remove(one.claim)

    def _fail(self, place: _Place, error: Exception) -> None:
        path, folder = place
        message = in_a_line(error)
        self.failed[path] = message if path.name in message else f"{path.name}: {message}"
        self.console.error(self.failed[path], input=str(path))
        with suppress(OSError):
            folder.rmdir()  # if it is empty


def _claim_key(facts: Mapping[str, Any], folder: Path) -> str:
    from stylesr_jax.runs.claims import content_key

    return content_key([facts, folder.name])


def _write_folder(run: _Run, one: _Input, result: "Result", console: _Console) -> None:
    """Write an input's folder and say what it holds."""
    from stylesr_jax.images.files import read_image
    from stylesr_jax.runs.folder import write_result
    from stylesr_jax.runtime.machine import versions
    from stylesr_jax.runtime.weights import DEFAULT

    path, folder = one.path, one.folder
    original = read_image(path) if one.was_larger else None
    config = {
        "generator": run.args.generator or DEFAULT,
        "weights_sha256": run.identity["weights_sha256"],
        "class": run.args.label,
        "degradation": str(one.degradation),
        "block": next((s.block for s in run.method.stages(run.settings)[::-1]), 0),
        "method": run.method.name,
        "settings": run.settings,
        "seed": run.args.seed,
        "input": str(path),
        "versions": versions(),
    }
    write_result(
        folder,
        result,
        report=_report(run, one, result, original),
        config=config,
        original=original,
        uncertainty=len(result.solutions) > 1 and (run.args.uncertainty or run.method.draws),
    )
    residuals = ", ".join(f"{solution.residual_psnr:.1f}" for solution in result.solutions)
    console.say(
        "result",
        f"{path.name}: {len(result.solutions)} solution(s) in {_duration(result.seconds)}, "
        f"re-downscaled they match the input to {residuals} dB\n  {folder / 'grid.png'}",
        input=str(path),
        folder=str(folder),
        seconds=round(result.seconds, 2),
        residual_psnr=[round(solution.residual_psnr, 3) for solution in result.solutions],
        status="interrupted" if result.interrupted else "ok",
    )
    for i, solution in enumerate(result.solutions):
        if solution.failed_at >= 0:
            text = f"  solution {i}: {solution.status}"
            console.say("warning", text, solution=i, status=solution.status)


def _run_all(args: argparse.Namespace, console: _Console) -> int:
    from stylesr_jax.generators.mobile.native import library as native_library
    from stylesr_jax.runtime import files, weights

    paths, mistaken = _inputs(args.inputs, console)
    _check_writable(Path(args.out))
    if args.generator in (None, weights.DEFAULT):  # before JAX is imported, which takes a second
        native_library.begin_early()
        with suppress(UserError):  # it is raised where the weights are needed
            files.begin_sha256(weights.find_weights(f"{weights.DEFAULT}.safetensors"))
    try:
        code = _run_configured(args, paths, console)
    finally:
        native_library.give_up()
    return code or (2 if mistaken else 0)


def _run_configured(args: argparse.Namespace, paths: list[Path], console: _Console) -> int:
    from stylesr_jax.runtime.startup import configure, gc_paused

    # What decides which programs are called, but for an input's own size.
    kind = {**vars(args), **dict.fromkeys(("inputs", "out", "seed", "steps", "quiet", "json"))}
    with gc_paused():
        from stylesr_jax.runtime.program_cache import prefetch

        configure()
        process, processes = join(args)
    with prefetch(repr(sorted(kind.items()))):
        with gc_paused():
            run = _prepare(args, console)
        return _run_prepared(run, paths, console, process, processes)


def _run_prepared(
    run: _Run, paths: list[Path], console: _Console, process: int, processes: int
) -> int:
    from stylesr_jax.methods.base import full_steps, race_steps, sketched

    args, out = run.args, Path(run.args.out)
    canvas = _likely_canvas(paths[0], args.lr_size)
    stages = sketched(run.method.stages(run.settings), run.generator, canvas)
    steps = sum(int(run.settings[stage.steps]) for stage in stages)
    # A step's mean time depends on how many of them are sketches.
    mixture = "+".join(f"{run.settings[stage.steps]}@{stage.stop or 'full'}" for stage in stages)
    rates = _Rates(f"{run.method.name} {mixture} {run.generator.name} {_device()}")
    known = per_step = rates.seconds_per_step()
    if per_step is None:
        share = full_steps(stages, run.settings) / max(steps, 1)
        per_step = share * _guessed_seconds_per_step(run.generator)
    each = args.solutions * steps + (args.solutions - 1) * race_steps(run.settings)
    seconds = per_step * len(paths) * each + 20  # 20 for compiling
    estimate = f"about {_duration(seconds)}" + ("" if known else " (a first guess)")
    console.say(
        "start",
        f"device {_device()}; generator {run.generator.name} ({run.generator.resolution} px); "
        f"{run.method.name}, {args.preset}: {len(paths)} input(s) x {args.solutions} solution(s) "
        f"x {steps} steps; estimated time: {estimate}",
        device=_device(),
        generator=run.generator.name,
        inputs=len(paths),
        solutions=args.solutions,
        steps=steps,
        estimated_seconds=round(seconds, 1),
    )
    work = list(zip(paths, _folders(paths, out), strict=True))
    first = len(work) * process // processes  # processes begin at different places
    return _Work(run, work[first:] + work[:first], console, rates).do()


def _inputs(texts: Sequence[str], console: _Console) -> tuple[list[Path], int]:
    """The images of all inputs, and how many inputs named none, which are reported.

    Raises:
        UserError: there is no image at all; the message is the first input's.
    """
    from stylesr_jax.images.files import images_of

    paths: dict[Path, None] = {}
    errors: list[tuple[str, UserError]] = []
    for text in texts:
        try:
            paths.update(dict.fromkeys(images_of(text)))
        except UserError as error:
            errors.append((text, error))
    for text, error in errors if paths else errors[1:]:
        console.error(str(error), input=text)
    if not paths:
        raise errors[0][1]
    return list(paths), len(errors)


def _likely_canvas(path: Path, lr_size: int) -> int:
    """Pixels of a side of an input's canvas, from its header, for the estimate."""
    from PIL import Image

    from stylesr_jax.solver.solve import MAX_LOW

    with suppress(Exception), Image.open(path) as image:
        longer = max(image.size)
        return longer if longer <= MAX_LOW else lr_size
    return lr_size


def _write_summary(out: Path, work: list[tuple[Path, Path]], failed: Mapping[Path, str]) -> None:
    """DIR/summary.json: what became of each input, from the reports of whoever worked on it."""
    from stylesr_jax.runs.folder import write_json

    entries = []
    for path, folder in work:
        entry: dict[str, Any] = {"input": str(path), "folder": folder.name}
        if path in failed:
            entries.append({**entry, "status": "failed", "message": failed[path]})
            continue
        try:
            report = json.loads((folder / "report.json").read_text())
            entry |= {name: report[name] for name in ("status", "seconds", "host")}
            entry["residual_l1"] = [one["residual_l1"] for one in report["solutions"]]
        except (OSError, ValueError, KeyError):  # another run into the same folder is at it
            entry["status"] = "unfinished"
        entries.append(entry)
    write_json(out / "summary.json", {"inputs": entries})


def _check_writable(out: Path) -> None:
    from stylesr_jax.runtime import files

    probe = out / ".stylesr-write-test"
    with files.atomic_path(probe):
        pass
    probe.unlink(missing_ok=True)  # of another process, perhaps


def _redraw(args: argparse.Namespace, console: _Console) -> int:
    """Draw the pictures of a solutions.npz again, beside it or in --out."""
    from stylesr_jax.images.files import write_png
    from stylesr_jax.loading import generator_from_file, generator_path
    from stylesr_jax.methods import method_named
    from stylesr_jax.runs.folder import read_solutions
    from stylesr_jax.runtime import files
    from stylesr_jax.runtime.startup import configure
    from stylesr_jax.solver.solve import add_correction, redraw, redraw_direct

    configure()
    config = read_solutions(args.source).config
    path = generator_path(args.generator or config["generator"])
    if files.sha256(path) != config["weights_sha256"]:
        raise UserError(
            f"{args.source} was drawn with other weights than {path} "
            f"(sha256 {config['weights_sha256'][:12]}...); give the same with --generator"
        )
    generator = generator_from_file(path)
    saved = read_solutions(args.source, generator)
    out = Path(args.out) if args.out else Path(args.source).parent
    for i, latents in enumerate(saved.latents):
        if latents is None:
            method = method_named(config["method"])
            image = redraw_direct(method, saved.observation, generator.resolution)
        else:
            image = redraw(generator, latents, block=int(config["block"]))
        image = add_correction(saved.observation.crop(image), saved.corrections[i])
        write_png(out / f"solution_{i}.png", image)
        console.say("result", f"{out / f'solution_{i}.png'}", file=str(out / f"solution_{i}.png"))
    return 0


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 well, 2 an error said on stderr, 130 Ctrl-C."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.source is None and not args.inputs:
        parser.error("give at least one INPUT, or --from solutions.npz")
    if args.source is None and not args.out:
        parser.error("--out DIR is missing")
    console = _Console(quiet=args.quiet, as_json=args.json)
    try:
        return _redraw(args, console) if args.source else _run_all(args, console)
    except UserError as error:
        console.error(str(error))
        return 2
    except KeyboardInterrupt:
        console.error("interrupted")
        return 130
    finally:
        console.close()


if __name__ == "__main__":
    sys.exit(main())
