"""Pickles of stylegan2-ada-pytorch, and of stylegan3's StyleGAN2 configurations.

The pickle is a dictionary with networks "G", "D" and "G_ema"; a network is a call of
`torch_utils.persistence._reconstruct_persistent_obj` whose argument holds the module's source
text (never used here) and its state. Architecture, clamping and the mapping network's learning
rate multiplier are attributes of the modules.
"""

from typing import Any

import numpy as np

from convert.arrays import is_tensor, number, tensor
from convert.safe_pickle import Global, Record, require_allowed
from convert.state_dict import Source, check_size, refuse_other_networks
from stylesr_jax.errors import UserError

RECONSTRUCT = "torch_utils.persistence._reconstruct_persistent_obj"
FORMAT = "stylegan2-ada-pytorch pickle"
MAX_DEPTH = 16
MAX_MODULES = 4096


def persistent(value: Any) -> dict | None:
    """The description of a persistent object: its class name, state, ...; None for others."""
    if (
        isinstance(value, Record)
        and isinstance(value.function, Global)
        and value.function.name == RECONSTRUCT
        and isinstance(value.args, tuple)
        and len(value.args) == 1
        and isinstance(value.args[0], dict)
    ):
        return value.args[0]
    return None


def _state(value: Any, where: str) -> dict:
    description = persistent(value)
    state = description.get("state") if description is not None else None
    if not isinstance(state, dict):
        raise UserError(f"{where} in the pickle is no network module; the file is damaged")
    return state


def _named(state: dict, part: str, where: str) -> dict[str, Any]:
    members = state.get(part) or {}
    if not isinstance(members, dict) or not all(isinstance(name, str) for name in members):
        raise UserError(f"{where} in the pickle has malformed {part.strip('_')}")
    return members


def modules(network: Any) -> dict[str, dict]:
    """{path: state} of a network's modules, "" for the network itself.

    Raises:
        UserError: the network is malformed, too deep, or has too many modules.
    """
    found: dict[str, dict] = {}
    pending = [("", network, 0)]
    while pending:
        path, value, depth = pending.pop()
        if depth > MAX_DEPTH or len(found) > MAX_MODULES:
            raise UserError("the network has implausibly many modules; the file is damaged")
        found[path] = _state(value, path or "the generator")
        for name, child in _named(found[path], "_modules", path).items():
            if child is not None:
                pending.append((f"{path}.{name}".lstrip("."), child, depth + 1))
    return found


def _arrays(found: dict[str, dict]) -> dict[str, np.ndarray]:
    records = {
        f"{path}.{name}".lstrip("."): value
        for path, state in found.items()
        for part in ("_parameters", "_buffers")
        for name, value in _named(state, part, path).items()
        if value is not None
    }
    refuse_other_networks(list(records))
    for name, value in records.items():
        if not is_tensor(value):
            raise UserError(f"{name!r:.80} in the pickle is no tensor; the file is damaged")
    return {name: tensor(value) for name, value in records.items()}


def _single(values: list[Any], what: str) -> Any:
    """The one value that all modules agree on."""
    if len(set(values)) > 1:
        raise UserError(f"the generator's layers differ in {what}: {sorted(map(str, set(values)))}")
    return values[0] if values else None


def _attributes(found: dict[str, dict], name: str, prefix: str) -> list[Any]:
    values = [
        number(state[name])
        for path, state in found.items()
        if path.startswith(prefix) and name in state
    ]
    for value in values:
        if not isinstance(value, int | float | str | None):
            raise UserError(f"the generator's {name} is no plain value; the file is damaged")
    return values


def convert(network: Any, file_size: int) -> Source:
    """A generator from its inert record in a pickle.

    Raises:
        UserError: it is no StyleGAN2 generator, is malformed, or refers to unknown names.
    """
    require_allowed(network, "the generator in this pickle")
    description = persistent(network) or {}
    found = modules(network)
    arrays = _arrays(found)
    kind = description.get("class_name")
    if kind != "Generator":
        raise UserError(f"the pickle holds a {kind!r:.60}, not a StyleGAN2 'Generator'")
    check_size(arrays, file_size)
    for path, state in found.items():
        activation = state.get("activation")
        linear = path.endswith(".affine") or path.endswith(".embed")
        if activation not in (None, "linear" if linear else "lrelu"):
            raise UserError(f"{path} uses the activation {activation!r:.40}, not leaky ReLU")
    synthesis = "synthesis.b"
    multiplier = _single(_attributes(found, "bias_gain", "mapping.fc"), "learning rate")
    if multiplier is not None and not isinstance(multiplier, int | float):
        raise UserError("the mapping network's learning rate multiplier is no number")
    clamp = _single(_attributes(found, "conv_clamp", synthesis), "conv_clamp")
    if clamp is not None and not isinstance(clamp, int | float):
        raise UserError("the generator's conv_clamp is no number; the file is damaged")
    architecture = _single(_attributes(found, "architecture", synthesis), "architecture")
    # A block without noise keeps its noise buffers in some versions; use_noise decides.
    for path, state in found.items():
        if path.startswith(synthesis) and state.get("use_noise") is False:
            arrays.pop(f"{path}.noise_const", None)
            arrays.pop(f"{path}.noise_strength", None)
    return Source(
        arrays,
        FORMAT,
        conv_clamp=None if clamp is None else float(clamp),
        lr_multiplier=0.01 if multiplier is None else float(multiplier),
        architecture=architecture,
    )
