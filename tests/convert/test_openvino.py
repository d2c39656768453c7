"""MobileStyleGAN from its OpenVINO wheel and its checkpoints, on tiny ones written here by hand."""

import io
import zipfile
from dataclasses import dataclass, field, replace
from xml.sax.saxutils import quoteattr

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import weight_files as wf
from convert.build import convert_file
from convert.detect import read_source
from convert.embedded import openvino
from convert.embedded.openvino import _read_constants, read_wheel
from convert.mobilestylegan import bands_first
from convert.parameters import Network
from stylesr_jax.errors import UserError
from stylesr_jax.loading import generator_from_file
from stylesr_jax.runtime import weights

W, Z = 6, 5  # w_dim, z_dim
C = 8  # channels out of every layer: two groups of four bands
INTO = {"conv1": C // 4, "conv2": C}  # channels into a block's layers
EIGHT = [0, 1, 2, 5, 3, 6, 4, 7]  # those channels, grouped by band


@dataclass
class Graph:
    """An OpenVINO IR that is written constant by constant; keeps the values by name."""

    layers: list[str] = field(default_factory=list)
    blob: bytearray = field(default_factory=bytearray)
    values: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, name: str, value: np.ndarray, kind: str = "f32", **changes: str) -> None:
        """One more constant; `changes` replaces attributes of its data."""
        data = value.astype(openvino.ELEMENT_TYPES[kind]).tobytes()
        facts = {
            "element_type": kind,
            "shape": ", ".join(map(str, value.shape)),
            "offset": str(len(self.blob)),
            "size": str(len(data)),
            **changes,
        }
        written = " ".join(f"{key}={quoteattr(text)}" for key, text in facts.items())
        self.layers.append(
            f'<layer id="{len(self.layers)}" name={quoteattr(name)} type="Const">'
            f"<data {written}/></layer>"
        )
        self.blob += data
        self.values[name] = value

    @property
    def xml(self) -> bytes:
        other = '<layer id="x" name="p" type="Parameter"><data shape="1,4"/></layer>'
        layers = other + "".join(self.layers) + '<layer id="y" name="c" type="Const"/>'
        return f'<?xml version="1.0"?><net version="10"><layers>{layers}</layers></net>'.encode()


def _random(seed: int):
    rng = np.random.default_rng(seed)
    return lambda *shape: rng.normal(size=shape).astype(np.float32)


def _mapping_graph() -> Graph:
    graph, draw = Graph(), _random(0)
    graph.add("epsilon", np.full((1, 1), 1e-8, np.float32))
    graph.add("axes", np.asarray([1]), "i64")
    graph.add("sizes", np.asarray([1, 2, 3]), "i64")
    for i, width in enumerate((7, W)):
        graph.add(f"{i}/weight", draw(width, (Z, 7)[i]))
        graph.add(f"{i}/bias", draw(width))
    return graph


def _synthesis_graph() -> Graph:
    """Constants in the order of the published graph: each layer's styles, products, noise, bias."""
    graph, draw = Graph(), _random(1)

    def dense(name: str, outputs: int) -> None:
        graph.add(f"{name}.weight", draw(outputs, W))
        graph.add(f"{name}.bias", draw(1, outputs))

    def output(name: str, channels: int, size: int) -> None:
        graph.add(f"{name}.noise", draw(1, 1, size, size) * 3)
        graph.add(f"{name}.bias", draw(1, channels, 1, 1))

    graph.add("m.input.input", draw(1, C, 4, 4))
    dense("m.conv1.conv.modulation", C)
    graph.add("input_copy", draw(C, C, 3, 3))
    output("m.conv1", C, 4)
    for i in range(2):
        dense(f"m.layers.{i}.up.modulation", C)
        for layer, into in INTO.items():
            name = f"m.layers.{i}.{layer}"
            dense(f"{name}.conv.modulation", into)
            graph.add(f"{name}.conv.weight_dw", draw(into, 1, 1, 3, 3))
            graph.add(f"{i}/{layer}_copy", draw(C, into, 1, 1))
            output(name, C, 8 << i)
    dense("m.layers.1.to_img.conv.modulation", C)
    graph.add("m.layers.1.to_img.conv.weight", draw(12, C, 1, 1))
    graph.add("m.layers.1.to_img.bias", draw(1, 12, 1, 1))
    return graph


