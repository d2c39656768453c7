"""Native blocks of the default generator: the same as XLA's, or XLA's where they cannot be had."""

import dataclasses
import logging
import os
import shutil
import threading
import time
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emulated import run_on_eight_devices
from stylesr_jax.errors import UserError
from stylesr_jax.generators.mobile.blocks import native_blocks, xla_blocks
from stylesr_jax.generators.mobile.native import compiler, library
from stylesr_jax.generators.mobile.separable import BlockArguments, SeparableWeights
from stylesr_jax.generators.registry import config_from_dict, config_to_dict
from stylesr_jax.loading import load_generator
from where import HELPERS, ROOT

needs_native = pytest.mark.skipif(not library.available(), reason="there is no C++ compiler")


def _layer(key, channels, features):
    keys = jax.random.split(key, 3)
    return SeparableWeights(
        jax.random.normal(keys[0], (3, 3, channels)) / 3,
        jax.random.normal(keys[1], (channels, features)) / np.sqrt(channels),
        jnp.array(0.3),
        0.2 * jax.random.normal(keys[2], (features,)),
    )


def _arguments(channels, features, height, width, *, count=2, image=False, own_noise=False, seed=0):
    """Random arguments of a block: x, styles, weights, noise1, noise2."""
    keys = jax.random.split(jax.random.key(seed), 9)
    widths = {"up": 4 * channels, "conv1": channels, "conv2": features}
    weights = {
        "conv1": _layer(keys[0], channels, features),
        "conv2": _layer(keys[1], features, features),
    }
    if image:
        widths["image"] = features
        weights["image"] = {
            "weight": jax.random.normal(keys[2], (features, 12)) / np.sqrt(features),
            "bias": jnp.linspace(-1.0, 1.0, 12),
        }
    styles = {
        name: 1 + 0.3 * jax.random.normal(key, (count, size))
        for key, (name, size) in zip(keys[3:], widths.items(), strict=False)
    }
    x = jax.random.normal(keys[7], (count, height // 2, width // 2, 4 * channels))
    noise = jax.random.normal(keys[8], (2, count if own_noise else 1, height, width))
    return x, styles, weights, noise[0], noise[1]


def _close(found, expected, *, rtol):
    """Equal to within `rtol` of the largest value of each array."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max()),
        found,
        expected,
    )


def _mostly_close(found, expected, *, rtol):
    """As `_close` but for a hundredth: outputs within rounding of zero take either slope."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        assert np.mean(np.abs(a - b) > rtol * np.abs(b).max()) < 0.01


def _without_weights(blocks):
    return [block._replace(weights=None) for block in blocks]


def _in_turn(run, blocks):
    """A function of x and what else the blocks take: XLA computes gradients of weights."""

    def call(x, others):
        each = zip(others, blocks, strict=True)
        whole = tuple(other._replace(weights=block.weights) for other, block in each)
        return run((1,) * len(whole), x, whole)

    return call


def _error(found, expected):
    """Root of the mean square difference over that of the mean square."""
    return np.sqrt(np.mean(np.square(found - expected)) / np.mean(np.square(expected)))


def _in_xla(*args):
    return xla_blocks((1,), args[0], (BlockArguments(*args[1:]),))


def _in_native(*args):
    return native_blocks((1,), args[0], (BlockArguments(*args[1:]),))


def _with_gradients(run, args, argnums=(0, 1, 3, 4)):
    def loss(*args):
        out = run(*args)
        return jnp.sum(jnp.sin(2 * out)), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, argnums, has_aux=True))(*args)
    return out, gradients


