"""Scores of pictures against originals, all at stated sizes.

The feature networks are read once and the original is embedded once for all methods.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from stylesr_jax.degradations import scaled_size
from stylesr_jax.errors import UserError
from stylesr_jax.metrics import image as metrics
from stylesr_jax.metrics.image import at_shape, at_size
from stylesr_jax.metrics.inception import inception_features
from stylesr_jax.metrics.lpips import (
    SMALLEST,
    Net,
    Params,
    embedding_distance,
    load_features,
    lpips_embedding,
    pooled_features,
)


class Measure(NamedTuple):
    """How a score is shown."""

    heading: str
    digits: int
    better: int  # 1: higher is better, -1: lower, 0: neither


MEASURES = {
    "psnr": Measure("PSNR", 2, 1),
    "ssim": Measure("SSIM", 3, 1),
    "lpips_vgg": Measure("LPIPS-VGG", 3, -1),
    "lpips_alex": Measure("LPIPS-Alex", 3, -1),
    "niqe": Measure("NIQE", 2, -1),
    "low_l1": Measure("low-res L1", 4, -1),
    "low_psnr": Measure("low-res PSNR", 1, 1),
    "diversity_lpips": Measure("diversity LPIPS", 3, 1),
    "diversity_l1": Measure("diversity L1", 3, 1),
    "seconds": Measure("s / solution", 1, 0),
}
# distances between distributions: name -> heading; lower is better
FRECHET = {"frechet_vgg16": "Fréchet-VGG16", "fid": "FID"}


@dataclass(frozen=True)
class Sizes:
    """At which size (longer side, pixels) pictures are compared.

    Attributes:
        score: PSNR, SSIM, LPIPS and diversity.
        niqe: NIQE.
        frechet: the Fréchet distance on VGG16 features; FID has a size of its own.
    """

    score: int = 256
    niqe: int = 512
    frechet: int = 128

    def refuse_narrow(self, shape: tuple[int, ...]) -> None:
        """Check that a picture (height, width, ...) is wide enough to be compared.

        Raises:
            UserError: its shorter side leaves nothing that the feature networks see.
        """
        asked = (("--score-size", self.score, "alexnet"), ("--frechet-size", self.frechet, "vgg16"))
        for option, size, net in asked:
            if min(scaled_size(shape, size)) < SMALLEST[net]:
                raise UserError(
                    f"{shape[1]}x{shape[0]} px is too narrow to be compared at {size} px; leave "
                    f"it out, or give a larger {option}"
                )


class Scorer:
    """Scores of pictures against originals; the feature networks are read once."""

    def __init__(self, sizes: Sizes, inception: Params | None = None) -> None:
        self.sizes = sizes
        nets: tuple[Net, ...] = ("vgg16", "alexnet")
        self._networks = {net: load_features(net) for net in nets}
        self._embed = jax.jit(lpips_embedding, static_argnames="net")
        self._inception = inception
        self._inception_features = jax.jit(lambda x, params: inception_features(x, params=params))
        self._original: tuple[Any, Any, Any] | None = None  # the last one, small, and embedded
        self._distance = jax.jit(embedding_distance)
        self._pooled = jax.jit(lambda x, params: pooled_features(x, params=params))

    def _embedded(self, small: Any) -> dict[str, Any]:
        return {n: self._embed(small, net=n, params=p) for n, p in self._networks.items()}

    def against(
        self, image: Float[np.ndarray, "H W 3"], original: Float[np.ndarray, "h w 3"]
    ) -> dict[str, float]:
        """PSNR, SSIM and LPIPS of a picture in [-1, 1] to its original."""
        if self._original is None or self._original[0] is not original:
            small = at_size(original, self.sizes.score)
            self._original = (original, small, self._embedded(small))
        _, b, reference = self._original
        a = at_shape(image, b.shape[:2])  # of non-square pictures a pixel less may be known
        embedded = self._embedded(a)
        return {
            "psnr": float(metrics.psnr(a, b, data_range=2.0)),
            "ssim": float(metrics.ssim(a, b, data_range=2.0)),
            "lpips_vgg": float(self._distance(embedded["vgg16"], reference["vgg16"])),
            "lpips_alex": float(self._distance(embedded["alexnet"], reference["alexnet"])),
        }

    def niqe(self, image: Any) -> float | None:
        """NIQE of a picture; None where its size is too small, or the picture is flat."""
        try:
            return float(metrics.niqe(at_size(image, self.sizes.niqe)))
        except UserError:
            return None

    def features(self, image: Any) -> dict[str, Float[np.ndarray, " _"]]:
        """The vectors whose distributions are compared, by the distance's name."""
        small = at_size(image, self.sizes.frechet)
        vectors = {"frechet_vgg16": self._pooled(small, self._networks["vgg16"])}
        if self._inception is not None:
            vectors["fid"] = self._inception_features(image, self._inception)
        return {name: np.asarray(vector) for name, vector in vectors.items()}

    def diversity(self, images: Sequence[Any]) -> dict[str, float]:
        """Mean pairwise LPIPS-VGG and mean absolute difference of several solutions."""
        small = [at_size(image, self.sizes.score) for image in images]
        differences = metrics.diversity(small, net="vgg16", params=self._networks["vgg16"])
        return {"diversity_lpips": differences.lpips, "diversity_l1": differences.pixels}


def mean_scores(row: Mapping[str, Any]) -> dict[str, float | None]:
    """A row's scores, averaged over its solutions; None where one is missing."""
    solutions = row["solutions"]
    means: dict[str, float | None] = {}
    for name in MEASURES:
        values = [solution.get(name, row.get(name)) for solution in solutions]
        scored = [value for value in values if value is not None]
        means[name] = sum(scored) / len(scored) if len(scored) == len(values) else None
    return means
