"""What a person asks of a search, as the page's fields have it, and the method that does it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from stylesr_jax.errors import UserError
from stylesr_jax.methods import method_named
from stylesr_jax.methods.base import Method

MAX_SOLUTIONS = 8
LEVERS = {  # settings that the page shows of the methods that have them
    "fidelity": "Fidelity to the input, 0 to 1",
    "lambda_w": "Weight of the prior",
    "lambda_n": "Weight of the styles' norm",
    "lambda_s": "Weight of the styles' spread",
    "diversity": "Diversity of the solutions",
    "inject_noise": "Noise injected in the layers",
}
NOISE = 0.1  # of the reference where it is drawn, images in [-1, 1]; the user can change it


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to search for.

    Attributes:
        method, preset: by their names.
        changes: settings that differ from the preset's, as text; "" and "auto" change nothing.
        solutions: how many.
        seed: of the starts and their noise.
        noise: of the reference where `mask` says so, as text.
        mask: (h, w) in [0, 1] on the observation, at any size; None for nowhere.
    """

    method: str
    preset: str = "balanced"
    changes: Mapping[str, str] = field(default_factory=dict)
    solutions: int = 4
    seed: int = 0
    noise: str = str(NOISE)
    mask: np.ndarray | None = None


def presets_of(name: str) -> list[str]:
    """The presets of a method, its defaults first."""
    return ["balanced", *method_named(name).presets]


def levers_of(name: str, preset: str) -> dict[str, str | None]:
    """The value, as text, that a preset gives each of LEVERS; None where there is none."""
    kind = method_named(name)
    settings = kind.resolve(preset if preset in presets_of(name) else "balanced").settings
    return {lever: _text(settings[lever]) if lever in settings else None for lever in LEVERS}


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def method_of(request: Request) -> Method:
    """The method with all its settings.

    Raises:
        UserError: a field does not say what its setting takes.
    """
    kind = method_named(request.method)
    texts = {name: text.strip() for name, text in request.changes.items()}
    changes = {name: text for name, text in texts.items() if text not in ("", "auto")}
    method = kind.resolve(request.preset, {k: v for k, v in changes.items() if _has(kind, k)})
    if request.mask is not None and _has(kind, "noise_std"):
        method = method.changed({"noise_std": request.noise.strip() or str(NOISE)})
    if request.solutions == 1 and getattr(method, "diversity", 0.0) and _has(kind, "diversity"):
        method = method.changed({"diversity": 0.0})  # of no use to a single solution
    return method


def _has(kind: type[Method], setting: str) -> bool:
    return setting in kind.resolve().settings


def check_bounds(request: Request) -> None:
    """Raise UserError unless the numbers are such as the page offers."""
    if not 1 <= request.solutions <= MAX_SOLUTIONS:
        raise UserError(f"1 to {MAX_SOLUTIONS} solutions can be searched, not {request.solutions}")
    if not 0 <= request.seed < 2**32:
        raise UserError(f"the seed is a whole number from 0 to {2**32 - 1}, not {request.seed}")


def scribble(layers: Sequence[np.ndarray]) -> np.ndarray | None:
    """Where something was drawn: (h, w) float32, 1 there and 0 elsewhere; None for nowhere.

    Args:
        layers: of the editor, (h, w, 4) uint8 each, all of one size.
    """
    drawn = [layer[..., 3] > 127 for layer in layers if layer.ndim == 3 and layer.shape[2] == 4]
    mask = np.any(drawn, axis=0) if drawn else np.zeros((1, 1), bool)
    return mask.astype(np.float32) if mask.any() else None
