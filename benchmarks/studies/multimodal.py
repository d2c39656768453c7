"""Table I and Figures 2 to 7 of the multi-modal report: each lever alone, and all of them.

python -m benchmarks.studies.multimodal --images DIR --limit 12 --solutions 4 --steps 100
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies import common

# One start for all solutions unless A is pulled. D needs starts that differ: from the same one,
# the distance between solutions has no direction to grow in.
LEVERS = {
    "A starts": "multimodal:starts=own:diversity=0",
    "B reference noise": "multimodal:starts=same:diversity=0:noise_std=0.108",
    "C injected noise": "multimodal:starts=same:diversity=0:inject_noise=0.02",
    "A + D diversity": "multimodal:starts=own",
}
COMBINED = {"all": "multimodal@combined"}
MASKED = {"B in a mask": "multimodal:starts=same:diversity=0:noise_std=0.108"}
NOTE = """\
The report's four ways to several different faces, on PULSE's coordinates with Ranger21: A, a start
of its own for each solution; B, Gaussian noise on the reference (standard deviation 0.108 on
[-1, 1]), everywhere or only around the mouth; C, noise of 0.02 added in the synthesis layers; D,
the inter-batch diversity term (weight 0.02). Table I has all of them together; each alone is
measured on the public-domain portrait, of which `levers.jpg` shows the solutions.
The report had 32x32 references of 2,824 CelebA-HQ images, 200 steps and a 256 px generator:
PSNR 18.28 ± 1.65 dB, SSIM 49.61 ± 8.41 %, LPIPS 37.32 ± 8.03 %."""


def mouth_mask(size: int) -> np.ndarray:
    """An ellipse around an aligned face's mouth, as a user might scribble it: (size, size)."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    inside = ((x - 0.5) / 0.2) ** 2 + ((y - 0.7) / 0.12) ** 2 < 1.0
    return inside.astype(np.float32)


def study(args: argparse.Namespace) -> None:
    """All levers together on --images, each alone on the portrait, and a picture of those."""
    variants = {
        name: common.variants_of(texts, args)
        for name, texts in (("combined", COMBINED), ("levers", LEVERS), ("masked", MASKED))
    }
    setting = common.setting(args, [one for some in variants.values() for one in some])
    options: dict[str, Any] = {"solutions": args.solutions}
    tables = {
        f"Table I: all levers, {len(setting.measured)} images": common.measure(
            setting, variants["combined"], "table", **options
        )
    }
    portrait, grid = dataclasses.replace(setting, measured=setting.shown), []
    for name, heading in (
        ("levers", "Each lever alone, the portrait"),
        ("masked", "B around the mouth only, the portrait"),
        ("combined", "All levers, the portrait"),
    ):
        more = {"noise_mask": mouth_mask(args.lr_size)} if name == "masked" else {}
        folder = f"{name}-shown" if args.images else name  # where `show` finds it
        tables[heading] = common.measure(portrait, variants[name], folder, **options, **more)
        plan = common.show(setting, variants[name], name, **options, **more)
        grid += common.solutions_grid(plan, rows=1)
    common.save_grid(Path(args.out) / "levers.jpg", grid)
    source = common.source_of(args, setting)
    common.keep_table(args, "Multi-modal photo upsampling", NOTE, tables, source)


if __name__ == "__main__":
    parser = common.options("multimodal", __doc__, limit=12, pictures=1, lr_size=32)
    parser.add_argument("--solutions", type=int, default=4, metavar="N")
    sys.exit(common.run(study, parser))