@needs_native
@pytest.mark.parametrize(
    ("channels", "features", "height", "width", "image"),
    [
        (16, 16, 2, 2, True),
        pytest.param(16, 16, 2, 2, False, marks=pytest.mark.slow),
        (16, 32, 40, 52, False),
        pytest.param(16, 32, 40, 52, True, marks=pytest.mark.slow),
        (48, 112, 36, 8, True),
        pytest.param(48, 112, 36, 8, False, marks=pytest.mark.slow),
        (48, 112, 36, 10, False),
        (64, 64, 130, 6, False),
        pytest.param(64, 64, 130, 6, True, marks=pytest.mark.slow),
    ],
)
def test_native_blocks_are_xlas(channels, features, height, width, image):
    """Any size, also of several parts; styles' gradients to half precision's rounding."""
    args = _arguments(channels, features, height, width, image=image, own_noise=image)
    expected, (grad_x, grad_styles, *grad_noise) = _with_gradients(_in_xla, args)
    out, (found_x, found_styles, *found_noise) = _with_gradients(_in_native, args)
    assert out.shape == expected.shape and out.dtype == expected.dtype
    _close(out, expected, rtol=3e-6)
    _mostly_close((found_x, found_noise), (grad_x, grad_noise), rtol=3e-5)
    _close(found_styles, grad_styles, rtol=5e-3)


@needs_native
@pytest.mark.parametrize("image", [True, False])
def test_blocks_in_turn_are_xlas(image):
    """What lies between them lacks its activation."""
    x, *first = _arguments(32, 256, 20, 36)
    _, *second = _arguments(64, 128, 40, 72, seed=1)
    _, *third = _arguments(32, 64, 80, 144, image=True, seed=2)
    blocks = [BlockArguments(*args) for args in (first, second, third)][: 3 if image else 2]
    args = (x, _without_weights(blocks))
    expected, (grad_x, grads) = _with_gradients(_in_turn(xla_blocks, blocks), args, (0, 1))
    out, (native_grad_x, native_grads) = _with_gradients(
        _in_turn(native_blocks, blocks), args, (0, 1)
    )
    _close(out, expected, rtol=1e-5)
    assert _error(native_grad_x, grad_x) < 1e-3
    for one, other in zip(native_grads, grads, strict=True):
        for name, grad in one.styles.items():
            assert _error(grad, other.styles[name]) < 5e-3
        for name in ("noise1", "noise2"):
            assert _error(getattr(one, name), getattr(other, name)) < 3e-2


def _two_blocks():
    """A function of x and what else two blocks take, with gradients; and its arguments."""
    x, *first = _arguments(32, 128, 8, 12)
    _, *second = _arguments(32, 64, 16, 24, image=True, seed=1)
    blocks = [BlockArguments(*first), BlockArguments(*second)]

    def run(*args):
        return _with_gradients(_in_turn(native_blocks, blocks), args, (0, 1))

    return run, x, _without_weights(blocks)


@needs_native
@pytest.mark.parametrize("batched", [(0, 0), (None, 0), (0, None)])
def test_blocks_in_turn_under_vmap(batched):
    """What lies between them has the dimensions of whatever is batched."""
    run, x, others = _two_blocks()
    factors = jnp.array([1.0, 0.7, 1.3])

    def one(factor):
        args = (x, others)
        return [
            jax.tree.map(lambda a: factor * a, arg) if axis == 0 else arg
            for arg, axis in zip(args, batched, strict=True)
        ]

    together = jax.vmap(run, in_axes=batched)(
        *(
            jax.vmap(lambda f, i=i: one(f)[i])(factors) if axis == 0 else one(1.0)[i]
            for i, axis in enumerate(batched)
        )
    )
    for k, factor in enumerate(factors):
        alone = run(*one(factor))
        _close(jax.tree.map(lambda a, k=k: a[k], together), alone, rtol=1e-5)


@needs_native
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_blocks_in_turn_hide_nothing(value):
    """What is not finite spoils its own image and no other."""
    run, x, others = _two_blocks()
    clean = run(x, others)
    out, (grad_x, grads) = run(x.at[1].multiply(value), others)
    assert not jnp.isfinite(out[1]).all() and not jnp.isfinite(grads[0].styles["up"][1]).all()
    np.testing.assert_array_equal(out[0], clean[0][0])
    np.testing.assert_array_equal(grad_x[0], clean[1][0][0])


