"""The converter: published layouts in, the same arrays and images out; everything else refused."""

import dataclasses
import io
import json
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import weight_files as wf
from convert.build import build, convert_file, to_network
from convert.detect import read_source
from convert.parameters import Source, checked
from convert.state_dict import random_state
from convert.stylegan2 import main
from stylesr_jax.errors import UserError
from stylesr_jax.loading import generator_from_file, load_generator
from stylesr_jax.runtime import files, weights
from where import GOLDEN, ROOT

FIXTURES = {
    "ada_pytorch_skip_32.pkl": ("stylegan2_skip_32.npz", "stylegan2-ada-pytorch pickle"),
    "ada_pytorch_conditional_32.pkl": (
        "stylegan2_conditional_32.npz",
        "stylegan2-ada-pytorch pickle",
    ),
    "tf_legacy_skip_32.pkl": ("stylegan2_skip_32.npz", "TensorFlow pickle"),
    "tf_legacy_generator_only_32.pkl": ("stylegan2_skip_32.npz", "TensorFlow pickle"),
    "rosinality_32.pt": ("rosinality_32_expected.npz", "rosinality torch file"),
    "stylegan2_resnet_32.npz": ("stylegan2_resnet_32.npz", "state dict (npz)"),
}
TINY = {"channel_base": 128, "channel_max": 8, "z_dim": 16, "w_dim": 16, "mapping_layers": 3}
# Random weights of each kind that users bring.
KINDS = {
    "skip": {"resolution": 16},
    "orig": {"resolution": 16, "skeleton": "orig"},
    "resnet": {"resolution": 16, "skeleton": "resnet"},
    "conditional": {"resolution": 8, "label_dim": 3},
    "two mapping layers": {"resolution": 8, "mapping_layers": 2},
    "wide mapping": {"resolution": 8, "mapping_width": 1024},
    "no noise": {"resolution": 8, "use_noise": False},
    "grey": {"resolution": 8, "image_channels": 1},
}


def source_of(data: bytes) -> Source:
    return checked(read_source(memoryview(data)))


def same_state(source: Source, state: dict[str, np.ndarray], **tolerance: float) -> None:
    names = {name for name in state if not name.endswith("resample_filter")}
    if "mapping.w_avg" not in source.state:
        names.remove("mapping.w_avg")
    assert names == {name for name in source.state if not name.endswith("resample_filter")}
    for name in names:
        assert source.state[name].dtype == np.float32
        np.testing.assert_allclose(source.state[name], state[name], **tolerance, err_msg=name)


def unscaled(source: Source) -> Source:
    """Without the factor that rosinality's convolutions apply on each call."""
    state = {
        name: array * np.float32(np.sqrt(array[0].size))
        if name.endswith(("conv0.weight", "conv1.weight"))
        else array
        for name, array in source.state.items()
    }
    return dataclasses.replace(source, state=state)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")

    def convert(name: str) -> Path:
        out = folder / f"{name}.safetensors"
        if not out.exists():
            convert_file(GOLDEN / name, out)
        return out

    return convert


@jax.jit
def _latents_and_image(generator, z, labels, ws):
    return generator.map_latents(z, labels), generator.synthesise(ws)


