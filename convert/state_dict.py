"""A published StyleGAN2 state dict to a generator's parameters, and untrained ones to test with.

The names are those of stylegan2-ada-pytorch. Source: Karras et al., "Training Generative
Adversarial Networks with Limited Data", 2020.
"""

import re
from typing import Any

import jax
import numpy as np

from stylesr_jax.errors import UserError
from stylesr_jax.generators.stylegan2 import Skeleton, StyleGAN2Config

FILTER = (1.0, 3.0, 3.0, 1.0)
State = dict[str, np.ndarray]


def prepare(
    state: State,
    *,
    name: str,
    conv_clamp: float | None = None,
    lr_multiplier: float = 0.01,
    architecture: str | None = None,
    activation: str = "lrelu",
) -> tuple[dict[str, Any], StyleGAN2Config]:
    """A generator's parameters and configuration from a state dict with the published names.

    All that the arrays tell is taken from them: resolution, channels, the mapping's depth and
    width, labels, noise, the resampling filter, and the skeleton unless it is ambiguous (a
    4x4 network).

    Args:
        state: "mapping.fc0.weight", "synthesis.b4.conv1.weight", ...: arrays of any float type.
        name: what the generator is called.
        conv_clamp: bound of each layer's output that the network was trained with.
        lr_multiplier: the mapping network's; its weights are stored divided by it.
        architecture: "skip", "resnet" or "orig"; checked against the arrays.
        activation: the network's activation; only "lrelu" is known.

    Returns:
        (params, config), see `Generator`; the arrays are NumPy float32.

    Raises:
        UserError: something is missing, of a wrong shape or not supported; says which.
    """
    if activation != "lrelu":
        raise UserError(f"{name} uses the activation {activation!r}; only 'lrelu' is supported")
    reader = _Reader(name, state)
    widths, mapping, embed_dim, label_dim, z_dim = _prepare_mapping(reader, lr_multiplier)
    blocks = _blocks(reader)
    skeleton = _skeleton(reader, blocks, architecture)
    channels = tuple(reader(f"b{4 << k}.conv1.weight", 4).shape[0] for k in range(blocks))
    use_noise = reader.has("b4.conv1.noise_const")
    config = StyleGAN2Config(
        name=name,
        resolution=2 << blocks,
        num_ws=2 * blocks,
        w_dim=widths[-1],
        z_dim=z_dim,
        mapping_widths=widths,
        label_dim=label_dim,
        embed_dim=embed_dim,
        channels=channels,
        skeleton=skeleton,
        use_noise=use_noise,
        conv_clamp=None if conv_clamp is None else float(conv_clamp),
        taps=_filter_taps(reader),
    )
    synthesis: dict[str, Any] = {
        "constant": reader("b4.const", 3, (channels[0], 4, 4)).transpose(1, 2, 0)
    }
    noise: dict[str, np.ndarray] = {}
    for k in range(blocks):
        block = f"b{4 << k}"
        incoming = channels[max(k - 1, 0)]
        layers: dict[str, Any] = {}
        for conv, inputs in (("conv0", incoming), ("conv1", channels[k])):
            if k == 0 and conv == "conv0":
                continue
            layer = f"{block}.{conv}"
            layers[conv] = _prepare_conv(reader, layer, inputs, channels[k], config)
            if use_noise:
                size = 4 << k
                noise[f"{len(noise):02d}"] = reader(f"{layer}.noise_const", 2, (size, size))
        if skeleton == "skip" or k == blocks - 1:
            layers["torgb"] = _prepare_rgb(reader, f"{block}.torgb", channels[k], config)
        if skeleton == "resnet" and k > 0:
            weight = reader(f"{block}.skip.weight", 4, (channels[k], incoming, 1, 1))
            layers["skip"] = {"weight": weight[:, :, 0, 0].T / np.float32(np.sqrt(incoming))}
        synthesis[block] = layers
    params = {"mapping": mapping, "synthesis": synthesis, "noise": noise}
    return jax.tree.map(lambda a: np.array(a, order="C"), params), config


class _Reader:
    """Arrays of a state dict as float32, with errors that name what is wrong."""

    def __init__(self, name: str, state: State) -> None:
        self.name = name
        self.state = state

    def has(self, key: str) -> bool:
        return f"synthesis.{key}" in self.state

    def __call__(
        self, key: str, ndim: int, shape: tuple[int, ...] | None = None, *, part: str = "synthesis"
    ) -> np.ndarray:
        full = f"{part}.{key}"
        if full not in self.state:
            raise UserError(
                f"{self.name} has no {full!r}, so it is not a complete StyleGAN2 generator; "
                "download it again, or check that it is one"
            )
        array = np.asarray(self.state[full])
        if array.ndim != ndim or 0 in array.shape or (shape is not None and array.shape != shape):
            expected = shape or f"{ndim} dimensions"
            raise UserError(f"{self.name}: {full!r} is of shape {array.shape}, not {expected}")
        if array.dtype.kind != "f":
            raise UserError(f"{self.name}: {full!r} holds {array.dtype}, not floating point")
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise UserError(f"{self.name}: {full!r} holds numbers that are not finite")
        return array


