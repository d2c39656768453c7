"""How long a solution takes on this machine: as the last ones of its kind did, or a first guess."""

import json
import os
from pathlib import Path

import jax

from stylesr_jax.errors import UserError
from stylesr_jax.runs.plan import Plan
from stylesr_jax.runs.records import content_key, write_json
from stylesr_jax.runtime import files
from stylesr_jax.runtime.weights import DEFAULT

MOST = 200  # kinds that are remembered
# Seconds of one core for a step of the embedded generator: benchmarks/results/step, 0.23 s on two.
GUESSED_STEP = 0.46
GUESSED_START = 12.0  # seconds until the first step, programs being compiled


def kind_of(plan: Plan) -> str:
    """A hash of what decides how long a solution of a plan's first method takes here."""
    variant, device = plan.variants[0], jax.local_devices()[0]
    machine = [device.platform, device.device_kind, os.cpu_count(), plan.devices, plan.batch]
    facts = [plan.identity.get("weights_sha256"), variant.method.name, variant.settings, machine]
    return content_key(facts)[:16]


def _file() -> Path:
    return files.cache_dir() / "pace.json"


def _read() -> dict[str, float]:
    try:
        values = json.loads(_file().read_text())
        return {str(kind): float(seconds) for kind, seconds in values.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}  # none was written, or another program's


def remember(plan: Plan, seconds: float) -> None:
    """Note what a solution of a plan took; a cache that cannot be written remembers nothing."""
    remembered, kind = _read(), kind_of(plan)
    mean = (remembered.pop(kind, seconds) + seconds) / 2.0  # the first one's includes compiling
    kept = dict([*remembered.items(), (kind, round(mean, 3))][-MOST:])
    try:
        write_json(_file(), kept)
    except UserError:
        return


def seconds_of_a_solution(plan: Plan) -> float | None:
    """As the last searches of its kind took; None where there was none."""
    return _read().get(kind_of(plan))


def expected_seconds(plan: Plan, solutions: int) -> float | None:
    """Of so many solutions: as remembered, else guessed for the embedded generator on CPUs.

    Returns:
        None where nothing is known.
    """
    seconds = seconds_of_a_solution(plan)
    if seconds is not None:
        return seconds * solutions
    if jax.local_devices()[0].platform != "cpu" or plan.generator.name != DEFAULT:
        return None
    step = GUESSED_STEP / (os.cpu_count() or 1)
    return GUESSED_START + solutions * plan.variants[0].evaluations * step
