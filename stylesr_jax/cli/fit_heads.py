"""Fit image heads for a MobileStyleGAN generator: python -m stylesr_jax.fit_heads.

Each head learns, by distillation, what the shrunken full image looks like from early features and
the styles still to come. Pictures are drawn from styles like those that a search meets, rendered
in full once, and kept beside the result until it is written, so that a killed run goes on.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from stylesr_jax.errors import UserError, exit_code
from stylesr_jax.generators.mobile.fit_heads import (
    HELD_OUT,
    PICTURE,
    SIZES,
    Say,
    draw_pictures,
    fit_head,
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stylesr_jax.fit_heads",
        description="Fit image heads for a MobileStyleGAN generator, so that searches can begin "
        "at a low resolution. StyleGAN2 with skip connections has such images of its own.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--generator", default="mobile-ffhq-1024", metavar="NAME|PATH", help="whose heads")
    add("--out", type=Path, help="file to write (default: in the user's cache)")
    add("--draws", type=int, default=2000, metavar="N", help="pictures to learn from")
    add("--steps", type=int, default=1500, metavar="N", help="optimiser steps for each head")
    add("--learning-rate", type=float, default=2e-3, help="peak")
    add("--seed", type=int, default=0, help="of all draws")
    add("--quiet", action="store_true", help="no progress")
    return parser


def _run(options: argparse.Namespace) -> Path:
    import jax

    from stylesr_jax.generators.mobile.heads import heads_folder, save_heads, synthesis_sha256
    from stylesr_jax.generators.mobile.network import MobileConfig
    from stylesr_jax.loading import load_generator
    from stylesr_jax.runtime.machine import describe_machine
    from stylesr_jax.runtime.startup import configure

    configure()
    generator = load_generator(options.generator)
    if not isinstance(generator.config, MobileConfig):
        raise UserError(f"{generator.name} is no MobileStyleGAN; only those need heads")
    if options.draws < 2 * HELD_OUT:
        raise UserError(f"--draws must be at least {2 * HELD_OUT}, not {options.draws}")
    if options.steps < 1 or not options.learning_rate > 0:
        raise UserError("--steps and --learning-rate must be positive")
    sizes = [size for size in SIZES if 4 * size <= generator.resolution]
    if not sizes:
        raise UserError(f"{generator.name} is too small to gain from heads")
    say: Say = (lambda text: None) if options.quiet else partial(print, flush=True)
    default = heads_folder() / f"{synthesis_sha256(generator)[:12]}.safetensors"
    out = options.out or default
    keep = out.with_name(out.name + ".pictures")
    draw_key, *head_keys = jax.random.split(jax.random.key(options.seed), 1 + len(sizes))
    styles, pictures = draw_pictures(
        draw_key, generator, options.draws, size=PICTURE, keep=keep, say=say
    )
    heads, figures = {}, {}
    for size, key in zip(sizes, head_keys, strict=True):
        heads[size], figures[str(size)] = fit_head(
            key,
            generator,
            size,
            styles,
            pictures,
            steps=options.steps,
            learning_rate=options.learning_rate,
            say=say,
        )
    header = {
        "fit": {name: getattr(options, name) for name in ("draws", "steps", "learning_rate")},
        "seed": options.seed,
        "figures": figures,
        **describe_machine(),
    }
    save_heads(out, generator, heads, header)
    keep.unlink(missing_ok=True)
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when the heads are written, 2 for a mistake that the user can mend."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: print(_run(options)))


if __name__ == "__main__":
    sys.exit(main())
