"""Downloads a published StyleGAN2 generator and converts it, so that its name can be used.

    python -m convert.fetch --list
    python -m convert.fetch ffhq-1024-ada [--out DIR] [--offline] [--no-convert]
    python -m convert.fetch https://example.org/networks/mine.pkl

The file goes to DIR (default: the user's cache) and its conversion to the cache, after which
`--generator NAME` finds it. Broken downloads are continued, mirrors are tried in turn, and the
sha256 is checked where one is publicly known.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from convert.download import Model, download, find, models
from stylesr_jax.errors import exit_code
from stylesr_jax.runtime import files, weights


def _list(known: dict[str, Model]) -> str:
    lines = []
    for model in known.values():
        size = f"{model.size / 1e6:.0f} MB" if model.size else "size unknown"
        check = "sha256 known" if model.sha256 else "sha256 unknown"
        lines.append(f"{model.name:22} {model.resolution:5} px  {model.title}  [{size}, {check}]")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m convert.fetch",
        description="Download a published StyleGAN2 generator and convert it.",
        allow_abbrev=False,
    )
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("name", nargs="?", metavar="NAME", help="a name of --list, or an address")
    choice.add_argument("--list", action="store_true", help="list the published models")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the downloaded file")
    parser.add_argument("--offline", action="store_true", help="do not use the network")
    parser.add_argument("--no-convert", action="store_true", help="download only")
    return parser


def _is_conversion_of(converted: Path, source: Path) -> bool:
    """Whether the converted file is there and was made from the source."""
    if not converted.is_file():
        return False
    return weights.read_header(converted).get("source_sha256") == files.sha256(source)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    args = _parser().parse_args(argv)
    if args.list:
        print(_list(models()))
        return 0
    return exit_code(lambda: _fetch(args))


def _fetch(args: argparse.Namespace) -> None:
    model = find(args.name)
    print(f"{model.title}; licence: {model.licence}; trained on {model.dataset}")
    folder = files.cache_dir() / "downloads" if args.out is None else args.out
    path = download(model, folder, offline=args.offline)
    verdict = "as published" if model.sha256 else "no published value to compare with"
    print(f"{path}: sha256 {files.sha256(path)} ({verdict})")
    if args.no_convert:
        return
    converted = files.cache_dir() / "generators" / f"{model.name}.safetensors"
    if not _is_conversion_of(converted, path):
        from convert.build import convert_file  # not above: the help need not wait for JAX

        for remark in convert_file(path, converted):
            print(f"note: {remark}", file=sys.stderr)
    print(f"{converted}: use it with --generator {model.name}")


if __name__ == "__main__":
    sys.exit(main())