@pytest.mark.parametrize("name", FIXTURES)
def test_a_converted_fixture_gives_the_reference_values(name, converted, golden):
    generator = generator_from_file(converted(name))
    expected = golden(FIXTURES[name][0])
    labels = jnp.asarray(expected["c"]) if "c" in expected and generator.label_dim else None
    z, ws = jnp.asarray(expected["z"]), jnp.asarray(expected["ws"])
    w, image = _latents_and_image(generator, z, labels, ws)
    np.testing.assert_allclose(w, expected["w"], atol=1e-5)
    wanted = expected["image_const"].transpose(0, 2, 3, 1)
    assert np.abs(image - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("name", FIXTURES)
def test_the_header_says_where_the_weights_come_from(name, converted):
    header = weights.read_header(converted(name))
    assert header["kind"] == "generator"
    assert header["source"] == name
    assert header["source_format"] == FIXTURES[name][1]
    assert header["source_sha256"] == files.sha256(GOLDEN / name)
    assert header["licence"].startswith("unknown")
    assert header["config"]["architecture"] == "stylegan2"
    assert header["config"]["resolution"] == 32


def test_statistics_are_those_of_the_mapping_network(converted, golden):
    generator = generator_from_file(converted("ada_pytorch_skip_32.pkl"))
    stored = golden("stylegan2_skip_32.npz")["state.mapping.w_avg"]
    np.testing.assert_array_equal(generator.statistics["w_mean"], stored)
    w = generator.map_latents(jax.random.normal(jax.random.key(7), (20_000, generator.z_dim)))
    linear = np.where(w > 0, w, 5 * w)
    mean, std = linear.mean(axis=0), linear.std(axis=0)
    error = std / np.sqrt(20_000)
    assert np.all(np.abs(generator.statistics["pulse_mean"] - mean) < 6 * error)
    np.testing.assert_allclose(generator.statistics["pulse_std"], std, rtol=0.05)


def test_labels_survive_and_shape_the_statistics(converted):
    generator = generator_from_file(converted("ada_pytorch_conditional_32.pkl"))
    assert generator.label_dim == 5
    z = jax.random.normal(jax.random.key(0), (2_000, generator.z_dim))
    means = [generator.map_latents(z, jnp.tile(c, (2_000, 1))).mean(axis=0) for c in jnp.eye(5)]
    assert np.abs(np.diff(means, axis=0)).max() > 0.01
    linear = np.concatenate([generator.map_latents(z, jnp.tile(c, (2_000, 1))) for c in jnp.eye(5)])
    linear = np.where(linear > 0, linear, 5 * linear)
    np.testing.assert_allclose(generator.statistics["pulse_std"], linear.std(axis=0), rtol=0.1)


def test_the_tuple_and_the_lone_network_give_the_same_arrays():
    both = [
        source_of((GOLDEN / f"tf_legacy_{n}.pkl").read_bytes()).state
        for n in ("skip_32", "generator_only_32")
    ]
    assert both[0].keys() == both[1].keys()
    assert all(np.array_equal(both[0][name], both[1][name]) for name in both[0])


def writers(state: dict, options: dict) -> dict[str, bytes]:
    """The bytes of a state dict in every layout that can hold it."""
    skeleton = options.get("skeleton", "skip")
    npz, packed = io.BytesIO(), io.BytesIO()
    np.savez(npz, **state)
    np.savez_compressed(packed, **{f"G_ema.{name}": a for name, a in state.items()}, other=1.0)
    network = wf.ada_network(state, architecture=skeleton)
    channels = options.get("image_channels", 3)
    tf = wf.tf_generator(state, architecture=skeleton, num_channels=channels)
    files = {
        "ada, protocol 4": wf.ada_pickle(network),
        "ada, protocol 3": wf.ada_pickle(network, 3),
        "ada, protocol 2": wf.ada_pickle(network, 2),
        "ada, lone": wf.dumps(network),
        "tf": wf.dumps((None, None, tf)),
        "tf, protocol 3": wf.dumps(tf, 3),
        "npz": npz.getvalue(),
        "npz, compressed": packed.getvalue(),
        "safetensors": safetensors.numpy.save(
            {name: np.array(array, order="C") for name, array in state.items()}
        ),
        "torch state dict": wf.torch_save_zip(state),
    }
    if skeleton == "skip" and "label_dim" not in options and options.get("use_noise", True):
        ros = {"g_ema": wf.rosinality_state(state), "latent_avg": state["mapping.w_avg"]}
        files["rosinality zip"] = wf.torch_save_zip(ros)
        files["rosinality legacy"] = wf.torch_save_legacy(ros)
        files["rosinality, lone"] = wf.torch_save_legacy(ros["g_ema"])
    return files


@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_gives_back_the_arrays(kind):
    options = {**TINY, **KINDS[kind]}
    state = random_state(seed=3, **options)
    for layout, data in writers(state, options).items():
        source = source_of(data)
        if "rosinality" in layout:
            source = unscaled(source)
        same_state(source, state, rtol=2e-6 if "ros" in layout or "tf" in layout else 0, atol=1e-6)
    generator = build(to_network(source, name=kind), draws=100)
    assert generator.resolution == options["resolution"]
    assert len(generator.config.mapping_widths) == options["mapping_layers"]
    assert generator.label_dim == options.get("label_dim", 0)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_stored_arguments_are_used(protocol):
    state = random_state(seed=4, resolution=8, lr_multiplier=0.05, **TINY)
    network = wf.ada_network(state, conv_clamp=256, lr_multiplier=0.05)
    source = source_of(wf.ada_pickle(network, protocol))
    assert (source.conv_clamp, source.lr_multiplier, source.architecture) == (256, 0.05, "skip")
    tf = wf.tf_generator(state, conv_clamp=64, mapping_lrmul=0.05, resample_kernel=[1, 2, 2, 1])
    source = source_of(wf.dumps(tf, protocol))
    assert (source.conv_clamp, source.lr_multiplier) == (64, 0.05)
    generator = build(to_network(source, name="tf"), draws=100)
    assert generator.config.conv_clamp == 64
    np.testing.assert_allclose(generator.config.taps, np.array([1, 2, 2, 1]) / 3)


def test_half_precision_and_bfloat16_are_widened():
    state = {n: a.astype(np.float16) for n, a in random_state(seed=5, resolution=8, **TINY).items()}
    same_state(
        source_of(wf.torch_save_zip({"g_ema": wf.rosinality_state(state)})),
        {
            name: a.astype(np.float32)
            / (np.sqrt(a[0].size) if "conv" in name and a.ndim == 4 else 1)
            for name, a in state.items()
        },
        rtol=1e-6,
    )
    exact = {
        n: (a.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        for n, a in state.items()
    }
    header, body = {}, b""
    for name, array in exact.items():
        raw = (array.view(np.uint32) >> 16).astype("<u2").tobytes()
        offsets = [len(body), len(body) + len(raw)]
        header[name] = {"dtype": "BF16", "shape": list(array.shape), "data_offsets": offsets}
        body += raw
    text = json.dumps(header).encode()
    same_state(source_of(len(text).to_bytes(8, "little") + text + body), exact)


# --- where a generator is kept --------------------------------------------------------------


def below(prefix: str):
    return lambda state: {f"{prefix}.{name}": array for name, array in state.items()}


# Path of the generator, and the dictionary that a training code saves around its state dict.
CONTAINERS = {
    "g": lambda state: {"g": state},
    "g_ema": lambda state: {"g_ema": state},
    "G": lambda state: {"G": state},
    "G_ema": lambda state: {"G_ema": state},
    "params_ema": lambda state: {"params_ema": state},
    "generator": lambda state: {"generator": state, "discriminator": {"conv.weight": ONES}},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "decoder": below("decoder"),
    "module": below("module"),
    "g_ema.module": lambda state: {"g_ema": below("module")(state), "iter": 100},
    "state_dict.G_ema": lambda state: {
        "pytorch-lightning_version": "2.0",
        "state_dict": {**below("G_ema")(state), "D.b4.conv.weight": ONES},
        "hyper_parameters": {"lr": 0.002},
    },
    "checkpoint.model.generator": lambda state: {"checkpoint": {"model": {"generator": state}}},
}
ONES = np.ones((2, 2), np.float32)
LATENT = np.linspace(-1, 1, 16, dtype=np.float32)
SMALL = random_state(seed=11, resolution=8, **TINY)
LAYOUTS = {
    "ada": SMALL,
    "rosinality": wf.rosinality_state(SMALL),
    "BasicSR": wf.basicsr_state(wf.rosinality_state(SMALL)),
}


def flat(value: dict, prefix: str = "") -> dict[str, np.ndarray]:
    """The arrays of nested dictionaries by dotted name."""
    result = {}
    for name, entry in value.items():
        if isinstance(entry, dict):
            result |= flat(entry, f"{prefix}{name}.")
        elif isinstance(entry, np.ndarray):
            result[prefix + name] = entry
    return result


def as_npz(value: dict) -> bytes:
    return bare(**flat(value))


def as_safetensors(value: dict) -> bytes:
    arrays = {name: np.array(array, order="C") for name, array in flat(value).items()}
    return safetensors.numpy.save(arrays)


FILES = {
    "pt": wf.torch_save_zip,
    "old pt": wf.torch_save_legacy,
    "npz": as_npz,
    "safetensors": as_safetensors,
    "pickle of numpy arrays": pickle.dumps,
}


def same_as_small(source: Source) -> None:
    if not source.format.startswith(("state dict", "stylegan2-ada")):
        source = unscaled(source)
    same_state(source, SMALL, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("path", CONTAINERS)
def test_a_generator_is_found_where_training_codes_keep_it(path, layout, file):
    source = source_of(FILES[file](CONTAINERS[path](LAYOUTS[layout])))
    same_as_small(source)
    said = [remark for remark in source.remarks if remark.startswith("read from")]
    if "ema" in path:
        assert said == [f"read from {path!r}, the averaged (EMA) generator"]
    elif path in ("state_dict", "module"):
        assert not said
    else:
        assert said == [f"read from {path!r}; the file holds no averaged (EMA) generator"]


@pytest.mark.parametrize("file", FILES)
def test_the_averaged_generator_is_taken_and_the_other_named(file):
    other = random_state(seed=12, resolution=8, **TINY)
    discriminator = {"b4.conv.weight": ONES, "b4.out.weight": ONES}
    for value in (
        {"G": other, "D": discriminator, "G_ema": SMALL},
        {"g_ema": SMALL, "g": other, "d": discriminator},
        {"state_dict": {**below("generator")(other), **below("generator_ema")(SMALL)}},
        {"params": other, "params_ema": SMALL},
    ):
        source = source_of(FILES[file](value))
        same_as_small(source)
        assert any("averaged" in r and "left out" in r for r in source.remarks)


def test_two_generators_of_the_same_rank_are_refused_by_name():
    data = wf.torch_save_zip({"first": SMALL, "second": SMALL})
    with pytest.raises(UserError, match=r"several generators \('first', 'second'\).*state_dict"):
        source_of(data)


@pytest.mark.parametrize("shape", [(16,), (1, 16), (6, 16)])
def test_an_encoder_s_decoder_and_mean_latent(shape):
    """pSp, e4e and ReStyle keep the encoder beside it, and repeat the mean for every layer."""
    ros = wf.rosinality_state(SMALL)
    network = {"encoder.input_layer.0.weight": ONES, "encoder.body.0.res_layer.1.weight": ONES}
    value = {
        "state_dict": {**network, **below("decoder")(ros)},
        "latent_avg": np.broadcast_to(LATENT, shape).copy(),
        "opts": {"output_size": 8, "device": "cuda:0"},
    }
    source = source_of(wf.torch_save_zip(value))
    assert "read from 'state_dict.decoder'" in source.remarks[0]
    generator = build(to_network(source, name="pSp"), draws=100)
    np.testing.assert_array_equal(generator.statistics["w_mean"], LATENT)
    same_as_small(dataclasses.replace(source, state={**source.state, "mapping.w_avg": SMALL_MEAN}))


SMALL_MEAN = SMALL["mapping.w_avg"]


def test_a_mean_latent_that_differs_between_layers_is_refused():
    value = {"g_ema": wf.rosinality_state(SMALL), "latent_avg": np.stack([LATENT, -LATENT])}
    with pytest.raises(UserError, match="mean latent is not the same"):
        source_of(wf.torch_save_zip(value))


@pytest.mark.parametrize("where", ["alone", "G_ema", "legacy"])
def test_a_module_that_torch_saved(where):
    """PTI's model_*.pt: a persistent module, its tensors beside the pickle."""
    network = wf.ada_network(SMALL, conv_clamp=256, record=np.asarray)
    data = {
        "alone": lambda: wf.torch_save_zip(network),
        "G_ema": lambda: wf.torch_save_zip({"G": None, "G_ema": network}),
        "legacy": lambda: wf.torch_save_legacy(network),
    }[where]()
    source = source_of(data)
    same_as_small(source)
    assert (source.conv_clamp, source.architecture) == (256, "skip")
    assert source.format == "stylegan2-ada-pytorch torch file"


def test_a_pickle_without_an_averaged_generator():
    source = source_of(wf.dumps({"G": wf.ada_network(SMALL), "D": None}))
    same_as_small(source)
    assert source.remarks == ("read from 'G'; the file holds no averaged (EMA) generator",)


# --- kinds of networks ----------------------------------------------------------------------


def without_noise(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {n: a for n, a in state.items() if "noises" not in n and "noise_const" not in n}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_missing_noise_maps_are_drawn_and_said(layout, tmp_path):
    path, out = tmp_path / "in.pt", tmp_path / "out.safetensors"
    path.write_bytes(wf.torch_save_zip({"g_ema": without_noise(LAYOUTS[layout])}))
    said = convert_file(path, out)
    assert any("fixed ones were drawn" in remark for remark in said)
    assert weights.read_header(out)["notes"] == list(said)
    maps = generator_from_file(out).stored_noise
    assert [m.shape for m in maps] == [(4, 4), (8, 8), (8, 8)]
    assert all(0.6 < m.std() < 1.4 for m in maps)
    assert not np.array_equal(maps[1], maps[2])
    again = checked(read_source(memoryview(path.read_bytes()))).state
    np.testing.assert_array_equal(again["synthesis.b8.conv0.noise_const"], maps[1])


def test_networks_without_noise_get_none():
    state = random_state(seed=3, resolution=8, use_noise=False, **TINY)
    source = source_of(wf.torch_save_zip(state))
    assert not any("noise" in name for name in source.state)
    assert not any("noise" in remark for remark in source.remarks)


def test_residual_shortcuts_are_linear_and_not_clamped():
    """stylegan2-ada-pytorch: `Conv2dLayer(..., activation='linear', conv_clamp=None)`."""
    state = random_state(seed=3, resolution=8, skeleton="resnet", **TINY)
    network = wf.ada_network(state, architecture="resnet", conv_clamp=256)
    source = source_of(wf.ada_pickle(network))
    same_state(source, state)
    assert (source.conv_clamp, source.architecture) == (256, "resnet")
    other = wf.ada_network(state, architecture="resnet", shortcut="lrelu")
    with pytest.raises(UserError, match=r"b8\.skip uses the activation 'lrelu', not 'linear'"):
        source_of(wf.ada_pickle(other))


@pytest.mark.parametrize("skeleton", ["skip", "resnet", "orig"])
def test_one_channel_makes_grey_pictures(skeleton, tmp_path):
    options = {"seed": 3, "resolution": 8, "skeleton": skeleton, **TINY}
    state = random_state(image_channels=1, **options)
    network = to_network(source_of(wf.torch_save_zip(state)), name="grey")
    assert any("grey pictures" in remark for remark in network.remarks)
    generator = build(network, draws=100)
    ws = jax.random.normal(jax.random.key(0), (2, generator.num_ws, generator.w_dim))
    image = generator.synthesise(ws)
    assert image.shape == (2, 8, 8, 3) and image.std() > 0
    np.testing.assert_array_equal(image, np.broadcast_to(image[..., :1], image.shape))
    three = {
        name: np.repeat(array, 3, axis=0) if ".torgb." in name and "affine" not in name else array
        for name, array in state.items()
    }
    colour = build(to_network(Source(three, "direct"), name="colour"), draws=100)
    np.testing.assert_allclose(image, colour.synthesise(ws), atol=1e-6 * np.abs(image).max())


def test_two_channels_are_refused():
    state = random_state(seed=3, resolution=8, image_channels=2, **TINY)
    with pytest.raises(UserError, match="2 channels, not RGB or grey"):
        to_network(source_of(wf.torch_save_zip(state)), name="x")


# --- other networks, wherever they sit ------------------------------------------------------

OTHERS = {
    "StyleGAN3": ["synthesis.input.freqs", "synthesis.L0_36_16.weight", "mapping.fc0.weight"],
    "StyleGAN1": ["g_synthesis.blocks.4x4.const", "g_mapping.dense0.weight"],
    "StyleGAN1 generator": ["generator.progression.0.conv1.weight", "style.1.weight"],
    "GenForce": ["synthesis.early_layer.const", "mapping.dense0.weight"],
    "MMGeneration": ["style_mapping.1.weight", "constant_input.const"],
    "lucidrains": ["S.net.0.weight", "G.initial_block"],
    "encoder without its decoder": ["encoder.input_layer.0.weight", "encoder.body.0.weight"],
    "discriminator": ["b4.conv.weight", "b4.out.weight"],
    "GFPGAN": ["stylegan_decoder.constant_input.scale"],
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("path", ["g_ema", "state_dict.G_ema", "module", "decoder"])
@pytest.mark.parametrize("kind", OTHERS)
def test_other_networks_are_named_wherever_they_sit(kind, path, file):
    data = FILES[file](CONTAINERS[path]({name: ONES for name in OTHERS[kind]}))
    with pytest.raises(UserError, match=f"this is .*{kind}"):
        source_of(data)


def test_a_stylegan3_module_that_torch_saved():
    arrays = {name: ONES for name in OTHERS["StyleGAN3"]}
    with pytest.raises(UserError, match="StyleGAN3"):
        source_of(wf.torch_save_zip(wf.ada_network(arrays, record=np.asarray)))


def test_a_whole_network_of_another_code_is_refused_with_a_way_out():
    network = wf.Call(wf.Name("model", "Generator"), (), {"_parameters": {}}, new=True)
    for value in (network, {"g_ema": network}, {"state_dict": [network]}):
        with pytest.raises(UserError, match=r"'model.Generator'.*nothing was run.*state_dict\(\)"):
            source_of(wf.torch_save_zip(value))


# --- refusals -------------------------------------------------------------------------------


def tiny_network() -> wf.Call:
    return wf.ada_network(random_state(seed=6, resolution=8, **TINY))


def unknown(name: str = "Discriminator") -> wf.Call:
    return wf.Call(wf.Name("my_fork.training", name), (1,), {"weights": [1, 2]})


def test_the_generator_is_read_beside_networks_that_cannot_be():
    source = source_of(wf.ada_pickle(tiny_network(), G=unknown("Generator"), D=unknown()))
    assert any("my_fork.training.Discriminator" in remark for remark in source.remarks)
    tf = wf.tf_generator(random_state(seed=6, resolution=8, **TINY))
    source = source_of(wf.dumps((unknown(), unknown(), tf)))
    assert "synthesis.b4.const" in source.state
    ros = {"g_ema": wf.rosinality_state(random_state(seed=6, resolution=8, **TINY))}
    assert (
        source_of(wf.torch_save_zip({"args": unknown("Namespace"), **ros})).architecture == "skip"
    )


def torch_file(*names: str) -> bytes:
    return wf.torch_save_zip({name: np.zeros((2, 2, 3, 3), np.float32) for name in names})


def sg3(kernel: int) -> bytes:
    arrays = {
        "synthesis.input.freqs": np.zeros((8, 2), np.float32),
        "synthesis.L0_36_16.weight": np.zeros((8, 8, kernel, kernel), np.float32),
        "mapping.fc0.weight": np.zeros((8, 8), np.float32),
    }
    return wf.ada_pickle(wf.ada_network(arrays))


def stylegan1() -> bytes:
    variables = {"4x4/Const/StyleMod/weight": np.zeros((2, 2), np.float32)}
    synthesis = wf.tf_network("G_synthesis", variables, {})
    return wf.dumps((None, None, wf.tf_network("G_style", {}, {}, synthesis=synthesis)))


def torch_script() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/data.pkl", wf.dumps({}, 2))
        archive.writestr("model/constants.pkl", wf.dumps((), 2))
        archive.writestr("model/code/__torch__.py", "import os")
    return file.getvalue()


def bare(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def changed(**changes: np.ndarray | None) -> bytes:
    """A good state dict with some arrays replaced, or left out."""
    state = random_state(seed=8, resolution=8, **TINY)
    for name, array in changes.items():
        name = name.replace("__", ".")
        if array is None:
            del state[name]
        else:
            state[name] = array
    return bare(**state)


ADA = (GOLDEN / "ada_pytorch_skip_32.pkl").read_bytes
REFUSED = {
    "an empty file": (lambda: b"", "empty.*fetch"),
    "a truncated pickle": (lambda: ADA()[:900_000], "pickle data was truncated.*download it again"),
    "a truncated archive": (
        lambda: (GOLDEN / "rosinality_32.pt").read_bytes()[:90_000],
        "truncated.*download it again",
    ),
    "a truncated torch stream": (
        lambda: wf.torch_save_legacy({"a": np.zeros(99, np.float32)})[:-10],
        "pickle data was truncated",
    ),
    "a truncated safetensors file": (
        lambda: safetensors.numpy.save({"a": np.zeros(99, np.float32)})[:-10],
        "ends too early",
    ),
    "an HTML page": (lambda: b"\n<!DOCTYPE html><html>not found</html>", "HTML page.*error page"),
    "an XHTML page": (lambda: b"<?xml version='1.0'?>\n<!DOCTYPE html>", "HTML page"),
    "XML": (lambda: b"<?xml version='1.0'?><net/>", "XML.*wheel"),
    "a very wide mapping network": (
        lambda: changed(mapping__fc0__weight=np.zeros((9000, 16), np.float32)),
        "deep or wide",
    ),
    "a very deep mapping network": (
        lambda: changed(**{f"mapping__fc{i}__bias": np.zeros(1, np.float32) for i in range(200)}),
        "deep or wide",
    ),
    "very many classes": (
        lambda: changed(mapping__embed__weight=np.zeros((1, 40_000), np.float32)),
        "deep or wide",
    ),
    "a quota page": (
        lambda: b"<html><title>Google Drive - Quota exceeded</title></html>",
        "HTML page.*quota is used up",
    ),
    "a virus scan page": (lambda: b"<html>Virus scan warning</html>", "HTML page.*browser"),
    "a git-lfs pointer": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "git-lfs pointer.*git lfs pull",
    ),
    "zeros": (lambda: bytes(5000), "zeros only"),
    "gzip": (lambda: b"\x1f\x8b\x08" + bytes(99), "gzip: unpack"),
    "tar": (lambda: bytes(1) + b"x" * 256 + b"ustar\x0000", "tar archive: unpack"),
    "TFLite": (lambda: b"\x1c\0\0\0TFL3" + bytes(99), "TFLite.*exported from"),
    "ONNX": (lambda: b"\x08\x07\x12\x07pytorch\x1a" + bytes(99), "ONNX.*exported from"),
    "a picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(99), "PNG image"),
    "text": (lambda: b"hello world", "unknown format.*invalid load key"),
    "StyleGAN3-T": (lambda: sg3(3), "StyleGAN3"),
    "StyleGAN3-R": (lambda: sg3(1), "StyleGAN3"),
    "StyleGAN1, TensorFlow": (stylegan1, "StyleGAN1"),
    "StyleGAN1, torch": (lambda: torch_file("g_synthesis.blocks.4x4.const"), "StyleGAN1"),
    "an old TensorFlow pickle": (
        lambda: wf.dumps(wf.Call(wf.NETWORK, (), {"version": 3, "variables": []}, new=True)),
        "version 3",
    ),
    "Progressive GAN": (
        lambda: wf.dumps((wf.Call(wf.Name("tfutil", "Network"), (), {"a": 1}, new=True),)),
        "Progressive GAN",
    ),
    "BigGAN": (
        lambda: torch_file(
            "shared.weight", "blocks.0.0.conv1.weight", "blocks.0.0.bn1.gain.weight"
        ),
        "BigGAN",
    ),
    "BigGAN-deep": (lambda: torch_file("generator.gen_z.weight_orig"), "BigGAN"),
    "EG3D": (lambda: torch_file("backbone.synthesis.b4.const"), "EG3D"),
    "pSp": (lambda: torch_file("encoder.input_layer.0.weight"), "pSp"),
    "an incomplete decoder": (
        lambda: torch_file("encoder.input_layer.0.weight", "decoder.input.input"),
        "no 'synthesis|blocks at|fc0",
    ),
    "another torch file": (lambda: torch_file("layer1.weight"), "no StyleGAN2.*layer1.weight"),
    "TorchScript": (torch_script, "TorchScript.*state_dict"),
    "a discriminator alone": (
        lambda: wf.dumps(
            wf.ada_network(
                {"b4.conv.weight": np.zeros((2, 2), np.float32)}, class_name="Discriminator"
            )
        ),
        "'Discriminator', not a StyleGAN2 'Generator'",
    ),
    "a pickle without G_ema": (lambda: wf.dumps({"G": None, "D": None}), "'G', 'D'; G_ema"),
    "an unknown global in G_ema": (lambda: wf.ada_pickle(unknown()), "my_fork.training.Discr"),
    "an unknown TensorFlow argument": (
        lambda: wf.dumps(wf.tf_generator(random_state(seed=1, resolution=8, **TINY), extra=1)),
        "'extra'",
    ),
    "an activation that is not known": (
        lambda: wf.dumps(
            wf.tf_generator(random_state(seed=1, resolution=8, **TINY), nonlinearity="relu")
        ),
        "nonlinearity = 'relu'",
    ),
    "no mapping network": (
        lambda: changed(
            **{f"mapping__fc{i}__{p}": None for i in range(3) for p in ("weight", "bias")}
        ),
        "mapping.fc0.weight",
    ),
    "a missing array": (lambda: changed(synthesis__b8__conv0__weight=None), "b8.conv0.weight"),
    "an addition": (
        lambda: changed(synthesis__b8__attention__weight=np.zeros(3, np.float32)),
        "attention.*modified",
    ),
    "a huge resolution": (
        lambda: changed(synthesis__b65536__conv1__weight=np.zeros(3, np.float32)),
        "65536 px",
    ),
    "a wrong shape": (
        lambda: changed(synthesis__b8__conv0__bias=np.zeros(3, np.float32)),
        "b8.conv0.bias",
    ),
    "values that are not finite": (
        lambda: changed(synthesis__b8__conv0__bias=np.full(8, np.nan, np.float32)),
        "not finite",
    ),
    "values that overflow": (
        lambda: changed(synthesis__b8__conv0__weight=np.full((8, 8, 3, 3), 1e38, np.float32)),
        "implausibly large",
    ),
    "a wrong mean": (lambda: changed(mapping__w_avg=np.zeros(3, np.float32)), "mean w"),
    "object arrays": (lambda: bare(a=np.zeros(4, "S3")), "only numbers|no plain array"),
    "an empty zip": (lambda: b"PK\x03\x04" + zip_of({})[0:22], "empty|damaged|no weights"),
    "a converted file": (
        lambda: safetensors.numpy.save({"a": np.zeros(2, np.float32)}, {weights.HEADER_KEY: "{}"}),
        "already converted",
    ),
}


def zip_of(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


@pytest.mark.parametrize("what", REFUSED)
def test_refused_by_name(what, tmp_path):
    make, pattern = REFUSED[what]
    path = tmp_path / "in.pkl"
    path.write_bytes(make())
    with pytest.raises(UserError, match=pattern) as caught:
        convert_file(path, tmp_path / "out.safetensors")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert os.listdir(tmp_path) == ["in.pkl"]


# --- the command line and load_generator ----------------------------------------------------


def test_command_line(tmp_path, capsys):
    out = tmp_path / "folder" / "out.safetensors"
    assert main([str(GOLDEN / "tf_legacy_skip_32.pkl"), "--out", str(out)]) == 0
    assert "stylegan2 32 px, 8 styles of 64, no classes" in capsys.readouterr().out
    assert main([str(GOLDEN / "rosinality_32.pt"), "--conv-clamp", "9", "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert main([str(tmp_path / "absent.pkl"), "--out", str(out)]) == 2
    assert "absent.pkl" in capsys.readouterr().err
    source = GOLDEN / "stylegan2_skip_clamp_64.npz"
    assert main([str(source), "--conv-clamp", "256", "--out", str(out)]) == 0
    assert generator_from_file(out).config.conv_clamp == 256


def test_the_clamped_network_needs_its_clamp(tmp_path, golden):
    expected = golden("stylegan2_skip_clamp_64.npz")
    state = {n.removeprefix("state."): a for n, a in expected.items() if n.startswith("state.")}
    source = source_of(wf.ada_pickle(wf.ada_network(state, conv_clamp=CLAMP)))
    generator = build(to_network(source, name="x"), draws=100)
    image = generator.synthesise(jnp.asarray(expected["ws"]))
    wanted = expected["image_const"].transpose(0, 2, 3, 1)
    assert np.abs(image - wanted).max() < 1e-4 * np.abs(wanted).max()


CLAMP = 256


def test_the_input_file_is_never_written_over(tmp_path, capsys):
    source = tmp_path / "in.safetensors"
    safetensors.numpy.save_file({n: np.array(a, order="C") for n, a in SMALL.items()}, source)
    before = source.read_bytes()
    (tmp_path / "link.safetensors").symlink_to(source)
    os.link(source, tmp_path / "same.safetensors")
    for name in ("in", "link", "same"):
        assert main([str(source), "--out", str(tmp_path / f"{name}.safetensors")]) == 2
        assert "input file itself" in capsys.readouterr().err
    assert main([str(source), "--out", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert source.read_bytes() == before


ADDRESSES = ["https://example.org/ffhq.pkl", "http://a/b.pt?x=1", "HTTPS://EXAMPLE.ORG/x"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_points_to_the_command_that_fetches(address, tmp_path, capsys):
    with pytest.raises(UserError, match=r"address.*python -m convert\.fetch") as caught:
        load_generator(address)
    assert address in str(caught.value)
    assert main([address, "--out", str(tmp_path / "out.safetensors")]) == 2
    assert f"python -m convert.fetch {address}" in capsys.readouterr().err


def small_file(folder: Path) -> Path:
    path = folder / "in.pt"
    path.write_bytes(wf.torch_save_zip({"g_ema": SMALL}))
    return path


@pytest.mark.parametrize("in_cache", [True, False])
def test_a_full_disk_ends_in_a_line_that_says_what_helps(in_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("STYLESR_CACHE", str(tmp_path / "cache"))
    path = small_file(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As a full disk does, the limit lets a file begin and then refuses to let it grow.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*too large") as caught:
            if in_cache:
                load_generator(path)
            else:
                convert_file(path, tmp_path / "folder" / "out.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = str(caught.value)
    assert ("STYLESR_CACHE" if in_cache else "choose another folder") in message
    assert "\n" not in message
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file != path]


def test_a_cache_that_cannot_be_written_names_its_setting(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("STYLESR_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cannot write in .*STYLESR_CACHE"):
        load_generator(small_file(tmp_path))


def test_load_generator_converts_once(tmp_path, monkeypatch):
    monkeypatch.setenv("STYLESR_CACHE", str(tmp_path))
    path = GOLDEN / "ada_pytorch_skip_32.pkl"
    first = load_generator(path)
    (cached,) = (tmp_path / "generators").iterdir()
    assert cached.name == f"{files.sha256(path)}.safetensors"
    before = cached.stat().st_mtime_ns
    second = load_generator(path)
    assert cached.stat().st_mtime_ns == before
    assert jax.tree.all(jax.tree.map(np.array_equal, first.params, second.params))


def test_the_wheel_goes_to_its_own_converter(tmp_path):
    path = tmp_path / "x.whl"
    path.write_bytes(zip_of({"random_face/data/SynthesisNetwork.xml": b"<net/>"}))
    with pytest.raises(UserError, match="published wheel"):
        convert_file(path, tmp_path / "out.safetensors")


def run_converter(source: Path, out: Path) -> tuple[float, float]:
    """(processor seconds, peak resident GB) of a conversion in a process of its own."""
    # The peak that getrusage knows may be that of the process that started it.
    code = (
        "import sys, time; from convert.stylegan2 import main; assert main(sys.argv[1:]) == 0\n"
        "print(time.process_time(), open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    command = [sys.executable, "-c", code, str(source), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    seconds, kilobytes = done.stdout.splitlines()[-1].split()
    return float(seconds), float(kilobytes) / 1e6


def full_size(layout: str, state: dict) -> bytes:
    if layout == "ada":
        # Published files hold G as well; a view of the same arrays is enough to skip over.
        return wf.ada_pickle(wf.ada_network(state), G=wf.ada_network(state))
    return wf.dumps((None, None, wf.tf_generator(state)))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
@pytest.mark.parametrize("layout", ["ada", "tf"])
def test_full_size(layout, tmp_path):
    """FFHQ-1024 config-f, 30 million parameters: below 60 s and 3 GB, and the same image."""
    state = random_state(seed=9, resolution=1024)
    path, out = tmp_path / "in.pkl", tmp_path / "out.safetensors"
    path.write_bytes(full_size(layout, state))
    seconds, gigabytes = run_converter(path, out)
    print(f"{layout}: {path.stat().st_size / 1e6:.0f} MB, {seconds:.1f} s, {gigabytes:.2f} GB")
    assert gigabytes < 3
    assert seconds < 60
    generator = generator_from_file(out)
    assert sum(a.size for a in state.values() if a.ndim) > 30e6
    direct = build(to_network(Source(state, "direct"), name="direct"), draws=100)
    key = jax.random.key(0)
    w = generator.map_latents(jax.random.normal(key, (1, 512)))
    ws = jnp.repeat(w[:, None], generator.num_ws, axis=1)
    image, wanted = generator.synthesise(ws), direct.synthesise(ws)
    assert image.shape == (1, 1024, 1024, 3)
    assert np.abs(image - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("layout", ["ada", "tf"])
def test_conversion_does_not_copy_the_file(layout, tmp_path):
    """A sampled version of the full-size check: full widths, but only 64 px."""
    state = random_state(seed=9, resolution=64)
    data = full_size(layout, state)
    source = source_of(data)
    same_state(source, state, atol=1e-6)
    views = [a for a in source.state.values() if not a.flags.owndata]
    assert sum(a.nbytes for a in views) > 0.99 * sum(a.nbytes for a in source.state.values())
