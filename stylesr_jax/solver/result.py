"""What a search found: solutions, and all that belong to one image."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from stylesr_jax.errors import UserError
from stylesr_jax.methods.base import Value
from stylesr_jax.methods.view import Latents
from stylesr_jax.solver.observation import Observation


@dataclass(frozen=True)
class Solution:
    """One high-resolution image and how it was found.

    Attributes:
        image: (H, W, 3) float32 in [-1, 1], clipped, cropped to the observation's shape, and
            corrected so that A takes it to the observation, see `consistency`.
        generated: (H, W, 3) G, what the generator drew; the image before the correction.
        correction: what was added to it, see `consistency.correction`; None for nothing.
        low: (h, w, 3) A(image), not clipped: to be compared with the observation.
        latents: `view.Latents` as NumPy arrays; `redraw` makes the image from them. None
            for a method that searches nothing.
        terms: weighted terms of the objective at the best step; they sum to `loss`.
        history: each term at each step; NaN where no step was made.
        residual_l1: mean |A(image) - y| on [-1, 1].
        residual_psnr: dB, of A(image) against y, data range 2.
        generated_psnr: dB, of A(G) against y, before the correction.
        best_step: the step whose variables were kept.
        failed_at: step at which the search met a NaN or infinity, or -1.
        number: of its start among the image's; 0 begins at the mean style where a method does.
        diagnostics: what a sampler says of its chain, e.g. its acceptance rate; and whether the
            phases with small images were kept, as they made the full image's objective less.
        block: that the activation of its latents enters.
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
    number: int = 0
    diagnostics: dict[str, float] = field(default_factory=dict)
    block: int = 0

    @property
    def is_sound(self) -> bool:
        """Whether its loss is a number."""
        return bool(np.isfinite(self.loss))

    @property
    def status(self) -> str:
        """ "ok", or what went wrong."""
        if self.failed_at < 0:
            return "ok"
        return f"not finite at step {self.failed_at}; kept step {self.best_step}"


@dataclass(frozen=True)
class Result:
    """All solutions of one image, the best by the objective first; draws as they were drawn."""

    observation: Observation
    solutions: tuple[Solution, ...]
    method: str
    settings: dict[str, Value]
    seconds: float
    interrupted: bool

    @property
    def images(self) -> Float[np.ndarray, "solutions H W 3"]:
        """Of all solutions, in [-1, 1]."""
        return np.stack([solution.image for solution in self.solutions])

    @property
    def uncertainty(self) -> Float[np.ndarray, "H W 3"]:
        """Standard deviation of each pixel over the solutions, images in [-1, 1].

        Raises:
            UserError: there are fewer than two solutions.
        """
        if len(self.solutions) < 2:
            raise UserError("a deviation over solutions needs two of them at least: --solutions 2")
        return self.images.std(axis=0, ddof=1)
