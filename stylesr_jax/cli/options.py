"""The commands' options and how their values are written. Nothing here needs JAX."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from stylesr_jax.errors import UserError, printable
from stylesr_jax.runs.joining import AUTO, host_and_port

PRESETS = ("fast", "balanced", "best", "paper")
ALIGNMENTS = ("auto", "on", "off")
EVALUATIONS = 100  # of each solution in `evaluate`

UPSAMPLE = """Super-resolve face photos: python -m stylesr_jax.upsample INPUT... --out DIR.

The faces of a photo are found, and each is aligned and searched for at the size that it has there,
up to 256 px; results lie in DIR/STEM/face_0/ and so on, the largest face first. A picture that is
framed as the generator's are, or that has at most 256 px and no better-framed face, is taken as it
is, at any aspect, reduced to 256 px; results lie in DIR/STEM/. Where that holds the result of
another picture or run, they lie in DIR/STEM- and eight digits of the input's SHA-256. With
--lr-size or --degradation, larger pictures are originals: degraded, and compared with solutions.

The pictures show plausible faces that the generator imagines. They do not tell who somebody is:
never use them to identify a person. The embedded weights are for research, non-commercial use;
they carry the biases of FFHQ, the photographs they were trained on.
"""

EVALUATE = """Compare methods on a folder of faces: python -m stylesr_jax.evaluate.

Every image is degraded, every method searches from the same low-resolution image with the same
number of generator evaluations (gradient steps, each one pass forward and back), and the solutions
are scored against the original. OUT receives table.md, table.json, rows.jsonl, rows.csv and
figures. A run that was killed goes on where it stopped when the same command is given again; a
failing image is listed and does not stop the rest. With --shard several processes, on any machines
that see OUT, divide the work; the same command without --shard then writes the table.

METHODS is a list of NAME, NAME@PRESET or NAME:SETTING=VALUE:SETTING=VALUE, each with LABEL= in
front if it shall be called otherwise: "bicubic,pulse@paper,rls,flat=rls:lambda_w=0".
"""

SEED = "default 0; starts and noise depend on it and on the content of each file, not on its name"


# --- Values ---------------------------------------------------------------------------------


def whole(low: int, high: int) -> Callable[[str], int]:
    """Parses whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number {low} to {high}")
        return value

    return parse


def at_least(least: float, kind: type, *, exclusive: bool = False) -> Callable[[str], Any]:
    """Parses finite numbers of a kind from `least` on."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from error
        if not (value > least or (value == least and not exclusive)) or value == float("inf"):
            bound = "more than" if exclusive else "at least"
            raise argparse.ArgumentTypeError(f"must be {bound} {least}, not {text}")
        return value

    return parse


def batch(text: str) -> int | None:
    """Parses --batch: a number of starts, or None for "auto"."""
    return None if text == "auto" else whole(1, 1024)(text)


def shard(text: str) -> tuple[int, int]:
    """Parses --shard: the number of a part, from 0, and how many there are."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r}: write I/N, I from 0 to N-1, e.g. 0/8")
    return int(index), int(count)


def cluster(text: str) -> str:
    """Parses --cluster: "auto", or an address."""
    if text != AUTO and host_and_port(text) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r}: write {AUTO}, or HOST:PORT with a port from 1 to 65535"
        )
    return text


def alignment(text: str) -> str:
    """Parses --align: one of ALIGNMENTS, or a file's path."""
    if text not in ALIGNMENTS and not text.lower().endswith(".json"):
        raise argparse.ArgumentTypeError(f"{text!r}: write {', '.join(ALIGNMENTS)} or FILE.json")
    return file(text)


class Fidelity(NamedTuple):
    """What --fidelity says: a share of the correction, or the inputs' noise in [-1, 1]."""

    share: float | None = None
    std: float | None = None


def fidelity(text: str) -> Fidelity:
    """ "auto", a share from 0 to 1, or "sigma=LEVELS" of 255."""
    if text == "auto":
        return Fidelity()
    name, sign, value = text.rpartition("=")
    high = 255.0 if sign else 1.0
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if name not in ("", "sigma") or not 0.0 <= number <= high:
        raise argparse.ArgumentTypeError("auto, a number from 0 to 1, or sigma=LEVELS of 255")
    return Fidelity(std=number / 127.5) if sign else Fidelity(share=number)


