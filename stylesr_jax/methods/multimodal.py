"""Multi-modal photo upsampling: PULSE's coordinates, Ranger21, and inter-batch diversity.

Source: Ünalan & Alkilani, "Multi-modal photo upsampling", report.
"""

from collections.abc import Iterator
from typing import ClassVar

import optax

from stylesr_jax.methods.base import Rate, Stage, static
from stylesr_jax.methods.pulse import PULSE, SphereStage
from stylesr_jax.search.optimisers import ranger21


class MultiModal(PULSE):
    """Several different faces (Ünalan & Alkilani); the default is the published setting.

    405 L2 + 0.058 geodesic cross + 0.02 diversity, 200 steps of Ranger21 at 0.4, on 32x32.
    Adaptive clipping and the lookahead's 5 steps and 0.5 are Ranger21's own.
    """

    name = "multimodal"
    summary = "several different faces: PULSE's coordinates, Ranger21 and inter-batch diversity"
    source = "Ünalan & Alkilani, Multi-modal photo upsampling"
    presets: ClassVar = {
        "fast": {"steps": 100},
        "best": {"steps": 400},
        "paper": {"fidelity": 0.0},
        # All four levers at the values of the report's combination.
        "combined": {"noise_std": 0.108, "inject_noise": 0.02},
    }

    diversity: float = 0.02
    steps: int = 200
    rate: Rate = static("warm_up_and_down")
    ramp_up: float = 0.22
    ramp_down: float = 0.28
    lambda_l2: float = 405.0
    lambda_geocross: float = 0.058
    eps: float = 0.0
    noise_layers: int = static(0)
    zero_last: bool = static(False)
    weight_decay: float = 1e-4
    clip: float = 1e-2
    lookahead_steps: int = 5
    lookahead_share: float = 0.5

    def make_stages(self) -> Iterator[Stage]:
        """One search on spheres."""
        yield RangerStage.of(self)


class RangerStage(SphereStage):
    """A search on spheres with Ranger21."""

    def optimiser(self) -> optax.GradientTransformation:
        """Ranger21 without its own schedule."""
        return ranger21(
            weight_decay=self.method.weight_decay,
            clip=self.method.clip,
            period=self.method.lookahead_steps,
            share=self.method.lookahead_share,
        )