def _members(mapping: Graph, synthesis: Graph) -> dict[str, bytes]:
    named = {"Mapping": mapping, "Synthesis": synthesis}
    members = {"random_face/__init__.py": b"raise SystemExit('nothing here is imported')"}
    for part, graph in named.items():
        members[f"random_face/data/{part}Network.xml"] = graph.xml
        members[f"random_face/data/{part}Network.bin"] = bytes(graph.blob)
    return members


def _wheel(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


@pytest.fixture
def mapping() -> Graph:
    return _mapping_graph()


@pytest.fixture
def synthesis() -> Graph:
    return _synthesis_graph()


@pytest.fixture
def members(mapping, synthesis) -> dict[str, bytes]:
    return _members(mapping, synthesis)


# --- constants ------------------------------------------------------------------------------


def test_constants_keep_order_names_types_and_shapes():
    graph = Graph()
    written = {
        "b": (np.arange(6, dtype=np.float32).reshape(1, 2, 3) - 2.5, "f32"),
        "a": (np.asarray([0.5, -2.0]), "f16"),
        "an <odd> & name": (np.asarray([[-1], [2**40]]), "i64"),
        "i": (np.asarray([-7]), "i32"),
        "u": (np.asarray([0, 255]), "u8"),
        "scalar": (np.asarray(1.5), "f32"),  # shape=""
        "empty": (np.zeros((0, 3)), "f32"),
    }
    for name, (value, kind) in written.items():
        graph.add(name, value, kind)
    found = _read_constants(graph.xml, bytes(graph.blob))
    assert [name for name, _ in found] == list(written)
    for name, value in found:
        wanted, kind = written[name]
        assert value.dtype == np.dtype(openvino.ELEMENT_TYPES[kind]), name
        np.testing.assert_array_equal(value, wanted, strict=False)
        assert value.shape == wanted.shape


def test_constants_may_share_bytes_and_be_padded():
    graph = Graph()
    value = np.arange(4, dtype=np.float32)
    graph.add("first", value)
    graph.add("second", value, offset="4", size="12", shape="3")
    graph.add("padded", value, shape="2")  # fewer values than bytes
    found = dict(_read_constants(graph.xml, bytes(graph.blob)))
    np.testing.assert_array_equal(found["second"], [1, 2, 3])
    np.testing.assert_array_equal(found["padded"], [0, 1])


@pytest.mark.parametrize("cut", [1, 4, 1000])
def test_constants_that_end_too_early(synthesis, cut):
    blob = bytes(synthesis.blob)
    assert len(_read_constants(synthesis.xml, blob)) == len(synthesis.values)
    with pytest.raises(UserError, match="end too early"):
        _read_constants(synthesis.xml, blob[:-cut])


@pytest.mark.parametrize("shape", ["5", "2,3", "4,4", "1000000,1000000"])
def test_shapes_larger_than_their_bytes(shape):
    graph = Graph()
    graph.add("a", np.zeros(4), shape=shape)
    graph.add("b", np.zeros(100))  # there would be bytes enough, but they are another's
    with pytest.raises(UserError, match="end too early"):
        _read_constants(graph.xml, bytes(graph.blob))


def test_bands_go_from_channel_first_to_band_first():
    # Two channels: their low bands, then three high bands of each.
    np.testing.assert_array_equal(bands_first(8), EIGHT)
    np.testing.assert_array_equal(bands_first(4), range(4))
    rgb = ["llR", "llG", "llB", *(f"{band}{c}" for c in "RGB" for band in ("lh", "hl", "hh"))]
    grouped = [f"{band}{c}" for band in ("ll", "lh", "hl", "hh") for c in "RGB"]
    assert [rgb[i] for i in bands_first(12)] == grouped


# --- the wheel ------------------------------------------------------------------------------


def test_the_configuration_follows_from_the_shapes(members):
    _, config = read_wheel(_wheel(members))
    assert (config.z_dim, config.w_dim, config.mapping_widths) == (Z, W, (7, W))
    assert (config.channels, config.resolution, config.num_ws) == ((C, C, C), 32, 8)
    assert config.noise_shapes == ((4, 4), (8, 8), (8, 8), (16, 16), (16, 16))


def test_parameters_fit_the_network(members):
    params, config = read_wheel(_wheel(members))
    noise = tuple(jnp.zeros(shape) for shape in config.noise_shapes)

    def initial():
        key = jax.random.key(0)
        ws = jnp.zeros((1, config.num_ws, W))
        return {
            "synthesis": config.synthesis_module().init(key, ws, noise)["params"],
            "mapping": config.mapping_module().init(key, jnp.zeros((1, Z)))["params"],
            "noise": {f"{i:02d}": one for i, one in enumerate(noise)},
        }

    wanted = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), jax.eval_shape(initial))
    assert jax.tree.map(lambda leaf: (np.shape(leaf), str(leaf.dtype)), params) == wanted