def file(text: str) -> str:
    """Parses the path of a file or folder; shells leave the ~ in --out=~/x alone."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; give the path of a file or folder")
    return os.path.expanduser(text)


def change(text: str) -> tuple[str, str, str]:
    """(method, setting, value) of --set METHOD.SETTING=VALUE.

    Raises:
        UserError: it is not written so.
    """
    name, equals, value = text.partition("=")
    method, dot, setting = name.strip().partition(".")
    if not equals or not dot:
        raise UserError(f"--set {text}: write METHOD.SETTING=VALUE, e.g. rls.lambda_w=0.1")
    return method, setting, value.strip()


# --- Parsers --------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line behind how the command is used."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def parser_of(name: str, document: str) -> argparse.ArgumentParser:
    """A parser that shows paragraph 2 of a document before the options, 3 after them."""
    parts = document.split("\n\n")
    return _Parser(
        prog=f"python -m stylesr_jax.{name}",
        description=parts[1].replace("\n", " "),
        epilog=parts[2].replace("\n", " "),
        allow_abbrev=False,
    )


def _fit_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Of a command that fits something for a generator."""
    parser = _Parser(
        prog=f"python -m stylesr_jax.{name}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add, default = parser.add_argument, "mobile-ffhq-1024"
    add("--generator", type=file, default=default, metavar="NAME|PATH", help="for which to fit")
    add("--out", type=_path, help="file to write (default: in the user's cache)")
    add("--quiet", action="store_true", help="no progress")
    return parser


def _add_model(parser: argparse.ArgumentParser, *, default: str) -> None:
    """Whose solutions are searched for."""
    add = parser.add_argument
    add("--generator", type=file, metavar="NAME|PATH", help=f"default {default}")
    add("--class", dest="label", type=whole(0, 10**6), metavar="K", help="of a conditional model")
    add("--prior", type=file, metavar="FILE", help="flow prior; default: the generator's own")


def _add_fidelity(add: Callable[..., Any], *, setting: bool = False) -> None:
    """How exact the inputs are."""
    which = "; for single methods, the setting fidelity" if setting else ""
    add(
        "--fidelity",
        type=fidelity,
        default=Fidelity(),
        metavar="auto|F|sigma=LEVELS",
        help="how exactly solutions shrink to the input: auto reads a JPEG's tables and visible "
        f"noise (default), F from 0 to 1 is a share, sigma the noise of 255 levels{which}",
    )


def _add_scale(parser: argparse.ArgumentParser) -> None:
    """How work is spread over a device, devices and processes."""
    add = parser.add_argument
    add(
        "--batch",
        type=batch,
        metavar="N|auto",
        help="starts searched together on a device (auto: what fits its memory; 1 on CPUs)",
    )
    add("--devices", type=whole(1, 1024), metavar="N", help="devices to use; default: all")
    division = parser.add_mutually_exclusive_group()
    division.add_argument(
        "--shard",
        type=shard,
        metavar="I/N",
        help="do part I of N of the inputs, counted from 0; --resume without it does the rest",
    )
    division.add_argument(
        "--cluster",
        type=cluster,
        metavar="auto|HOST:PORT",
        help="divide the inputs over a Ray cluster's machines, skipping those that are finished",
    )
    add(
        "--workers",
        type=whole(1, 10**6),
        metavar="N",
        help="of --cluster; default: one for each GPU, or on CPUs for each machine",
    )


def _check_scale(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.workers is not None and args.cluster is None:
        parser.error("--workers are a cluster's: add --cluster auto")


def upsample_parser() -> argparse.ArgumentParser:
    """Of `python -m stylesr_jax.upsample`."""
    parser = parser_of("upsample", UPSAMPLE)
    add = parser.add_argument
    add("inputs", nargs="*", metavar="INPUT", help="image files, folders or patterns")
    add("--recursive", action="store_true", help="take folders in folders too")
    add("--out", type=file, metavar="DIR", help="where DIR/STEM/ is written for each input")
    _add_model(parser, default="mobile-ffhq-1024; with --from, its own")
    add("--method", default="rls", help="which search; see the README (default rls)")
    add("--preset", default="balanced", metavar="NAME", help=f"{', '.join(PRESETS)} and others")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="e.g. rls.lambda_w=0.1")
    add("--solutions", type=whole(1, 1000), default=4, metavar="N", help="default 4")
    add("--steps", type=whole(1, 100_000), metavar="N", help="gradient steps for each solution")
    add("--seed", type=whole(0, 2**32 - 1), default=0, metavar="S", help=SEED)
    add(
        "--align",
        type=alignment,
        default="auto",
        metavar="auto|on|off|FILE.json",
        help="find faces where inputs are not framed yet (default), always, or never; or take the "
        "points of a file, see docs/faces.md",
    )
    add("--faces", type=whole(1, 1000), metavar="N", help="the N largest of a photo; default: all")
    add("--paste-back", action="store_true", help="write the photo with its solutions: photo_0.png")
    add("--scale", type=whole(1, 8), metavar="S", help="of --paste-back; default: what faces need")
    add("--lr-size", type=whole(4, 256), metavar="N", help="degrade larger inputs to N px first")
    add("--degradation", metavar="SPEC", help="of inputs over 256 px: e.g. 'blur(2)|bicubic(32)'")
    add(
        "--search-degradation",
        choices=("bicubic", "truth"),
        default="bicubic",
        help="what the search assumes of --degradation: plain bicubic (default), or the truth; "
        "small inputs too may be said to have come about so",
    )
    _add_fidelity(add)
    add("--noise-std", metavar="STD", help="Gaussian noise on each solution's reference in [-1, 1]")
    add(
        "--noise-mask",
        type=file,
        metavar="FILE",
        help="white where --noise-std adds noise; default: all",
    )
    add("--inject-noise", metavar="STD[@LAYERS]", help="in synthesis layers, e.g. 0.02@3-8")
    add("--diversity", metavar="WEIGHT", help="push an image's solutions apart, e.g. 0.02")
    add(
        "--start",
        type=file,
        metavar="NPZ[#K]",
        help="begin from saved styles: solution K of a solutions.npz, or W or W+ arrays (.npz, "
        ".npy) in the generator's own scale; solutions then differ by their noise",
    )
    add("--uncertainty", action="store_true", help="write each pixel's deviation over solutions")
    add(
        "--only-images",
        action="store_true",
        help="write the solutions alone; hidden reports allow --resume",
    )
    add(
        "--format",
        choices=("png", "jpg", "webp"),
        default="png",
        help="of the solutions (default png); jpg is not exactly consistent with the input",
    )
    add("--flat", action="store_true", help="write DIR/STEM_solution_0.png, no folders")
    add("--resume", action="store_true", help="skip inputs that DIR holds a finished report of")
    _add_scale(parser)
    add(
        "--from",
        dest="source",
        type=file,
        metavar="NPZ",
        help="redraw the pictures of a solutions.npz",
    )
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument("--quiet", action="store_true", help="print errors only")
    volume.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser


REDRAWING = ("source", "out", "generator", "format", "quiet", "json")  # what goes with --from


def parse_upsample(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of `upsample`; those that do not go together end the process with code 2."""
    parser = upsample_parser()
    args = parser.parse_args(argv)
    if args.source is None and not args.inputs:
        parser.error("give at least one INPUT, or --from solutions.npz")
    if args.source is None and not args.out:
        parser.error("--out DIR is missing")
    _check_scale(parser, args)
    if args.source is not None:
        unused = sorted(_given(parser, argv) - set(REDRAWING))
        if unused:
            parser.error(f"--from only draws what was found; leave out {', '.join(unused)}")
    if wrong := _contradiction(args):
        parser.error(wrong)
    return args


def _contradiction(args: argparse.Namespace) -> str | None:
    """What is wrong with the options of faces, or None."""
    if args.scale is not None and not args.paste_back:
        return "--scale is the photo's: add --paste-back"
    if args.align == "off" and (args.paste_back or args.faces is not None):
        return "--align off finds no faces: leave out --paste-back and --faces"
    if args.paste_back and (args.lr_size is not None or args.degradation is not None):
        return "--paste-back puts back what the photo holds: leave out --lr-size and --degradation"
    return None


def _given(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> set[str]:
    """The names under which options were given, whether or not their values are the defaults."""
    nothing = dict.fromkeys(vars(parser.parse_args([])))  # defaults are set where a name is missing
    values = vars(parser.parse_args(argv, argparse.Namespace(**nothing)))
    return {name for name, value in values.items() if value not in (None, [])}


def evaluate_parser() -> argparse.ArgumentParser:
    """Of `python -m stylesr_jax.evaluate`."""
    parser = parser_of("evaluate", EVALUATE)
    add = parser.add_argument
    add("--images", required=True, nargs="+", metavar="DIR", help="folders or files of originals")
    add("--out", type=file, required=True, metavar="OUT", help="where the results go")
    add("--methods", default="bicubic,pulse,brgm,rls", metavar="METHODS", help="see below")
    add("--limit", type=whole(1, 10**6), metavar="N", help="take the first N images only")
    add("--lr-size", type=whole(4, 256), default=16, metavar="N", help="default 16")
    add("--degradation", metavar="SPEC", help="of the data, e.g. 'motion(100)|bicubic(16)'")
    add(
        "--search-degradation",
        choices=("bicubic", "truth"),
        default="bicubic",
        help="what the search assumes of --degradation (default: plain bicubic)",
    )
    _add_fidelity(add, setting=True)
    add("--noise-mask", type=file, metavar="FILE", help="white where setting noise_std adds noise")
    _add_model(parser, default="mobile-ffhq-1024")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--evaluations",
        "--steps",
        type=whole(1, 10**6),
        default=EVALUATIONS,
        metavar="N",
        help=f"generator evaluations for each solution of every method (default {EVALUATIONS})",
    )
    budget.add_argument(
        "--own-steps", action="store_true", help="as many steps as each preset says: not equal"
    )
    add("--preset", default="balanced", metavar="NAME", help="of the methods that have it")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="e.g. rls.lambda_w=0.1")
    add("--solutions", type=whole(1, 1000), default=1, metavar="N", help="default 1")
    add("--seed", type=whole(0, 2**32 - 1), default=0, metavar="S", help=SEED)
    add("--score-size", type=whole(32, 4096), default=256, metavar="N", help="default 256 px")
    add("--niqe-size", type=whole(32, 4096), default=512, metavar="N", help="default 512 px")
    add("--frechet-size", type=whole(32, 4096), default=128, metavar="N", help="default 128 px")
    add("--reference", type=file, metavar="DIR|SHEET", help="pictures for the Fréchet distance")
    add("--reference-tile", type=whole(16, 4096), default=128, metavar="N", help="of a SHEET")
    add(
        "--inception",
        type=file,
        metavar="FILE|URL",
        help="Inception weights: only with them there is FID",
    )
    add("--figure-images", type=whole(1, 64), default=6, metavar="N", help="rows of the figure")
    _add_scale(parser)
    add("--quiet", action="store_true", help="print errors only")
    return parser


def parse_evaluate(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of `evaluate`; those that do not go together end the process with code 2."""
    parser = evaluate_parser()
    args = parser.parse_args(argv)
    _check_scale(parser, args)
    return args


def fit_heads_parser() -> argparse.ArgumentParser:
    """Of `python -m stylesr_jax.fit_heads`."""
    parser = _fit_parser(
        "fit_heads",
        "Fit image heads for a MobileStyleGAN generator, so that searches can begin at a low "
        "resolution. StyleGAN2 with skip connections has such images of its own.",
    )
    add = parser.add_argument
    add("--draws", type=int, default=2000, metavar="N", help="pictures to learn from")
    add("--steps", type=int, default=1500, metavar="N", help="optimiser steps for each head")
    add("--learning-rate", type=float, default=2e-3, help="peak")
    add("--seed", type=int, default=0, help="of all draws")
    return parser


def fit_estimate_parser() -> argparse.ArgumentParser:
    """Of `python -m stylesr_jax.fit_estimate`."""
    parser = _fit_parser(
        "fit_estimate",
        "Fit the linear estimate of a generator's style from a low-resolution image, on the "
        "generator's own draws. Searches then begin nearer to their input. A run that was killed "
        "goes on by the same command.",
    )
    add = parser.add_argument
    add("--draws", type=at_least(1, int), default=20000, metavar="N", help="to learn from")
    add("--seed", type=int, default=0, help="of all draws")
    return parser


def fit_prior_parser() -> argparse.ArgumentParser:
    """Of `python -m stylesr_jax.fit_prior`."""
    parser = _fit_parser(
        "fit_prior",
        "Fit the flow prior that guides the search on a generator, from fresh latents of its "
        "mapping network. The search then finds the prior by itself.",
    )
    count, positive = at_least(1, int), at_least(0, float, exclusive=True)
    add = parser.add_argument
    add("--class", dest="label", type=at_least(0, int), help="class of a conditional generator")
    add(
        "--noise",
        type=at_least(0, float),
        default=0.5,
        help="standard deviation of the noise added in whitened coordinates; 0 fits the plain "
        "density, whose gradient is too steep to search with",
    )
    add("--tail", type=at_least(0, float), default=0.1, help="share of draws with wider noise")
    add("--reach", type=at_least(1, float), default=6.0, help="how much wider, at most")
    add("--steps", type=count, default=6000, help="optimiser steps")
    add("--batch", type=count, default=512, help="draws per step")
    add("--learning-rate", type=positive, default=5e-3, help="peak")
    add("--blocks", type=count, default=5, help="autoregressive blocks")
    add("--width", type=count, default=1024, help="hidden units per block")
    add("--floor", type=positive, default=1e-2, help="of eigenvalues")
    add(
        "--log-scale-bound",
        type=positive,
        default=0.5,
        help="soft bound on each block's log-scales",
    )
    add(
        "--input-bound",
        type=positive,
        default=3.0,
        help="soft bound on the coordinates that each block's network sees",
    )
    add(
        "--radial",
        action="store_true",
        help="scale F(w) by a power of its norm at the end, so that squared norms spread as they "
        "should; fitted in seconds after the rest",
    )
    add("--start", type=_path, metavar="PRIOR", help="go on from this prior's weights, whitening")
    add("--whitening-draws", type=at_least(2, int), default=100_000, help="latents measured")
    add("--seed", type=at_least(0, int), default=0, help="of all draws")
    add("--checkpoint-every", type=count, default=256, metavar="N", help="steps")
    add("--resume", action="store_true", help="continue from the checkpoint beside the result")
    return parser


def _path(text: str) -> Path:
    return Path(file(text))