def _blocks(reader: _Reader) -> int:
    pattern = re.compile(r"synthesis\.b(\d+)\.conv1\.weight")
    found = {int(match[1]) for match in map(pattern.fullmatch, reader.state) if match}
    expected = {4 << k for k in range(len(found))}
    if not found or found != expected:
        listed = ", ".join(str(size) for size in sorted(found)) or "none"
        raise UserError(
            f"{reader.name}: a StyleGAN2 generator has blocks at 4, 8, 16, ... px, "
            f"this one at: {listed}"
        )
    return len(found)


def _skeleton(reader: _Reader, blocks: int, stated: str | None) -> Skeleton:
    inner = [f"b{4 << k}" for k in range(blocks - 1)]
    outer = [f"b{4 << k}" for k in range(1, blocks)]
    if not inner:
        found: Skeleton = "orig"  # one block: all three are the same network
    elif all(reader.has(f"{block}.torgb.weight") for block in inner):
        found = "skip"
    elif all(reader.has(f"{block}.skip.weight") for block in outer):
        found = "resnet"
    else:
        found = "orig"
    if inner and stated is not None and stated != found:
        raise UserError(f"{reader.name} is said to be {stated!r}, but its weights are {found!r}")
    return found


def _filter_taps(reader: _Reader) -> tuple[float, ...]:
    """The separable filter's taps along one axis, in correlation order, with sum 2."""
    for key in ("b4.resample_filter", "b8.conv0.resample_filter"):
        if reader.has(key):
            stored = np.asarray(reader.state[f"synthesis.{key}"], np.float32)
            break
    else:
        stored = np.asarray(FILTER, np.float32)
    one = stored if stored.ndim == 1 else stored.sum(axis=0)
    one = one / one.sum()
    separable = stored.ndim == 1 or np.allclose(
        stored / stored.sum(), np.outer(one, one), atol=1e-6
    )
    if not separable or one.shape[0] not in (2, 4):
        raise UserError(
            f"{reader.name} resamples with a filter of shape {stored.shape}; "
            "supported are separable ones of two or four taps"
        )
    pad = (4 - one.shape[0]) // 2
    taps = np.pad(one[::-1] * np.float32(2.0), pad)  # stored for convolution, hence reversed
    return tuple(float(tap) for tap in taps)


def _prepare_mapping(
    reader: _Reader, lr_multiplier: float
) -> tuple[tuple[int, ...], dict[str, Any], int, int, int]:
    """Layer widths, parameters, embedding width, label width and z width of the mapping."""

    def dense(key: str, multiplier: float) -> dict[str, np.ndarray]:
        weight = reader(f"{key}.weight", 2, part="mapping")
        bias = reader(f"{key}.bias", 1, (weight.shape[0],), part="mapping")
        gain = np.float32(multiplier / np.sqrt(weight.shape[1]))
        return {"weight": weight.T * gain, "bias": bias * np.float32(multiplier)}

    depth = 0
    while f"mapping.fc{depth}.weight" in reader.state:
        depth += 1
    params: dict[str, Any] = {f"fc{i}": dense(f"fc{i}", lr_multiplier) for i in range(depth)}
    if not params:
        reader("fc0.weight", 2, part="mapping")  # says what is missing
    label_dim = embed_dim = 0
    if "mapping.embed.weight" in reader.state:
        params["embed"] = dense("embed", 1.0)
        label_dim, embed_dim = params["embed"]["weight"].shape
    widths = []
    incoming = params["fc0"]["weight"].shape[0]
    z_dim = incoming - embed_dim
    for i in range(depth):
        rows, columns = params[f"fc{i}"]["weight"].shape
        if rows != incoming or z_dim < 0:
            raise UserError(
                f"{reader.name}: mapping.fc{i} takes {rows} numbers where {incoming} arrive"
            )
        widths.append(columns)
        incoming = columns
    return tuple(widths), params, embed_dim, label_dim, z_dim


def _prepare_affine(
    reader: _Reader, layer: str, channels: int, w_dim: int, gain: float
) -> dict[str, np.ndarray]:
    weight = reader(f"{layer}.affine.weight", 2, (channels, w_dim))
    bias = reader(f"{layer}.affine.bias", 1, (channels,))
    scale = np.float32(gain / np.sqrt(w_dim))
    return {"weight": weight.T * scale, "bias": bias * np.float32(gain)}