def test_the_mapping_network_is_the_linear_layers(mapping, members):
    params, _ = read_wheel(_wheel(members))
    for i in range(2):
        layer = params["mapping"][f"fc{i}"]
        np.testing.assert_array_equal(layer["weight"], mapping.values[f"{i}/weight"].T)
        np.testing.assert_array_equal(layer["bias"], mapping.values[f"{i}/bias"])


def test_the_input_layer(synthesis, members):
    found, values = read_wheel(_wheel(members))[0]["synthesis"]["input"], synthesis.values
    np.testing.assert_array_equal(found["constant"][1, 2, 3], values["m.input.input"][0, 3, 1, 2])
    for i, o in ((0, 0), (5, 3), (7, 7)):
        kernel = values["input_copy"][EIGHT[o], i]
        np.testing.assert_array_equal(found["weight"][:, :, i, o], kernel)
    bias = values["m.conv1.bias"].reshape(-1)
    np.testing.assert_array_equal(found["output"]["bias"], bias[EIGHT])
    gain = 1 / np.sqrt(9 * C)
    name = "m.conv1.conv.modulation"
    np.testing.assert_allclose(found["modulation"]["weight"], values[f"{name}.weight"].T * gain)
    np.testing.assert_allclose(found["modulation"]["bias"], values[f"{name}.bias"][0] * gain)


@pytest.mark.parametrize("i", [0, 1])
def test_a_block(synthesis, members, i):
    found, values = read_wheel(_wheel(members))[0]["synthesis"][f"block{i}"], synthesis.values
    up, name = found["up_modulation"], f"m.layers.{i}.up.modulation"  # of channels by band
    np.testing.assert_array_equal(up["weight"], values[f"{name}.weight"][EIGHT].T)
    np.testing.assert_array_equal(up["bias"], values[f"{name}.bias"][0, EIGHT])
    for layer, into in INTO.items():
        one, name = found[layer], f"m.layers.{i}.{layer}"
        # Bands of channels leave a block for the next one's up-sampling; other layers, and the
        # last block, have channels that keep their order.
        order = EIGHT if (i, layer) == (0, "conv2") else list(range(C))
        pointwise = values[f"{i}/{layer}_copy"][order, :, 0, 0]
        np.testing.assert_array_equal(one["pointwise"], pointwise.T)
        bias = values[f"{name}.bias"].reshape(-1)
        np.testing.assert_array_equal(one["output"]["bias"], bias[order])
        depthwise = values[f"{name}.conv.weight_dw"]
        assert one["depthwise"].shape == (3, 3, into)
        np.testing.assert_array_equal(one["depthwise"][0, 2], depthwise[:, 0, 0, 0, 2])
        modulation = values[f"{name}.conv.modulation.weight"].T / np.sqrt(9 * into)
        np.testing.assert_allclose(one["modulation"]["weight"], modulation, rtol=1e-6)


def test_the_image(synthesis, members):
    found, values = read_wheel(_wheel(members))[0]["synthesis"]["to_image"], synthesis.values
    order = [0, 1, 2, 3, 6, 9, 4, 7, 10, 5, 8, 11]
    weight = values["m.layers.1.to_img.conv.weight"][:, :, 0, 0]
    np.testing.assert_array_equal(found["weight"], weight[order].T)
    bias = values["m.layers.1.to_img.bias"].reshape(-1)
    np.testing.assert_array_equal(found["bias"], bias[order])
    modulation = values["m.layers.1.to_img.conv.modulation.weight"].T / np.sqrt(C)
    np.testing.assert_allclose(found["modulation"]["weight"], modulation, rtol=1e-6)


