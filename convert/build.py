"""From a file's bytes to a generator in this project's format, whatever the file's format."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convert.detect import is_openvino, read_source
from convert.embedded import openvino
from convert.parameters import Network, Source, checked
from convert.raw import map_file
from convert.state_dict import image_channels, prepare
from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Generator, measure_statistics
from stylesr_jax.generators.registry import config_to_dict
from stylesr_jax.generators.stylegan2 import StyleGAN2Config
from stylesr_jax.runtime import files, weights

STATISTICS_SEED = 0
DRAWS = 100_000
LARGEST = 1e15  # the sum of the squares of a layer's weights must not overflow
UNKNOWN_LICENCE = "unknown: ask whoever published the file"
GREY = "the network makes grey pictures; all three channels are the same"
_DENSE = ("weight", "bias")
_LAYER = (*_DENSE, "affine.weight", "affine.bias")
_NOISE = ("noise_const", "noise_strength")


def _known_file(digest: str) -> dict[str, Any]:
    """The entry of the published file with this sha256 in the registry, or {}."""
    registry = json.loads(weights.find_weights("registry.json").read_text())
    entries = (entry for entry in registry["models"].values() if entry.get("sha256") == digest)
    return next(entries, {})


def _require_names(state: Mapping[str, np.ndarray], config: StyleGAN2Config) -> None:
    """Check that a state dict holds nothing but what its configuration uses.

    A modified network would otherwise be converted without its additions.

    Raises:
        UserError: there are more arrays.
    """
    expected = {"mapping.w_avg", "synthesis.b4.const"}
    dense = [f"mapping.fc{i}" for i in range(len(config.mapping_widths))]
    expected |= {f"{layer}.{part}" for layer in [*dense, "mapping.embed"] for part in _DENSE}
    for size in config.block_resolutions:
        layers = ["conv1"] if size == 4 else ["conv0", "conv1"]
        if config.skeleton == "skip" or size == config.resolution:
            layers.append("torgb")
        expected |= {f"synthesis.b{size}.{layer}.{part}" for layer in layers for part in _LAYER}
        for layer in ("conv0", "conv1") if config.use_noise else ():
            expected |= {f"synthesis.b{size}.{layer}.{part}" for part in _NOISE}
        if config.skeleton == "resnet":
            expected.add(f"synthesis.b{size}.skip.weight")
    names = {name for name in state if not name.endswith(".resample_filter")}
    if unknown := sorted(names - expected):
        raise UserError(
            f"the generator has {unknown[0]!r:.80}, which StyleGAN2 does not; "
            "it is of a modified kind that is not read"
        )


def _require_plausible(params: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not np.max(np.abs(leaf), initial=0) < LARGEST:  # also where it is not a number
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(f"{where} holds implausibly large values; the file is damaged")


def to_network(source: Source, *, name: str) -> Network:
    """The parameters and configuration of a StyleGAN2 generator.

    Raises:
        UserError: the arrays are not a StyleGAN2 generator's.
    """
    source = checked(source)
    # Damaged weights may overflow here; `build` names them.
    with np.errstate(all="ignore"):
        params, config = prepare(
            source.state,
            name=name,
            conv_clamp=source.conv_clamp,
            lr_multiplier=source.lr_multiplier,
            architecture=source.architecture,
        )
    _require_names(source.state, config)
    grey = (GREY,) if image_channels(source.state) == 1 else ()
    w_mean = source.state.get("mapping.w_avg")
    return Network(params, config, source.format, w_mean, (*source.remarks, *grey))


def build(network: Network, *, draws: int = DRAWS) -> Generator:
    """A generator from what a file holds, its statistics measured over `draws` latents.

    Labels of a conditional generator are drawn uniformly. The mean w is the file's where there
    is one, else measured.

    Raises:
        UserError: the weights or the mean w are implausible.
    """
    _require_plausible(network.params)
    config, w_mean = network.config, network.w_mean
    generator = Generator(jax.tree.map(jnp.asarray, network.params), {}, None, config)
    statistics = measure_statistics(jax.random.key(STATISTICS_SEED), generator, draws=draws)
    if w_mean is not None:
        if w_mean.shape != (config.w_dim,):
            raise UserError(f"the mean w has shape {w_mean.shape}, not ({config.w_dim},)")
        statistics["w_mean"] = jnp.asarray(w_mean, jnp.float32)
    _require_plausible(statistics)
    return generator.replace(statistics=statistics)  # type: ignore[attr-defined]


def _with_clamp(source: Source | Network, conv_clamp: float | None) -> Source | Network:
    """The source with a clamp that the user gave, where the file does not record one."""
    if conv_clamp is None:
        return source
    if not isinstance(source, Source) or not source.clamp_unknown:
        raise UserError(f"a {source.format} records its clamp itself; leave it out")
    remarks = tuple(remark for remark in source.remarks if "clamped" not in remark)
    return Source(**{**vars(source), "conv_clamp": conv_clamp, "remarks": remarks})


def _refuse_own_input(path: Path, out: Path) -> None:
    if out.is_dir():
        raise UserError(f"{out} is a folder; give the path of the file to write")
    if path.exists() and out.exists() and path.samefile(out):
        raise UserError(f"--out {out} is the input file itself; give another name")


def convert_file(
    path: str | os.PathLike[str], out: str | os.PathLike[str], *, conv_clamp: float | None = None
) -> tuple[str, ...]:
    """Convert the generator in the file `path` to this project's format at `out`.

    Args:
        path: the published file.
        out: the safetensors file to write; its header keeps the remarks as "notes".
        conv_clamp: bound of the layers' outputs, for state dicts, which do not record it.

    Returns:
        Remarks for the user, one sentence each.

    Raises:
        UserError: the file cannot be read, is damaged, or is not a StyleGAN2 generator, or `out`
            cannot be written or is the same file.
    """
    path, out = Path(path), Path(out)
    data = map_file(path)
    _refuse_own_input(path, out)
    try:
        if is_openvino(data):
            openvino.convert_file(path, out)
            return ()
        source = _with_clamp(read_source(data), conv_clamp)
        digest = files.sha256(path)
        known = _known_file(digest)
        if isinstance(source, Source):
            source = to_network(source, name=known.get("name", path.stem))
        generator = build(source)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    header = {
        "kind": "generator",
        "config": config_to_dict(generator.config),
        "source": known.get("title", path.name),
        "source_format": source.format,
        "source_sha256": digest,
        "licence": known.get("licence", UNKNOWN_LICENCE),
        "notes": list(source.remarks),
    }
    tensors = {"params": generator.params, "statistics": generator.statistics}
    weights.save(out, jax.tree.map(np.asarray, tensors), header)
    return source.remarks
