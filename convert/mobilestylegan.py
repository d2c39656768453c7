"""MobileStyleGAN's layers as this project's parameters, and checkpoints of its training code.

A checkpoint of MobileStyleGAN.pytorch is Lightning's: "state_dict" holds the student, the mapping
network, and the teacher, which is left out. A layer's demodulation does not depend on the style
(it uses the buffer `style_inv`), so that it is multiplied into the weights.
Source: Belousov, MobileStyleGAN.pytorch, `core/models/modules/modulated_conv2d.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convert.parameters import MAX_MAPPING_LAYERS, MAX_MAPPING_WIDTH, NO_NOISE, Network, fixed_noise
from stylesr_jax.errors import UserError
from stylesr_jax.generators.mobile.network import MobileConfig

FORMAT = "MobileStyleGAN.pytorch"
NAME = "mobile"
LR_MULTIPLIER = 0.01  # of the mapping network
EPSILON = 1e-8  # in the square root of the demodulation
MAX_BLOCKS = 9


def bands_first(count: int) -> np.ndarray:
    """Order of channels (ll C, then (C, 3) high bands) as four groups of C."""
    channels = count // 4
    high = channels + np.arange(3 * channels).reshape(channels, 3).T.reshape(-1)
    return np.concatenate([np.arange(channels), high])


def _dense(named: Mapping[str, np.ndarray], name: str, gain: float) -> dict[str, np.ndarray]:
    weight, bias = named[f"{name}.weight"], named[f"{name}.bias"]
    return {"weight": weight.T * np.float32(gain), "bias": bias.reshape(-1) * np.float32(gain)}


def synthesis_parameters(
    named: Mapping[str, np.ndarray],
    products: Sequence[np.ndarray],
    strengths: Sequence[np.float32],
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """(parameters, features of each block) of the synthesis network.

    Args:
        named: constants under the names of MobileStyleGAN.pytorch's student.
        products: (out, in, k, k) of each noisy layer from the input on: 3x3 first, then 1x1,
            multiplied by the demodulation.
        strengths: of each layer's noise.

    Raises:
        LookupError, ValueError: something is missing, or of another shape.
    """

    def output(index: int, name: str, order: np.ndarray) -> dict[str, Any]:
        bias = named[f"{name}.bias"].reshape(-1)[order]
        return {"noise_strength": strengths[index], "bias": bias}

    dense = products[0]
    channels = [dense.shape[0]]
    order = bands_first(dense.shape[0])
    params: dict[str, Any] = {
        "input": {
            "constant": named["input.input"][0].transpose(1, 2, 0),
            "modulation": _dense(named, "conv1.conv.modulation", 1 / np.sqrt(9 * dense.shape[1])),
            "weight": dense.transpose(2, 3, 1, 0)[..., order],
            "output": output(0, "conv1", order),
        }
    }
    n_blocks = (len(products) - 1) // 2
    for i in range(n_blocks):
        source = f"layers.{i}"
        up = _dense(named, f"{source}.up.modulation", 1.0)
        block: dict[str, Any] = {
            "up_modulation": {"weight": up["weight"][:, order], "bias": up["bias"][order]}
        }
        for j, layer in enumerate(("conv1", "conv2")):
            pointwise = products[1 + 2 * i + j][:, :, 0, 0]
            width = pointwise.shape[0]
            # What follows a block's conv2 is a Haar synthesis, but for the last block's.
            last = layer == "conv2" and i < n_blocks - 1
            order = bands_first(width) if last else np.arange(width)
            depthwise = named[f"{source}.{layer}.conv.weight_dw"].reshape(-1, 3, 3)
            gain = 1 / np.sqrt(9 * depthwise.shape[0])
            block[layer] = {
                "modulation": _dense(named, f"{source}.{layer}.conv.modulation", gain),
                "depthwise": depthwise.transpose(1, 2, 0),
                "pointwise": pointwise.T[:, order],
                "output": output(1 + 2 * i + j, f"{source}.{layer}", order),
            }
        channels.append(width)
        params[f"block{i}"] = block
    image = f"layers.{n_blocks - 1}.to_img"
    order = bands_first(12)
    params["to_image"] = {
        "modulation": _dense(named, f"{image}.conv.modulation", 1 / np.sqrt(channels[-1])),
        "weight": named[f"{image}.conv.weight"][:, :, 0, 0].T[:, order],
        "bias": named[f"{image}.bias"].reshape(-1)[order],
    }
    return params, tuple(channels)


def config_of(name: str, channels: tuple[int, ...], mapping: Mapping[str, Any]) -> MobileConfig:
    """The configuration of a network with these features and this mapping network."""
    n_blocks = len(channels) - 1
    widths = tuple(layer["bias"].size for layer in mapping.values())
    return MobileConfig(
        name=name,
        resolution=8 << n_blocks,
        num_ws=3 * n_blocks + 2,
        w_dim=widths[-1],
        z_dim=mapping["fc0"]["weight"].shape[0],
        mapping_widths=widths,
        channels=channels,
    )


def has_shapes_of(config: MobileConfig, params: Mapping[str, Any]) -> bool:
    """Whether parameters are of the network that the configuration describes."""
    if any(features % 4 for features in config.channels[:-1]):  # four bands enter each block
        return False
    noise = tuple(jnp.zeros(shape) for shape in config.noise_shapes)

    def initial() -> dict[str, Any]:
        key, ws = jax.random.key(0), jnp.zeros((1, config.num_ws, config.w_dim))
        z = jnp.zeros((1, config.z_dim))
        return {
            "mapping": config.mapping_module().init(key, z)["params"],
            "synthesis": config.synthesis_module().init(key, ws, noise)["params"],
            "noise": {f"{i:02d}": noise_map for i, noise_map in enumerate(noise)},
        }

    wanted = jax.tree.map(jnp.shape, jax.eval_shape(initial))
    return jax.tree.map(np.shape, dict(params)) == wanted


def _demodulated(student: Mapping[str, np.ndarray], layer: str) -> np.ndarray:
    """A layer's (out, in, k, k) weights, multiplied by its demodulation."""
    style = student[f"{layer}.conv.style_inv"][0]  # (1, in, 1, 1)
    if f"{layer}.conv.weight" in student:
        weight = whole = student[f"{layer}.conv.weight"]
    else:
        weight = student[f"{layer}.conv.weight_permute"]
        whole = student[f"{layer}.conv.weight_dw"].transpose(1, 0, 2, 3) * weight
    scale = 1 / np.sqrt(whole[0].size)
    squares = np.square(scale * style * whole, dtype=np.float64).sum(axis=(1, 2, 3))
    return weight * (1 / np.sqrt(squares + EPSILON)).astype(np.float32)[:, None, None, None]