def test_noise_maps_have_unit_variance(synthesis, members):
    params, _ = read_wheel(_wheel(members))
    layers = params["synthesis"]
    outputs, names = [layers["input"]], ["m.conv1"]
    for i in range(2):
        outputs += [layers[f"block{i}"][layer] for layer in INTO]
        names += [f"m.layers.{i}.{layer}" for layer in INTO]
    for key, layer, name in zip(sorted(params["noise"]), outputs, names, strict=True):
        unit, strength = params["noise"][key], layer["output"]["noise_strength"]
        assert unit.std() == pytest.approx(1.0, abs=1e-5)
        product = unit * strength
        np.testing.assert_allclose(product, synthesis.values[f"{name}.noise"][0, 0], rtol=1e-5)


# --- checkpoints of MobileStyleGAN.pytorch --------------------------------------------------


def _demodulation(weight: np.ndarray, style_inv: np.ndarray) -> np.ndarray:
    """What multiplies each output of a convolution, by its definition: (out,)."""
    outputs, inputs, height, width = weight.shape
    scale = 1 / np.sqrt(inputs * height * width)
    norms = [
        sum(np.sum((scale * style_inv[i] * weight[o, i]) ** 2) for i in range(inputs))
        for o in range(outputs)
    ]
    return 1 / np.sqrt(np.asarray(norms) + 1e-8)


def _checkpoint(mapping: Graph, synthesis: Graph) -> dict[str, np.ndarray]:
    """A training checkpoint, and in `synthesis` the constants that its export would fold."""
    draw = _random(2)
    state: dict[str, np.ndarray] = {}
    for i in range(2):
        weight, bias = mapping.values[f"{i}/weight"], mapping.values[f"{i}/bias"]
        gain = np.float32(0.01 / np.sqrt(weight.shape[1]))
        state[f"mapping_net.layers.{i + 1}.weight"] = weight / gain
        state[f"mapping_net.layers.{i + 1}.bias"] = bias / np.float32(0.01)
    for name, value in synthesis.values.items():
        if name.startswith("m.") and not name.endswith(".noise"):
            grouped = name.endswith("weight_dw")  # the export adds an axis
            state[name.replace("m.", "student.", 1)] = value[:, 0] if grouped else value

    def folded(layer: str, copy: str, kernel: str) -> None:
        weight = draw(*synthesis.values[copy].shape)
        style_inv = draw(1, 1, weight.shape[1], 1, 1)
        state[f"{layer}.conv.{kernel}"] = weight
        state[f"{layer}.conv.style_inv"] = style_inv
        whole = weight
        if kernel == "weight_permute":
            whole = weight * state[f"{layer}.conv.weight_dw"].transpose(1, 0, 2, 3)
        factor = _demodulation(whole, style_inv.reshape(-1))
        synthesis.values[copy] = weight * factor[:, None, None, None].astype(np.float32)
        state[f"{layer}.noise.weight"] = draw(1)

    folded("student.conv1", "input_copy", "weight")
    for i in range(2):
        for layer in INTO:
            folded(f"student.layers.{i}.{layer}", f"{i}/{layer}_copy", "weight_permute")
    state["student.device_info"] = np.zeros(1, np.float32)
    state["synthesis_net.input.input"] = draw(1, C, 4, 4)  # the teacher
    state["style_mean"] = np.broadcast_to(draw(W), (1, 8, W)).copy()
    return state


@pytest.fixture
def checkpoint(mapping, synthesis) -> dict[str, np.ndarray]:
    return _checkpoint(mapping, synthesis)


def _read(state: dict[str, np.ndarray], **others) -> Network:
    network = read_source(memoryview(wf.torch_save_zip({"state_dict": state, **others})))
    assert isinstance(network, Network)
    return network


def _without_noise(params: dict) -> dict:
    return {
        name: _without_noise(value) if isinstance(value, dict) else value
        for name, value in params.items()
        if name not in ("noise", "noise_strength")
    }


def test_a_training_checkpoint_is_the_network_that_its_export_is(checkpoint, mapping, synthesis):
    exported = Graph()
    for name, value in synthesis.values.items():  # with the folded constants
        exported.add(name, value)
    wheel, config = read_wheel(_wheel(_members(mapping, exported)))
    network = _read(checkpoint, epoch=3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
        _without_noise(network.params),
        _without_noise(wheel),
    )
    assert network.config == replace(config, name="mobile")


