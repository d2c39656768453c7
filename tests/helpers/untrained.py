"""Untrained generators and priors for them, as files that the commands read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from convert.state_dict import prepare
from stylesr_jax.generators.base import Generator, measure_statistics
from stylesr_jax.generators.registry import config_to_dict
from stylesr_jax.priors.autoregressive import FlowConfig, init_flow
from stylesr_jax.priors.flow import Prior, save_prior
from stylesr_jax.priors.whitening import fit_whitening
from stylesr_jax.runtime import weights


def untrained_files(
    folder: Path,
    name: str,
    state: Mapping[str, Any],
    flow_config: FlowConfig,
    *,
    floor: float,
    draws: int,
) -> dict[str, Path]:
    """A StyleGAN2 from `state` and a prior for it whose flow is the identity.

    Returns:
        Their files, "generator" and "prior"; the generator is called `name`.
    """
    params, config = prepare(state, name=name)
    generator = Generator(jax.tree.map(jnp.asarray, params), {}, None, config)
    statistics = measure_statistics(jax.random.key(0), generator, draws=draws)
    generator = generator.replace(statistics=statistics)
    files = {kind: folder / f"{name}-{kind}.safetensors" for kind in ("generator", "prior")}
    header = {"kind": "generator", "config": config_to_dict(config)}
    weights.save(files["generator"], {"params": params, "statistics": statistics}, header)
    whitening = fit_whitening(jax.random.key(1), generator, floor=floor, draws=draws)
    prior = Prior(whitening, init_flow(jax.random.key(2), flow_config), flow_config)
    save_prior(files["prior"], prior, generator, header={})
    return files


def with_notes(file: Path, folder: Path, notes: Any) -> Path:
    """A copy of a generator's file in a folder, with a converter's notes."""
    tensors, header = weights.load(file)
    weights.save(folder / "noted.safetensors", tensors, {**header, "notes": notes})
    return folder / "noted.safetensors"
