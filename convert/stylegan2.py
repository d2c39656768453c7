"""Converts a published StyleGAN2 generator to this project's format.

    python -m convert.stylegan2 IN --out OUT.safetensors

IN is a PyTorch pickle of stylegan2-ada-pytorch or stylegan3 (StyleGAN2 configurations), a
TensorFlow pickle of StyleGAN2, a checkpoint of rosinality/stylegan2-pytorch, a bare state dict
(.npz, .safetensors), or MobileStyleGAN's OpenVINO wheel. Which of them it is, is told from the
bytes. Nothing that a file holds is executed, and NumPy is all that is needed to read it.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convert import openvino
from convert.detect import is_openvino, map_file, read_source
from convert.state_dict import Source, checked, require_names
from stylesr_jax.errors import UserError, exit_code
from stylesr_jax.generators.base import Generator, measure_statistics
from stylesr_jax.generators.registry import config_to_dict
from stylesr_jax.generators.stylegan2 import prepare
from stylesr_jax.runtime import files, weights

STATISTICS_SEED = 0
DRAWS = 100_000
LARGEST = 1e15  # the sum of the squares of a layer's weights must not overflow
UNKNOWN_LICENCE = "unknown: ask whoever published the file"


def _known_file(digest: str) -> dict[str, Any]:
    """The entry of the published file with this sha256 in the registry, or {}."""
    registry = json.loads(weights.find_weights("registry.json").read_text())
    entries = (entry for entry in registry["models"].values() if entry.get("sha256") == digest)
    return next(entries, {})


def _require_plausible(params: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not np.max(np.abs(leaf), initial=0) < LARGEST:  # also where it is not a number
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(f"{where} holds implausibly large values; the file is damaged")


def build(source: Source, *, name: str, draws: int = DRAWS) -> Generator:
    """A generator from what a file holds, its statistics measured over `draws` latents.

    Labels of a conditional generator are drawn uniformly. The mean w is the file's where it
    has one, else measured.

    Raises:
        UserError: the arrays are not a StyleGAN2 generator's.
    """
    source = checked(source)
    # Damaged weights may overflow here; the check below names them.
    with np.errstate(all="ignore"):
        params, config = prepare(
            source.state,
            name=name,
            conv_clamp=source.conv_clamp,
            lr_multiplier=source.lr_multiplier,
            architecture=source.architecture,
        )
    require_names(source.state, config)
    _require_plausible(params)
    generator = Generator(jax.tree.map(jnp.asarray, params), {}, None, config)
    key = jax.random.key(STATISTICS_SEED)
    statistics = measure_statistics(key, generator, draws=draws)
    stored = source.state.get("mapping.w_avg")
    if stored is not None:
        if stored.shape != (config.w_dim,):
            raise UserError(f"the mean w has shape {stored.shape}, not ({config.w_dim},)")
        statistics["w_mean"] = jnp.asarray(stored)
    _require_plausible(statistics)
    return generator.replace(statistics=statistics)  # type: ignore[attr-defined]


def convert_file(
    path: str | os.PathLike[str], out: str | os.PathLike[str], *, conv_clamp: float | None = None
) -> tuple[str, ...]:
    """Convert the generator in the file `path` to this project's format at `out`.

    Args:
        path: the published file.
        out: the safetensors file to write.
        conv_clamp: bound of the layers' outputs, for state dicts, which do not record it.

    Returns:
        Remarks for the user, one sentence each.

    Raises:
        UserError: the file cannot be read, is damaged, or is not a StyleGAN2 generator.
    """
    path, out = Path(path), Path(out)
    data = map_file(path)
    try:
        if is_openvino(data):
            openvino.convert_file(path, out)
            return ()
        source = read_source(data)
        digest = files.sha256(path)
        known = _known_file(digest)
        if conv_clamp is not None:
            if not source.format.startswith("state dict"):
                raise UserError(f"a {source.format} records its clamp itself; leave it out")
            source = Source(**{**vars(source), "conv_clamp": conv_clamp, "remarks": ()})
        generator = build(source, name=known.get("name", path.stem))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    header = {
        "kind": "generator",
        "config": config_to_dict(generator.config),
        "source": known.get("title", path.name),
        "source_format": source.format,
        "source_sha256": digest,
        "licence": known.get("licence", UNKNOWN_LICENCE),
    }
    tensors = {"params": generator.params, "statistics": generator.statistics}
    weights.save(out, jax.tree.map(np.asarray, tensors), header)
    return source.remarks


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m convert.stylegan2",
        description="Convert a published StyleGAN2 generator. Nothing in the file is executed.",
    )
    parser.add_argument("source", type=Path, metavar="IN", help="the published file")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT.safetensors")
    parser.add_argument(
        "--conv-clamp",
        type=float,
        help="clamp of the layers' outputs, for a bare state dict (256 for networks trained "
        "in half precision)",
    )
    args = parser.parse_args(argv)
    return exit_code(lambda: _convert(args))


def _convert(args: argparse.Namespace) -> None:
    remarks = convert_file(args.source, args.out, conv_clamp=args.conv_clamp)
    header = weights.read_header(args.out)
    for remark in remarks:
        print(f"note: {remark}", file=sys.stderr)
    config = header["config"]
    print(f"{header['source_format']}, sha256 {header['source_sha256']}")
    print(f"licence: {header['licence']}")
    print(
        f"{args.out}: {config['architecture']} {config['resolution']} px, "
        f"{config['num_ws']} styles of {config['w_dim']}, "
        f"{config['label_dim'] or 'no'} classes, {args.out.stat().st_size / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    sys.exit(main())