def _check_mapping(layers: Mapping[str, np.ndarray]) -> None:
    widest = max((size for array in layers.values() for size in array.shape), default=0)
    if not 2 <= len(layers) <= 2 * MAX_MAPPING_LAYERS or widest > MAX_MAPPING_WIDTH:
        raise UserError(
            "the mapping network is missing, or implausibly deep or wide: MobileStyleGAN's whole "
            "checkpoint, with 'mapping_net' beside 'student', is needed"
        )


def _mapping(layers: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The mapping network from its layers 1, 2, ... (layer 0 normalises, without parameters)."""
    params = {}
    for i in range(-(-len(layers) // 2)):
        inputs = layers[f"{i + 1}.weight"].shape[1]
        scaled = _dense(layers, f"{i + 1}", LR_MULTIPLIER)
        params[f"fc{i}"] = {
            "weight": scaled["weight"] / np.float32(np.sqrt(inputs)),
            "bias": scaled["bias"],
        }
    return params


def _noise(student: Mapping[str, np.ndarray], layers: list[str]) -> dict[str, np.ndarray] | None:
    """The noise maps of a traced network, or None where there are none."""
    names = [f"{layer}.noise.noise" for layer in layers]
    if not all(name in student for name in names):
        return None
    return {f"{i:02d}": student[name][0, 0] for i, name in enumerate(names)}


def _fixed_noise(count: int) -> dict[str, np.ndarray]:
    sizes = [4, *(8 << k for k in range(count // 2) for _ in range(2))]
    return {f"{i:02d}": fixed_noise(i, size) for i, size in enumerate(sizes)}


@np.errstate(all="ignore")  # damaged weights may overflow here; `build` names them
def convert(
    student: Mapping[str, np.ndarray],
    mapping: Mapping[str, np.ndarray],
    w_mean: np.ndarray | None,
) -> Network:
    """A generator from a checkpoint's student and the layers of its mapping network.

    Raises:
        UserError: something is missing, or of another shape than the network's.
    """
    n_blocks = 0
    while n_blocks < MAX_BLOCKS and f"layers.{n_blocks}.conv1.conv.weight_dw" in student:
        n_blocks += 1
    layers = ["conv1", *(f"layers.{i}.conv{j}" for i in range(n_blocks) for j in (1, 2))]
    student = {name: np.asarray(array, np.float32) for name, array in student.items()}
    mapping = {name: np.asarray(array, np.float32) for name, array in mapping.items()}
    _check_mapping(mapping)
    if empty := [name for name, array in {**student, **mapping}.items() if array.size == 0]:
        raise UserError(f"the checkpoint's {empty[0]!r:.80} is empty; download it again")
    try:
        parameters = _mapping(mapping)
        products = [_demodulated(student, layer) for layer in layers]
        strengths = [np.float32(student[f"{layer}.noise.weight"].item()) for layer in layers]
        synthesis, channels = synthesis_parameters(student, products, strengths)
        config = config_of(NAME, channels, parameters)
        stored = _noise(student, layers)
    except (LookupError, ValueError) as error:
        raise UserError(
            f"the checkpoint is not a complete MobileStyleGAN ({str(error)[:80]}); "
            "download it again"
        ) from error
    maps = _fixed_noise(len(layers)) if stored is None else stored
    params = {"mapping": parameters, "synthesis": synthesis, "noise": maps}
    if not has_shapes_of(config, params):
        raise UserError("the checkpoint's arrays have other shapes than MobileStyleGAN's")
    remarks = (NO_NOISE,) if stored is None else ()
    return Network(params, config, FORMAT, w_mean, remarks)
