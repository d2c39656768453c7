"""Image heads of MobileStyleGAN: fitted apart from the network, joined to it when it is loaded.

A head turns an early block's features into an approximation of the shrunken image, so that a
search can begin without rendering what its degradation throws away. `python -m
stylesr_jax.fit_heads` fits them.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from stylesr_jax.generators.base import Generator
from stylesr_jax.generators.mobile.network import MobileConfig
from stylesr_jax.runtime import files, weights
from stylesr_jax.runtime.pytrees import network_sha256

EMBEDDED = ("heads-mobile-ffhq-1024.safetensors",)


def synthesis_sha256(generator: Generator) -> str:
    """Which synthesis network it is, whatever its mapping network."""
    return network_sha256(generator.params["synthesis"])


def with_heads(generator: Generator, heads: Mapping[int, Any]) -> Generator:
    """A MobileStyleGAN generator with image heads.

    Args:
        generator: without heads, or with others.
        heads: resolution of the features -> parameters of their `ImageHead`.
    """
    sizes = tuple(sorted(heads))
    named = jax.device_put({f"head{size}": heads[size] for size in sizes})
    return generator.replace(  # type: ignore[attr-defined]
        params={**generator.params, "heads": named},
        config=dataclasses.replace(generator.config, heads=sizes),
    )


def save_heads(
    path: str | os.PathLike[str],
    generator: Generator,
    heads: Mapping[int, Any],
    header: Mapping[str, Any],
) -> None:
    """Write heads in half precision, with what they were fitted for."""
    half = jax.tree.map(lambda x: np.asarray(x, np.float16), heads)
    facts = {
        **header,
        "kind": "heads",
        "generator": generator.name,
        "synthesis_sha256": synthesis_sha256(generator),
    }
    weights.save(path, {str(size): params for size, params in half.items()}, facts)


def heads_folder() -> Path:
    """Where heads that the user fitted are kept."""
    return files.cache_dir() / "heads"


def with_known_heads(generator: Generator) -> Generator:
    """The generator with the heads that were fitted for it, embedded or by the user, if any."""
    if not isinstance(generator.config, MobileConfig):
        return generator
    fact = {"synthesis_sha256": synthesis_sha256(generator)}
    heads = weights.load_fitted(fact, EMBEDDED, heads_folder())
    if heads is None:
        return generator
    return with_heads(generator, {int(size): params for size, params in heads.items()})
