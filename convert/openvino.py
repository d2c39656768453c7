"""MobileStyleGAN-FFHQ from the PyPI wheel `random-face` (OpenVINO IR) to our format.

    python -m convert.openvino WHEEL --out weights/mobile-ffhq-1024.safetensors

The IR is an XML graph and a flat file of constants; both are read here directly, nothing of the
wheel is imported. Get the wheel with `pip download --no-deps random-face==2021.7.21.1`.
"""

import argparse
import io
import sys
import xml.etree.ElementTree as ET
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stylesr_jax.errors import UserError, exit_code
from stylesr_jax.generators.base import Generator, measure_statistics
from stylesr_jax.generators.mobile.network import MobileConfig
from stylesr_jax.runtime import files, weights

WHEEL_SHA256 = "e5d10e2be7df63f06123855ec591ca35dcb1d059eba47ddcb175d7d26b4019b5"
MEMBER_LIMIT = 64 << 20  # bytes; the largest member of the wheel has 32 MB
ELEMENT_TYPES = {"f32": "<f4", "f16": "<f2", "i64": "<i8", "i32": "<i4", "u8": "u1"}
NOT_THE_WHEEL = (
    "this is not the random-face wheel; get it with "
    "`pip download --no-deps random-face==2021.7.21.1`"
)
LICENCE = (
    "Wheel: Apache-2.0. The network was distilled from NVIDIA's StyleGAN2-FFHQ (NVIDIA Source "
    "Code License-NC; FFHQ itself CC BY-NC-SA 4.0): for research, non-commercial use."
)


def _read_constants(xml: bytes, blob: bytes) -> list[tuple[str, np.ndarray]]:
    """(name, value) of each constant in the graph's order."""
    constants = []
    for layer in ET.fromstring(xml).iter("layer"):
        data = layer.find("data")
        if layer.get("type") != "Const" or data is None:
            continue
        dtype = np.dtype(ELEMENT_TYPES[data.get("element_type", "")])
        shape = [int(size) for size in data.get("shape", "").split(",") if size.strip()]
        offset, size = int(data.get("offset", "")), int(data.get("size", ""))
        if offset + size > len(blob) or int(np.prod(shape)) * dtype.itemsize > size:
            raise UserError("the OpenVINO constants end too early; download the wheel again")
        value = np.frombuffer(blob, dtype, count=int(np.prod(shape)), offset=offset)
        constants.append((layer.get("name", ""), value.reshape(shape)))
    return constants


def _dense(constants: dict[str, np.ndarray], name: str, gain: float) -> dict[str, np.ndarray]:
    weight, bias = constants[f"{name}.weight"], constants[f"{name}.bias"]
    return {"weight": weight.T * np.float32(gain), "bias": bias.reshape(-1) * np.float32(gain)}


def bands_first(count: int) -> np.ndarray:
    """Order of channels (ll C, then (C, 3) high bands) as four groups of C."""
    channels = count // 4
    high = channels + np.arange(3 * channels).reshape(channels, 3).T.reshape(-1)
    return np.concatenate([np.arange(channels), high])


def _mapping(constants: list[tuple[str, np.ndarray]]) -> dict[str, Any]:
    matrices = [value for _, value in constants if value.ndim == 2 and value.shape[0] > 1]
    biases = [v for _, v in constants if v.dtype == np.float32 and v.ndim == 1 and v.size > 1]
    return {
        f"fc{i}": {"weight": w.T, "bias": b}
        for i, (w, b) in enumerate(zip(matrices, biases, strict=True))
    }


def _synthesis(constants: list[tuple[str, np.ndarray]]) -> tuple[dict, dict, tuple[int, ...]]:
    named = dict(constants)
    # Folded constants lost their names, but keep the layers' order.
    products = [value for name, value in constants if name.endswith("_copy")]
    noise = [v for _, v in constants if v.ndim == 4 and v.shape[2] > 3 and v.shape[:2] == (1, 1)]
    if not products or len(products) != len(noise):
        raise UserError("this OpenVINO graph is not MobileStyleGAN's synthesis network")
    dense = products[0]
    channels = [dense.shape[0]]
    strengths = [np.float32(value.std()) for value in noise]

    def output(index: int, name: str, order: np.ndarray) -> dict[str, Any]:
        bias = named[f"{name}.bias"].reshape(-1)[order]
        return {"noise_strength": strengths[index], "bias": bias}

    order = bands_first(dense.shape[0])
    params: dict[str, Any] = {
        "input": {
            "constant": named["m.input.input"][0].transpose(1, 2, 0),
            "modulation": _dense(named, "m.conv1.conv.modulation", 1 / np.sqrt(9 * dense.shape[1])),
            "weight": dense.transpose(2, 3, 1, 0)[..., order],
            "output": output(0, "m.conv1", order),
        }
    }
    n_blocks = (len(products) - 1) // 2
    for i in range(n_blocks):
        source = f"m.layers.{i}"
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
            depthwise = named[f"{source}.{layer}.conv.weight_dw"][:, 0, 0]
            gain = 1 / np.sqrt(9 * depthwise.shape[0])
            block[layer] = {
                "modulation": _dense(named, f"{source}.{layer}.conv.modulation", gain),
                "depthwise": depthwise.transpose(1, 2, 0),
                "pointwise": pointwise.T[:, order],
                "output": output(1 + 2 * i + j, f"{source}.{layer}", order),
            }
        channels.append(width)
        params[f"block{i}"] = block
    image = f"m.layers.{n_blocks - 1}.to_img"
    order = bands_first(12)
    params["to_image"] = {
        "modulation": _dense(named, f"{image}.conv.modulation", 1 / np.sqrt(channels[-1])),
        "weight": named[f"{image}.conv.weight"][:, :, 0, 0].T[:, order],
        "bias": named[f"{image}.bias"].reshape(-1)[order],
    }
    maps = {
        f"{i:02d}": value[0, 0] / strength
        for i, (value, strength) in enumerate(zip(noise, strengths, strict=True))
    }
    return params, maps, tuple(channels)


