"""The meeting point of all readers: a generator's arrays under stylegan2-ada-pytorch's names.

Also reads bare state dicts from `.npz` and `.safetensors` files.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping

import numpy as np

from convert.archive import Archive
from convert.arrays import item_size, widen
from stylesr_jax.errors import UserError
from stylesr_jax.generators.stylegan2 import StyleGAN2Config
from stylesr_jax.runtime.weights import HEADER_KEY

MAX_RESOLUTION = 4096
MAX_MAPPING_WIDTH = 8192
MAX_CLASSES = 32768
MAX_MAPPING_LAYERS = 64
MAX_ARRAYS = 4096
MAX_NAME = 200
MAX_HEADER = 1 << 24  # bytes of a safetensors header; StyleGAN2's at 1024 px has 20,000
_DENSE = ("weight", "bias")
_LAYER = (*_DENSE, "affine.weight", "affine.bias")
_NOISE = ("noise_const", "noise_strength")
_SAFETENSORS_TYPES = {
    "F32": "f4",
    "F16": "f2",
    "BF16": "bf16",
    "F64": "f8",
    "I64": "i8",
    "I32": "i4",
    "I16": "i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "b1",
}
_NPY_HEADER = re.compile(
    rb"\{'descr': '([<>|][a-z]\d{1,2})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,12}, ?)*\d{0,12})\), ?\}\s*"
)
# What the names of other networks look like, one name a line.
_OTHER_NETWORKS = {
    "a StyleGAN3 generator (config t or r)": r"^synthesis\.(input\.(freqs|transform|weight)|L\d+_)",
    "a StyleGAN1 generator": r"StyleMod|^g_(mapping|synthesis)\.|^(generator\.)?progression\.\d",
    "a BigGAN generator": (
        r"^generator\.gen_z\.|^(module\.)?blocks\.\d+\.\d+\.(conv1|bn1)\.|"
        r"^generator\.layers\.\d+\.bn_\d"
    ),
    "an EG3D generator": r"^(superresolution|backbone\.synthesis)\.",
    "a pSp or e4e encoder with a generator inside it": r"^(module\.)?encoder\.(input_layer|body)\.",
    "a GFPGAN restoration network": r"^(module\.)?stylegan_decoder",
}
_NPY_TYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"}


@dataclasses.dataclass(frozen=True)
class Source:
    """A generator as a file holds it.

    Attributes:
        state: float32 arrays under stylegan2-ada-pytorch's names ("synthesis.b4.const").
        format: the file's format, for the header.
        conv_clamp: magnitude to which each convolution's output is clamped, or None.
        lr_multiplier: of the mapping network; its weights are stored divided by it.
        architecture: "skip", "resnet" or "orig"; None where the arrays tell.
        remarks: what a user should know, one sentence each.
    """

    state: dict[str, np.ndarray]
    format: str
    conv_clamp: float | None = None
    lr_multiplier: float = 0.01
    architecture: str | None = None
    remarks: tuple[str, ...] = ()


def check_size(arrays: Mapping[str, np.ndarray], file_size: int) -> None:
    """Check that arrays do not add up to more than their file can hold.

    Several names may refer to the same bytes, which would let a small file ask for any amount
    of memory.

    Raises:
        UserError: they do.
    """
    if sum(array.size for array in arrays.values()) > file_size:
        raise UserError("the file's arrays add up to more than the file holds; not read")


def refuse_other_networks(names: list[str]) -> None:
    """Name the kind of network that the arrays' names show, where it is a known other one.

    Raises:
        UserError: the names are those of another kind of network.
    """
    joined = "\n".join(names)
    advice = "only StyleGAN2 generators can be converted"
    for kind, pattern in _OTHER_NETWORKS.items():
        if re.search(pattern, joined, re.MULTILINE):
            raise UserError(f"this is {kind}; {advice}")


def checked(source: Source) -> Source:
    """The source with float32 arrays, once its names and bounds are plausible.

    Shapes are `stylesr_jax.generators.stylegan2.prepare`'s to check.

    Raises:
        UserError: they are not.
    """
    refuse_other_networks(list(source.state))
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
    with np.errstate(all="ignore"):
        state = {name: np.asarray(array, np.float32) for name, array in source.state.items()}
    return dataclasses.replace(source, state=state)


def require_names(state: Mapping[str, np.ndarray], config: StyleGAN2Config) -> None:
    """Check that a state dict holds nothing but what its configuration uses.

    A modified network would otherwise be converted without its additions.

    Raises:
        UserError: there are more arrays.
    """
    expected = {"mapping.w_avg", "synthesis.b4.const"}
    dense = [f"mapping.fc{i}" for i in range(len(config.mapping_widths))]
    expected |= {f"{layer}.{part}" for layer in [*dense, "mapping.embed"] for part in _DENSE}
    for size in config.block_resolutions:
        layers = ["conv1"] if size == 4 else ["conv0", "conv1"]
        if config.skeleton == "skip" or size == config.resolution:
            layers.append("torgb")
        expected |= {f"synthesis.b{size}.{layer}.{part}" for layer in layers for part in _LAYER}
        for layer in ("conv0", "conv1") if config.use_noise else ():
            expected |= {f"synthesis.b{size}.{layer}.{part}" for part in _NOISE}
        if config.skeleton == "resnet":
            expected.add(f"synthesis.b{size}.skip.weight")
    names = {name for name in state if not name.endswith(".resample_filter")}
    if unknown := sorted(names - expected):
        raise UserError(
            f"the generator has {unknown[0]!r:.80}, which StyleGAN2 does not; "
            "it is of a modified kind that is not read"
        )


def from_arrays(arrays: dict[str, np.ndarray], kind: str, file_size: int) -> Source:
    """A generator from a bare state dict with stylegan2-ada-pytorch's names.

    A prefix that all names share is taken off; other arrays are left out.

    Raises:
        UserError: the names are others.
    """
    anchor = "synthesis.b4.const"
    prefixes = [name.removesuffix(anchor) for name in arrays if name.endswith(anchor)]
    if len(prefixes) != 1:
        refuse_other_networks(list(arrays))
        raise UserError(
            f"this {kind} file holds no StyleGAN2 state dict: one array {anchor!r} is expected"
        )
    parts = (f"{prefixes[0]}synthesis.", f"{prefixes[0]}mapping.")
    state = {
        name.removeprefix(prefixes[0]): array
        for name, array in arrays.items()
        if name.startswith(parts)
    }
    check_size(state, file_size)
    remarks = ("a state dict does not say whether outputs are clamped; taken as not clamped",)
    return Source(state, f"state dict ({kind})", remarks=remarks)


def _npy(data: memoryview, name: str) -> np.ndarray:
    head = bytes(data[:12])
    wide = head[6:7] == b"\x02"
    start = 12 if wide else 10
    if len(head) < 12 or head[:6] != b"\x93NUMPY" or head[6:8] not in (b"\x01\0", b"\x02\0"):
        raise UserError(f"{name} in the archive is no numpy array that can be read")
    length = int.from_bytes(head[8:start], "little")
    match = _NPY_HEADER.fullmatch(bytes(data[start : start + min(length, 10_000)]))
    if match is None:
        raise UserError(f"{name} in the archive is no plain array of numbers; not read")
    shape = tuple(int(size) for size in match[3].split(b",") if size.strip())
    code = match[1].decode()
    if code[1:] not in _NPY_TYPES:
        raise UserError(f"{name} has elements of type {code!r}; only numbers are read")
    raw = data[start + length :]
    if math.prod(shape) * item_size(code[1:]) != len(raw) or len(shape) > 8:
        raise UserError(f"{name} in the archive is damaged: its shape does not fit its data")
    order = "F" if match[2] == b"True" else "C"
    return widen(raw, code[1:], ">" if code[0] == ">" else "<").reshape(shape, order=order)


def read_npz(archive: Archive) -> Source:
    """A bare state dict from the members of an `.npz` file.

    Raises:
        UserError: it is none.
    """
    names = [name for name in archive.names if name.endswith(".npy")]
    archive.allow_inflating()
    arrays = {name.removesuffix(".npy"): _npy(archive.read(name), name) for name in names}
    return from_arrays(arrays, "npz", archive.inflated_limit)


def is_safetensors(data: memoryview) -> bool:
    """Whether the bytes begin as a safetensors file does."""
    return len(data) > 9 and data[8] == ord("{") and int.from_bytes(data[:8], "little") < 1 << 40


def read_safetensors(data: memoryview) -> Source:
    """A bare state dict from the bytes of a `.safetensors` file.

    Raises:
        UserError: it is none, or it is damaged.
    """
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        raise UserError("the safetensors file ends too early; download it again")
    if length > MAX_HEADER:
        raise UserError("the safetensors file's header is implausibly long; not read")
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
    except (ValueError, RecursionError) as error:
        raise UserError("the safetensors file's header is damaged") from error
    metadata = header.pop("__metadata__", None) or {}
    if HEADER_KEY in metadata:
        raise UserError("this file is already converted; use it as it is")
    body = data[8 + length :]
    arrays = {}
    for name, entry in header.items():
        try:
            kind = _SAFETENSORS_TYPES[entry["dtype"]]
            shape = tuple(int(size) for size in entry["shape"])
            start, end = (int(offset) for offset in entry["data_offsets"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"the safetensors header's {name!r:.80} is damaged") from error
        if end > len(body):
            raise UserError("the safetensors file ends too early; download it again")
        fits = len(shape) <= 8 and min(shape, default=1) >= 0 and 0 <= start <= end
        if not fits or math.prod(shape) * item_size(kind) != end - start:
            raise UserError(f"{name!r:.80} is damaged: its shape does not fit its data")
        arrays[name] = widen(body[start:end], kind).reshape(shape)
    return from_arrays(arrays, "safetensors", len(data))
