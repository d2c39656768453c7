"""How the searching commands start: long work begins before JAX is imported, or meanwhile."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module

from stylesr_jax.cli.console import Console
from stylesr_jax.errors import UserError
from stylesr_jax.generators.mobile.native import compiler
from stylesr_jax.runtime import files
from stylesr_jax.runtime.memory import gc_paused
from stylesr_jax.runtime.weights import DEFAULT, find_weights

# Options that do not decide which programs are called.
OTHERS = (
    "inputs",
    "images",
    "out",
    "seed",
    "steps",
    "quiet",
    "json",
    "resume",
    "shard",
    "cluster",
    "workers",
    "faces",
    "paste_back",
    "scale",
    "recursive",
    "format",
    "flat",
)


def upsample(args: argparse.Namespace) -> int:
    """Run `upsample`; the exit code."""
    console = Console(quiet=args.quiet, as_json=args.json)
    return _run("upsample", args, console, "interrupted; the best so far was saved")


def evaluate(args: argparse.Namespace) -> int:
    """Run `evaluate`; the exit code."""
    console = Console(quiet=args.quiet)
    return _run("evaluate", args, console, "interrupted; give the same command again to go on")


def _run(command: str, args: argparse.Namespace, console: Console, interrupted: str) -> int:
    """Import a command's module and let it work; the exit code."""

    def work() -> int:
        with _started(args):
            with gc_paused():
                module = import_module(f"stylesr_jax.cli.{command}")
            return module.run(args, console)

    return console.run(work, interrupted=interrupted)


@contextmanager
def _started(args: argparse.Namespace) -> Iterator[None]:
    """Compile native code, hash the weights, and load programs while modules are imported."""
    if args.generator in (None, DEFAULT):
        compiler.begin_early()
        with suppress(UserError):  # it is raised where the weights are needed
            files.begin_sha256(find_weights(f"{DEFAULT}.safetensors"))
    facts = {name: value for name, value in vars(args).items() if name not in OTHERS}
    try:
        with gc_paused():
            from stylesr_jax.runtime.startup import configure_beside_workers, prefetched
        if args.cluster is not None:
            configure_beside_workers()
            yield
            return
        with prefetched(facts):
            yield
    finally:
        compiler.give_up()