def read_wheel(source: bytes) -> tuple[dict[str, Any], MobileConfig]:
    """Parameters and configuration of the network inside the wheel's bytes.

    Raises:
        UserError: these are not the bytes of that wheel.
    """
    members = {}
    try:
        with zipfile.ZipFile(io.BytesIO(source)) as archive:
            for part in ("Mapping", "Synthesis"):
                for suffix in ("xml", "bin"):
                    info = archive.getinfo(f"random_face/data/{part}Network.{suffix}")
                    if info.file_size > MEMBER_LIMIT:
                        raise UserError(f"{info.filename} is implausibly large; not read")
                    members[part, suffix] = archive.read(info)
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise UserError(NOT_THE_WHEEL) from error
    try:
        params, config = _network(members)
    except UserError:
        raise
    except (ET.ParseError, LookupError, ValueError) as error:
        raise UserError(f"{NOT_THE_WHEEL} ({error})") from error
    _check_shapes(params, config)
    return params, config


def _network(members: Mapping[tuple[str, str], bytes]) -> tuple[dict[str, Any], MobileConfig]:
    mapping = _mapping(_read_constants(members["Mapping", "xml"], members["Mapping", "bin"]))
    constants = _read_constants(members["Synthesis", "xml"], members["Synthesis", "bin"])
    synthesis, noise, channels = _synthesis(constants)
    n_blocks = len(channels) - 1
    widths = tuple(layer["bias"].size for layer in mapping.values())
    config = MobileConfig(
        name="mobile-ffhq-1024",
        resolution=8 << n_blocks,
        num_ws=3 * n_blocks + 2,
        w_dim=widths[-1],
        z_dim=mapping["fc0"]["weight"].shape[0],
        mapping_widths=widths,
        channels=channels,
    )
    return {"mapping": mapping, "synthesis": synthesis, "noise": noise}, config


def _check_shapes(params: Mapping[str, Any], config: MobileConfig) -> None:
    """Raise UserError unless the parameters are of the network that `config` describes."""
    noise = tuple(jnp.zeros(shape) for shape in config.noise_shapes)

    def initial() -> dict[str, Any]:
        key, ws = jax.random.key(0), jnp.zeros((1, config.num_ws, config.w_dim))
        z = jnp.zeros((1, config.z_dim))
        return {
            "mapping": config.mapping_module().init(key, z)["params"],
            "synthesis": config.synthesis_module().init(key, ws, noise)["params"],
            "noise": {f"{i:02d}": one for i, one in enumerate(noise)},
        }

    wanted = jax.tree.map(jnp.shape, jax.eval_shape(initial))
    if jax.tree.map(np.shape, dict(params)) != wanted:
        raise UserError(f"{NOT_THE_WHEEL} (its constants have other shapes than the network's)")


def convert_file(source: Path, out: Path, *, check: bool = True) -> None:
    """Convert the wheel at `source` to our format at `out`.

    Raises:
        UserError: the file is not that wheel, or (with `check`) not its published release.
    """
    from stylesr_jax.generators.registry import config_to_dict

    if not source.is_file():
        raise UserError(f"{source} does not exist")
    digest = files.sha256(source)
    if check and digest != WHEEL_SHA256:
        raise UserError(
            f"{source} has sha256 {digest}, the published wheel {WHEEL_SHA256}; download it again"
        )
    params, config = read_wheel(source.read_bytes())
    generator = Generator(jax.tree.map(jnp.asarray, params), {}, None, config)
    statistics = measure_statistics(jax.random.key(0), generator)
    header = {
        "kind": "generator",
        "config": config_to_dict(config),
        "source": "PyPI wheel random-face 2021.7.21.1 (MobileStyleGAN-FFHQ, S. Belousov)",
        "source_format": "openvino",
        "source_sha256": digest,
        "licence": LICENCE,
    }
    statistics = {name: np.asarray(value) for name, value in statistics.items()}
    weights.save(out, {"params": params, "statistics": statistics}, header)


def main() -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description="Convert the random-face wheel (MobileStyleGAN-FFHQ) to safetensors."
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    def work() -> None:
        convert_file(args.wheel, args.out)
        print(f"{args.out}: {files.describe_file(args.out)}")

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
