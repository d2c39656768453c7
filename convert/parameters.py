"""The meeting point of all readers: what a file holds of a generator, and bounds on that."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from convert.other_networks import refuse_other_networks
from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Config

MAX_RESOLUTION = 4096
MAX_MAPPING_WIDTH = 8192
MAX_CLASSES = 32768
MAX_MAPPING_LAYERS = 64
MAX_ARRAYS = 4096
MAX_NAME = 200
NO_NOISE = "the file has no noise maps; fixed ones were drawn (seed 0)"


@dataclasses.dataclass(frozen=True)
class Source:
    """A StyleGAN2 generator as a file holds it.

    Attributes:
        state: float32 arrays under stylegan2-ada-pytorch's names ("synthesis.b4.const").
        format: the file's format, for the header.
        conv_clamp: magnitude to which each convolution's output is clamped, or None.
        lr_multiplier: of the mapping network; its weights are stored divided by it.
        architecture: "skip", "resnet" or "orig"; None where the arrays tell.
        clamp_unknown: whether the format does not record `conv_clamp`.
        remarks: what a user should know, one sentence each.
    """

    state: dict[str, np.ndarray]
    format: str
    conv_clamp: float | None = None
    lr_multiplier: float = 0.01
    architecture: str | None = None
    clamp_unknown: bool = False
    remarks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Network:
    """A generator of any architecture in this project's parameters.

    Attributes:
        params: see `Generator`; NumPy float32.
        config: its architecture.
        format: the file's format, for the header.
        w_mean: (w_dim,) or None where the file has none.
        remarks: what a user should know, one sentence each.
    """

    params: dict[str, Any]
    config: Config
    format: str
    w_mean: np.ndarray | None = None
    remarks: tuple[str, ...] = ()


T = TypeVar("T", Source, Network)


def with_remarks(source: T, *sentences: str) -> T:
    """The source with further remarks before its own."""
    return dataclasses.replace(source, remarks=(*sentences, *source.remarks))


def check_size(arrays: Mapping[str, np.ndarray], file_size: int) -> None:
    """Check that arrays do not add up to more than their file can hold.

    Several names may refer to the same bytes, which would let a small file ask for any amount
    of memory.

    Raises:
        UserError: they do.
    """
    if sum(array.size for array in arrays.values()) > file_size:
        raise UserError("the file's arrays add up to more than the file holds; not read")


def fixed_noise(index: int, size: int) -> np.ndarray:
    """The noise map (size, size) of the layer `index` of a file without any: always the same."""
    generator = np.random.Generator(np.random.Philox(key=index))
    return generator.standard_normal((size, size), np.float32)


def mean_w(array: np.ndarray) -> np.ndarray:
    """The mean w in a file: (w_dim,), or one row for each of the layers, all the same.

    Raises:
        UserError: the rows differ.
    """
    rows = array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
    if len(rows) == 0 or not np.allclose(rows, rows[0], rtol=1e-4, atol=1e-5):
        raise UserError("the file's mean latent is not the same for all layers; not read")
    return rows[0]


def _missing_noise(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Fixed maps for the layers that have a noise strength only."""
    maps = {}
    for name in state:
        match = re.fullmatch(r"(synthesis\.b(\d{1,4})\.conv([01]))\.noise_strength", name)
        if match is None or f"{match[1]}.noise_const" in state or f"{match[1]}.weight" not in state:
            continue
        size = int(match[2])
        if size.bit_count() == 1 and size >= 4:
            # Layers are counted from the input on: b4.conv1, b8.conv0, b8.conv1, ...
            index = 2 * (size.bit_length() - 3) - (match[3] == "0")
            maps[f"{match[1]}.noise_const"] = fixed_noise(max(index, 0), size)
    return maps


def checked(source: Source) -> Source:
    """The source with float32 arrays and all noise maps, once names and bounds are plausible.

    Shapes are `state_dict.prepare`'s to check.

    Raises:
        UserError: they are not.
    """
    refuse_other_networks(source.state)
    if len(source.state) > MAX_ARRAYS or max(map(len, source.state), default=0) > MAX_NAME:
        raise UserError("the generator has implausibly many or long names; not read")
    sizes = [int(m[1]) for m in map(re.compile(r"synthesis\.b(\d+)\.").match, source.state) if m]
    if max(sizes, default=0) > MAX_RESOLUTION:
        raise UserError(f"the generator claims {max(sizes)} px; at most {MAX_RESOLUTION} are read")
    # The statistics run ten thousand latents at once through the mapping network.
    dense = {n: a.shape for n, a in source.state.items() if n.startswith("mapping.")}
    classes = dense.pop("mapping.embed.weight", ())[1:]
    widest = max((size for shape in dense.values() for size in shape), default=0)
    if (
        len(dense) > 2 * MAX_MAPPING_LAYERS + 2
        or widest > MAX_MAPPING_WIDTH
        or max(classes, default=0) > MAX_CLASSES
    ):
        raise UserError("the mapping network is implausibly deep or wide; not read")
    for name in ("conv_clamp", "lr_multiplier"):
        value = getattr(source, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"the generator's {name} is {value}; the file is damaged")
    filters = [a for name, a in source.state.items() if name.endswith("resample_filter")]
    if any(a.shape != filters[0].shape or not np.array_equal(a, filters[0]) for a in filters):
        raise UserError("the generator's layers resample by different filters; not read")
    noise = _missing_noise(source.state)
    with np.errstate(all="ignore"):
        state = {
            name: np.asarray(array, np.float32) for name, array in {**source.state, **noise}.items()
        }
    remarks = (*source.remarks, NO_NOISE) if noise else source.remarks
    return dataclasses.replace(source, state=state, remarks=remarks)