@needs_native
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_not_hidden(value):
    x, styles, weights, noise1, noise2 = _arguments(32, 64, 4, 6)
    first = weights["conv1"]
    spoilt = first._replace(pointwise=first.pointwise.at[3, 5].set(value))
    out, _ = _with_gradients(
        _in_native, (x, styles, {**weights, "conv1": spoilt}, noise1, noise2), (0,)
    )
    assert not jnp.isfinite(out).any()


@needs_native
def test_no_precision_of_jax_rounds_anything():
    """The matrix products of native blocks are float32 whatever JAX's option says."""
    args = _arguments(32, 64, 8, 12, image=True)
    expected = _with_gradients(_in_native, args)
    with jax.default_matmul_precision("bfloat16"):
        jax.tree.map(np.testing.assert_array_equal, _with_gradients(_in_native, args), expected)


@needs_native
def test_64_bit_types_elsewhere_change_nothing():
    args = _arguments(16, 16, 4, 4)
    expected = _with_gradients(_in_native, args, (0,))
    with jax.enable_x64(True):
        _close(_with_gradients(_in_native, args, (0,)), expected, rtol=1e-6)


@needs_native
@pytest.mark.parametrize(
    "spoil",
    [
        lambda x, s, w, n1, n2: (x, s, w, n1[:, :4], n2),
        lambda x, s, w, n1, n2: (x, s, w, n1, n2[:, :, :1]),
        lambda x, s, w, n1, n2: (x, s, w, jnp.tile(n1, (3, 1, 1)), n2),
        lambda x, s, w, n1, n2: (x[:1], s, w, n1, n2),
        lambda x, s, w, n1, n2: (x, {**s, "conv2": s["conv2"][:, :8]}, w, n1, n2),
        lambda x, s, w, n1, n2: (x[..., :32], {**s, "up": s["up"][:, :32]}, w, n1, n2),
    ],
)
def test_shapes_that_do_not_fit_are_refused(spoil):
    """Kernels would read beyond the arrays."""
    with pytest.raises(ValueError):
        _in_native(*spoil(*_arguments(16, 16, 8, 8)))


@needs_native
def test_an_empty_batch_has_an_empty_gradient():
    out, gradients = _with_gradients(_in_native, _arguments(16, 16, 8, 8, count=0))
    assert out.shape == (0, 8, 8, 16) and gradients[1]["conv1"].shape == (0, 16)


@needs_native
def test_other_precisions_are_xlas(mobile):
    """Kernels know float32 alone."""
    ws = jnp.zeros((1, mobile.num_ws, mobile.w_dim))
    noise = [m.astype(jnp.float16) for m in mobile.stored_noise]
    with jax.numpy_dtype_promotion("standard"):
        program = jax.make_jaxpr(lambda ws: mobile.features(ws, tuple(noise), block=5))(ws)
    assert library.FORWARD not in str(program)


@needs_native
def test_gradients_of_the_weights_come_from_xla():
    args = _arguments(16, 16, 8, 8, image=True)
    everything = tuple(range(5))
    expected = _with_gradients(_in_xla, args, everything)
    _close(_with_gradients(_in_native, args, everything), expected, rtol=1e-5)


@needs_native
@pytest.mark.parametrize("batched", [(0, 3), (2,), (0, 1, 2, 3, 4)])
def test_native_blocks_under_vmap(batched):
    """Whatever is batched: what is not is shared, examples stay in order."""
    args = _arguments(16, 32, 12, 10, count=3, image=True)
    stacked = [
        jax.tree.map(lambda a: jnp.stack([a, 0.7 * a]), arg) if i in batched else arg
        for i, arg in enumerate(args)
    ]
    axes = tuple(0 if i in batched else None for i in range(len(args)))
    run = jax.vmap(partial(_with_gradients, _in_native), in_axes=(axes,))
    together = run(tuple(stacked))
    for k, factor in enumerate((1.0, 0.7)):
        one = [
            jax.tree.map(lambda a, f=factor: f * a, arg) if i in batched else arg
            for i, arg in enumerate(args)
        ]
        alone = _with_gradients(_in_native, one)
        _close(jax.tree.map(lambda a, k=k: a[k], together), alone, rtol=3e-6)