def test_a_training_checkpoint_gets_fixed_noise_and_its_mean(checkpoint):
    network = _read(checkpoint)
    assert any("fixed ones were drawn" in remark for remark in network.remarks)
    maps = network.params["noise"]
    assert [maps[name].shape[0] for name in sorted(maps)] == [4, 8, 8, 16, 16]
    jax.tree.map(np.testing.assert_array_equal, network.params, _read(checkpoint).params)
    strength = network.params["synthesis"]["block1"]["conv2"]["output"]["noise_strength"]
    assert strength == checkpoint["student.layers.1.conv2.noise.weight"][0]
    np.testing.assert_array_equal(network.w_mean, checkpoint["style_mean"][0, 0])


def test_a_traced_checkpoint_keeps_its_noise(checkpoint):
    draw, sizes = _random(3), {"conv1": 4}
    sizes |= {f"layers.{i}.conv{j}": 8 << i for i in range(2) for j in (1, 2)}
    maps = {f"student.{layer}.noise.noise": draw(1, 1, s, s) for layer, s in sizes.items()}
    network = _read({**checkpoint, **maps})
    assert not any("noise" in remark for remark in network.remarks)
    for key, value in zip(sorted(network.params["noise"]), maps.values(), strict=True):
        np.testing.assert_array_equal(network.params["noise"][key], value[0, 0])


def test_a_checkpoint_in_our_format(checkpoint, tmp_path):
    path, out = tmp_path / "mobile.ckpt", tmp_path / "out.safetensors"
    path.write_bytes(wf.torch_save_zip({"state_dict": checkpoint}))
    notes = convert_file(path, out)
    generator = generator_from_file(out)
    assert weights.read_header(out)["notes"] == list(notes)
    assert generator.config.architecture == "mobile" and generator.name == "mobile"
    ws = jnp.broadcast_to(generator.statistics["w_mean"], (1, generator.num_ws, W))
    image = generator.synthesise(ws)
    assert image.shape == (1, 32, 32, 3) and np.isfinite(image).all() and image.std() > 0


INCOMPLETE = {
    "mapping_net.layers.1.weight": "not a complete MobileStyleGAN",
    "student.layers.1.conv1.conv.style_inv": "not a complete MobileStyleGAN",
    "student.layers.1.to_img.bias": "not a complete MobileStyleGAN",
    "student.layers.1.conv2.noise.weight": "not a complete MobileStyleGAN",
}


@pytest.mark.parametrize("missing", INCOMPLETE)
def test_an_incomplete_checkpoint(checkpoint, missing):
    del checkpoint[missing]
    with pytest.raises(UserError, match=INCOMPLETE[missing]):
        _read(checkpoint)


def test_a_student_without_its_mapping_network(checkpoint):
    student = {name: a for name, a in checkpoint.items() if name.startswith("student.")}
    with pytest.raises(UserError, match=r"mapping network is missing.*whole checkpoint"):
        _read(student)


def test_an_empty_array_in_a_checkpoint(checkpoint):
    checkpoint["mapping_net.layers.1.weight"] = np.zeros((0, Z), np.float32)
    with pytest.raises(UserError, match=r"'1\.weight' is empty"):
        _read(checkpoint)


def test_a_checkpoint_of_other_shapes(checkpoint):
    checkpoint["student.layers.0.conv2.conv.modulation.bias"] = np.zeros(C + 4, np.float32)
    with pytest.raises(UserError, match="other shapes"):
        _read(checkpoint)


# --- what is not that wheel -----------------------------------------------------------------


@pytest.mark.parametrize("part", ["Mapping", "Synthesis"])
@pytest.mark.parametrize("suffix", ["xml", "bin"])
def test_a_missing_file(members, part, suffix):
    del members[f"random_face/data/{part}Network.{suffix}"]
    with pytest.raises(UserError, match="not the random-face wheel"):
        read_wheel(_wheel(members))


@pytest.mark.parametrize("part", ["Mapping", "Synthesis"])
def test_a_short_file(members, part):
    name = f"random_face/data/{part}Network.bin"
    members[name] = members[name][:-3]
    with pytest.raises(UserError, match="end too early"):
        read_wheel(_wheel(members))


def test_large_members_are_not_read(members, monkeypatch):
    limit = max(map(len, members.values()))
    monkeypatch.setattr(openvino, "MEMBER_LIMIT", limit)
    read_wheel(_wheel(members))
    monkeypatch.setattr(openvino, "MEMBER_LIMIT", limit - 1)
    with pytest.raises(UserError, match="implausibly large"):
        read_wheel(_wheel(members))