def _prepare_conv(
    reader: _Reader, layer: str, inputs: int, outputs: int, config: StyleGAN2Config
) -> dict[str, Any]:
    weight = reader(f"{layer}.weight", 4, (outputs, inputs, 3, 3)).transpose(2, 3, 1, 0)
    params: dict[str, Any] = {
        "affine": _prepare_affine(reader, layer, inputs, config.w_dim, 1.0),
        "weight": weight,
        "bias": reader(f"{layer}.bias", 1, (outputs,)),
    }
    if config.use_noise:
        params["noise_strength"] = reader(f"{layer}.noise_strength", 0)
    return params


def _prepare_rgb(
    reader: _Reader, layer: str, inputs: int, config: StyleGAN2Config
) -> dict[str, Any]:
    bias = reader(f"{layer}.bias", 1)
    outputs = image_channels(reader.state)
    if outputs not in (1, 3) or bias.shape[0] != outputs:
        raise UserError(f"{reader.name} makes images of {bias.shape[0]} channels, not RGB or grey")
    weight = reader(f"{layer}.weight", 4, (outputs, inputs, 1, 1))[:, :, 0, 0].T
    return {
        "affine": _prepare_affine(
            reader, layer, inputs, config.w_dim, float(1.0 / np.sqrt(inputs))
        ),
        # A grey network's one channel is given three times.
        "weight": np.broadcast_to(weight, (inputs, 3)),
        "bias": np.broadcast_to(bias, (3,)),
    }


def image_channels(state: State) -> int:
    """Channels of the images that a state dict's network makes: 3, or 1 for grey ones."""
    return max((a.size for name, a in state.items() if name.endswith(".torgb.bias")), default=3)


def random_state(
    *,
    seed: int,
    resolution: int,
    channel_base: int = 32768,
    channel_max: int = 512,
    z_dim: int = 512,
    w_dim: int = 512,
    label_dim: int = 0,
    mapping_layers: int = 8,
    mapping_width: int | None = None,
    image_channels: int = 3,
    skeleton: Skeleton = "skip",
    lr_multiplier: float = 0.01,
    use_noise: bool = True,
) -> State:
    """The state dict of an untrained network under the published names, to test and time with.

    Block k has min(channel_base / resolution, channel_max) features; channel_base is 32768 for
    config-f, 16384 for config-e. Weights are standard normal, noise strengths not zero.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    state: State = {"mapping.w_avg": np.float32(0.1) * normal(w_dim)}
    width = w_dim if mapping_width is None else mapping_width
    incoming = z_dim
    if label_dim:
        state["mapping.embed.weight"] = normal(w_dim, label_dim)
        state["mapping.embed.bias"] = np.zeros(w_dim, np.float32)
        incoming += w_dim
    for i in range(mapping_layers):
        out = w_dim if i == mapping_layers - 1 else width
        state[f"mapping.fc{i}.weight"] = normal(out, incoming) / np.float32(lr_multiplier)
        state[f"mapping.fc{i}.bias"] = np.zeros(out, np.float32)
        incoming = out
    blocks = resolution.bit_length() - 2
    taps = np.asarray(FILTER, np.float32) / np.float32(sum(FILTER))
    channels = [min(channel_base // (4 << k), channel_max) for k in range(blocks)]

    def affine(layer: str, features: int) -> None:
        state[f"{layer}.affine.weight"] = normal(features, w_dim)
        state[f"{layer}.affine.bias"] = np.ones(features, np.float32)

    state["synthesis.b4.const"] = normal(channels[0], 4, 4)
    for k, features in enumerate(channels):
        block, size = f"synthesis.b{4 << k}", 4 << k
        incoming = channels[max(k - 1, 0)]
        state[f"{block}.resample_filter"] = np.outer(taps, taps)
        for conv, inputs in (("conv0", incoming), ("conv1", features)):
            if k == 0 and conv == "conv0":
                continue
            layer = f"{block}.{conv}"
            affine(layer, inputs)
            state[f"{layer}.weight"] = normal(features, inputs, 3, 3)
            state[f"{layer}.bias"] = np.float32(0.1) * normal(features)
            if use_noise:
                state[f"{layer}.noise_const"] = normal(size, size)
                state[f"{layer}.noise_strength"] = np.asarray(0.1 * rng.normal(), np.float32)
        if skeleton == "skip" or k == blocks - 1:
            affine(f"{block}.torgb", features)
            state[f"{block}.torgb.weight"] = normal(image_channels, features, 1, 1)
            state[f"{block}.torgb.bias"] = np.zeros(image_channels, np.float32)
        if skeleton == "resnet" and k > 0:
            state[f"{block}.skip.weight"] = normal(features, incoming, 1, 1)
    return state