@needs_native
def test_a_nan_stays_in_its_image():
    args = _arguments(32, 64, 40, 8, image=True)
    spoilt = (args[0].at[1, 3, 2, 1].set(jnp.nan), *args[1:])
    clean = _with_gradients(_in_native, args)
    out, (grad_x, grad_styles, *_) = _with_gradients(_in_native, spoilt)
    assert not jnp.isfinite(out[1]).all() and not jnp.isfinite(grad_styles["up"][1]).all()
    np.testing.assert_array_equal(out[0], clean[0][0])
    np.testing.assert_array_equal(grad_x[0], clean[1][0][0])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), grad_styles, clean[1][1])


ON_DEVICES = """
import sys
from functools import partial
import jax, numpy as np
from jax.sharding import Mesh, PartitionSpec as P
sys.path[:0] = sys.argv[1:]
from test_native import _arguments, _in_native, _with_gradients

assert jax.local_device_count() == 8
args = _arguments(16, 32, 40, 20, count=8, image=True, own_noise=True)
run = partial(_with_gradients, _in_native)
spread = jax.jit(jax.shard_map(
    lambda *args: run(args, (0, 1)),
    mesh=Mesh(np.array(jax.devices()), ("starts",)),
    in_specs=(P("starts"), P("starts"), P(), P("starts"), P("starts")),
    out_specs=P("starts"), check_vma=False,
))
expected = jax.device_get(run(args, (0, 1)))
for _ in range(100):
    found = jax.device_get(spread(*args))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-4), found, expected)
"""


@needs_native
def test_devices_that_share_threads_do_not_wait_for_one_another():
    """Eight emulated devices call native blocks at the same time, more than there are cores."""
    folders = (ROOT / "tests" / "generators", HELPERS)
    run_on_eight_devices(ON_DEVICES, *map(str, folders), timeout=300)


@needs_native
@pytest.mark.slow
def test_the_embedded_generator_is_the_same_either_way(mobile):
    ws = mobile.map_latents(jax.random.normal(jax.random.key(0), (1, 512)))[:, None]
    ws = jnp.tile(ws, (1, mobile.num_ws, 1))

    def run(generator):
        def loss(ws):
            image = generator.synthesise(ws)
            return jnp.square(image.reshape(16, 64, 16, 64, 3).mean((1, 3)) - 0.1).sum(), image

        (_, image), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(ws)
        return image, gradient

    image, gradient = run(mobile)
    expected, expected_gradient = run(mobile.replace(config=mobile.config.portable()))
    assert mobile.config.native and mobile.config.portable().native is False
    np.testing.assert_allclose(image, expected, atol=1e-4)
    _close(gradient, expected_gradient, rtol=5e-3)


# --- with and without a compiler --------------------------------------------------------------


def _forget():
    compiler._begun.cache_clear()
    library._loaded.cache_clear()


@pytest.fixture
def anew(monkeypatch, tmp_path):
    """`available` and `ready` as in a new process, with an empty cache folder."""
    monkeypatch.setenv("STYLESR_CACHE", str(tmp_path))
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda *args, **options: None)
    for module, name in ((compiler, "_begun"), (library, "_loaded")):
        known = getattr(module, name)  # what this process has registered stays known
        monkeypatch.setattr(module, name, lru_cache(maxsize=1)(known.__wrapped__))
    return tmp_path