def test_bytes_that_are_no_archive(members):
    wheel = _wheel(members)
    for data in (b"", b"PK\x03\x04 and more", wheel[: len(wheel) // 2]):
        with pytest.raises(UserError, match="not the random-face wheel"):
            read_wheel(data)


def test_another_graph(mapping, synthesis):
    with pytest.raises(UserError, match="not MobileStyleGAN's synthesis"):
        read_wheel(_wheel(_members(mapping, Graph())))
    synthesis.add("one more_copy", np.zeros((4, 4, 1, 1)))
    with pytest.raises(UserError, match="not MobileStyleGAN's synthesis"):
        read_wheel(_wheel(_members(mapping, synthesis)))


def _replaced(graph: Graph, name: str, value: np.ndarray | None) -> Graph:
    """A copy with another value of one constant, or without it."""
    found = Graph()
    for key, old in graph.values.items():
        new = value if key == name else old
        if new is not None:
            found.add(key, new, "i64" if new.dtype == np.int64 else "f32")
    return found


DAMAGED = {
    "an unnamed bias": ("m.conv1.bias", None),
    "no styles": ("m.layers.0.up.modulation.weight", None),
    "a constant of another shape": ("m.input.input", np.zeros(C)),
    "a bias too short": ("m.layers.1.to_img.bias", np.zeros((1, 11, 1, 1))),
    "a product of two axes": ("0/conv2_copy", np.zeros((C, C))),
    "a depthwise filter of two axes": ("m.layers.0.conv1.conv.weight_dw", np.zeros((3, 1))),
    "styles of another width": ("m.conv1.conv.modulation.weight", np.zeros((C, W + 1))),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_constants_of_the_wrong_shape(mapping, synthesis, name):
    graph = _replaced(synthesis, *DAMAGED[name])
    with pytest.raises(UserError):
        read_wheel(_wheel(_members(mapping, graph)))


@pytest.mark.parametrize("graph", [_replaced(_mapping_graph(), "1/bias", None), Graph()])
def test_a_mapping_network_without_a_bias_or_anything(graph, synthesis):
    with pytest.raises(UserError):
        read_wheel(_wheel(_members(graph, synthesis)))


BROKEN = {
    "no XML": b"<net><layers>",
    "no attributes": b'<net><layer type="Const"><data/></layer></net>',
    "an unknown type": b'<net><layer type="Const"><data element_type="boolean" shape="1" '
    b'offset="0" size="1"/></layer></net>',
    "no number": b'<net><layer type="Const"><data element_type="f32" shape="1" offset="x" '
    b'size="4"/></layer></net>',
    "a negative offset": b'<net><layer type="Const"><data element_type="f32" shape="1" '
    b'offset="-8" size="4"/></layer></net>',
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_graph(members, name):
    members["random_face/data/SynthesisNetwork.xml"] = BROKEN[name]
    with pytest.raises(UserError):
        read_wheel(_wheel(members))


def test_damaged_compression(members):
    wheel = bytearray(_wheel(members))
    info = zipfile.ZipFile(io.BytesIO(wheel)).getinfo("random_face/data/SynthesisNetwork.bin")
    start = info.header_offset + 30 + len(info.filename)
    for i in range(start, start + 40):
        wheel[i] ^= 0xFF
    with pytest.raises(UserError):
        read_wheel(bytes(wheel))


# --- files ----------------------------------------------------------------------------------


def test_only_the_published_wheel_is_converted(members, tmp_path, monkeypatch):
    source, out = tmp_path / "random_face.whl", tmp_path / "out.safetensors"
    source.write_bytes(_wheel(members))
    with pytest.raises(UserError, match="published wheel"):
        openvino.convert_file(source, out)
    with pytest.raises(UserError, match="does not exist"):
        openvino.convert_file(tmp_path / "missing.whl", out)
    assert not out.exists()
    monkeypatch.setattr(openvino, "WHEEL_SHA256", openvino.files.sha256(source))
    convert_file(source, out)  # tells by itself which format it is
    generator = generator_from_file(out)
    assert generator.config.architecture == "mobile" and generator.resolution == 32
    assert np.isfinite(generator.statistics["w_mean"]).all()
