"""Generators of stylegan2-ada-pytorch, and of stylegan3's StyleGAN2 configurations.

Its pickles hold networks "G", "D" and "G_ema", and PTI saves one by torch; a network is a call of
`torch_utils.persistence._reconstruct_persistent_obj` whose argument holds the module's source
text (never used here) and its state. Architecture, clamping and the mapping network's learning
rate multiplier are attributes of the modules; bare state dicts lack them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from convert.arrays import number
from convert.checkpoints import persistent
from convert.other_networks import refuse_other_networks
from convert.parameters import Source, check_size
from convert.pickles import require_allowed
from convert.torch_files import is_tensor
from stylesr_jax.errors import UserError

FORMAT = "stylegan2-ada-pytorch"
MAX_DEPTH = 16
MAX_MODULES = 4096

Decode = Callable[[Any], np.ndarray]


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


def _arrays(found: dict[str, dict], decode: Decode) -> dict[str, np.ndarray]:
    records = {
        f"{path}.{name}".lstrip("."): value
        for path, state in found.items()
        for part in ("_parameters", "_buffers")
        for name, value in _named(state, part, path).items()
        if value is not None
    }
    refuse_other_networks(records)
    for name, value in records.items():
        if not is_tensor(value):
            raise UserError(f"{name!r:.80} in the pickle is no tensor; the file is damaged")
    return {name: decode(value) for name, value in records.items()}


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


def _activation(path: str) -> str:
    """What a layer's activation must be: affine layers and residual shortcuts are linear."""
    return "linear" if path.rpartition(".")[2] in ("affine", "embed", "skip") else "lrelu"


def _check_activations(found: dict[str, dict]) -> None:
    for path, state in found.items():
        activation = state.get("activation")
        if activation not in (None, _activation(path)):
            raise UserError(
                f"{path} uses the activation {activation!r:.40}, not {_activation(path)!r}"
            )


def _number(found: dict[str, dict], name: str, what: str, prefix: str) -> float | None:
    """The value of an attribute that all modules agree on; shortcuts have their own."""
    kept = {path: state for path, state in found.items() if not path.endswith(".skip")}
    value = _single(_attributes(kept, name, prefix), what)
    if value is not None and not isinstance(value, int | float):
        raise UserError(f"the generator's {what} is no number; the file is damaged")
    return None if value is None else float(value)


def convert_module(network: Any, decode: Decode, file_size: int, kind: str) -> Source:
    """A generator from the inert record of its module; `decode` reads its tensors.

    Raises:
        UserError: it is no StyleGAN2 generator, is malformed, or refers to unknown names.
    """
    require_allowed(network, f"the generator in this {kind}")
    description = persistent(network) or {}
    found = modules(network)
    arrays = _arrays(found, decode)
    name = description.get("class_name")
    if name != "Generator":
        raise UserError(f"the {kind} holds a {name!r:.60}, not a StyleGAN2 'Generator'")
    check_size(arrays, file_size)
    _check_activations(found)
    synthesis = "synthesis.b"
    multiplier = _number(found, "bias_gain", "learning rate multiplier", "mapping.fc")
    # A block without noise keeps its noise buffers in some versions; use_noise decides.
    for path, state in found.items():
        if path.startswith(synthesis) and state.get("use_noise") is False:
            arrays.pop(f"{path}.noise_const", None)
            arrays.pop(f"{path}.noise_strength", None)
    return Source(
        arrays,
        f"{FORMAT} {kind}",
        conv_clamp=_number(found, "conv_clamp", "conv_clamp", synthesis),
        lr_multiplier=0.01 if multiplier is None else multiplier,
        architecture=_single(_attributes(found, "architecture", synthesis), "architecture"),
    )


def convert(arrays: dict[str, np.ndarray], kind: str) -> Source:
    """A generator from a bare state dict; arrays outside its two networks are left out."""
    state = {n: a for n, a in arrays.items() if n.startswith(("synthesis.", "mapping."))}
    remarks = ("a state dict does not say whether outputs are clamped; taken as not clamped",)
    return Source(state, f"state dict ({kind})", clamp_unknown=True, remarks=remarks)