@needs_native
def test_the_library_is_compiled_once(anew, monkeypatch):
    assert library.ready()
    assert compiler.include_dir() == jax.ffi.include_dir()
    (file,) = (anew / "native").iterdir()
    assert file.suffix == ".so" and file.stat().st_size > 10_000
    _forget()
    monkeypatch.setattr(compiler, "_compile", lambda command: pytest.fail("compiled again"))
    assert library.ready()


def test_native_blocks_can_be_turned_off(anew, monkeypatch):
    monkeypatch.setenv("STYLESR_NATIVE", "0")
    assert not library.available() and not list(anew.iterdir())
    generator = load_generator()
    assert generator.config.native is False
    assert generator.config == generator.config.portable()


def test_without_a_compiler_xla_computes_the_blocks(anew, monkeypatch, caplog):
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with caplog.at_level(logging.INFO, "stylesr_jax"):
        assert not library.available()
    assert "C++ compiler" in caplog.text


@pytest.mark.parametrize("command", ["false", "/nowhere/c++", "env false"])
def test_a_compiler_that_fails_is_reported(anew, monkeypatch, caplog, command):
    monkeypatch.setenv("CXX", command)
    assert not library.ready()
    assert f"native blocks cannot be used ({command.split()[0]} " in caplog.text
    assert not any(path.suffix == ".so" for path in anew.rglob("*"))


@pytest.mark.parametrize("fails", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_compiling_does_not_hold_up_what_comes_before(anew, monkeypatch, mobile, fails):
    """And what cannot be compiled after all is computed by XLA."""
    begin = threading.Event()
    compiled = compiler._library

    def slow(command):
        assert begin.wait(60)
        if fails:
            raise UserError("no space left")
        return compiled(command)

    monkeypatch.setattr(compiler, "_library", slow)
    monkeypatch.setenv("CXX", shutil.which("c++") or "c++")
    assert library.available()  # though nothing is compiled yet
    begin.set()
    ws = jnp.zeros((1, mobile.num_ws, mobile.w_dim))
    config = dataclasses.replace(mobile.config, native=True)
    generator = mobile.replace(config=config)
    program = jax.make_jaxpr(lambda ws: generator.features(ws, mobile.stored_noise, block=5))(ws)
    assert (library.FORWARD in str(program)) == library.ready() and not (fails and library.ready())


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
def test_a_process_that_ends_does_not_wait_for_the_compiler(anew, monkeypatch):
    monkeypatch.setenv("CXX", "sh -c 'sleep 600' sh")
    compiled = compiler.begun()
    while compiler._running is None:
        time.sleep(0.01)
    compiler.give_up()
    with pytest.raises(UserError, match="sh fails"):
        compiled.result(timeout=60)
    assert compiler._running is None and not list((anew / "native").iterdir())
    compiler.give_up()  # there is nothing to give up any more


@pytest.mark.parametrize(
    ("machine", "option"),
    [("x86_64", "-march=native"), ("arm64", "-mcpu=native"), ("riscv64", "c++")],
)
def test_the_compiler_is_told_of_the_processor(monkeypatch, machine, option):
    """Once: a compiler that was killed, as by Ctrl-C, does not begin again."""
    asked = []

    class Killed:
        returncode = -2

        def __init__(self, command, **options):
            asked.append(command[-1])

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def communicate(self, timeout):
            return "", ""

        def poll(self):
            return self.returncode

    monkeypatch.setattr(compiler.subprocess, "Popen", Killed)
    monkeypatch.setattr(compiler.platform, "machine", lambda: machine)
    with pytest.raises(UserError, match="c\\+\\+ fails"):
        compiler._compile(["c++"])
    assert asked == [option]


def test_a_file_never_decides_for_the_machine(mobile, monkeypatch):
    """What a header says of native code counts only where it can be had."""
    monkeypatch.setattr(library, "available", lambda: False)
    wanted = dataclasses.replace(mobile.config, native=True)
    read = config_from_dict(config_to_dict(wanted))
    assert read.native is True and read.on_this_machine().native is False
