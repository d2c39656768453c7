"""Degradations: adjointness, agreement with Pillow and SciPy, one trace, and messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stylesr_jax import degradations as deg
from stylesr_jax.errors import UserError

H, W = 48, 32


def _known() -> jax.Array:
    return jnp.asarray(np.random.default_rng(3).uniform(size=(H, W)) > 0.3, jnp.float32)


LINEAR = {
    "bicubic size": deg.Bicubic(size=(9, 7)),
    "bicubic factor": deg.Bicubic(factor=4),
    "bicubic interpolating": deg.Bicubic(size=8, antialias=False),
    "pulse": deg.PulseBicubic(factor=8),
    "area": deg.Area(size=(10, 13)),
    "gaussian": deg.GaussianBlur(sigma=1.7),
    "wide gaussian": deg.GaussianBlur(sigma=30.0),
    "motion": deg.MotionBlur(length=9.5, angle=30.0),
    "grey": deg.Grey(),
    "mask": deg.Mask(known=_known()),
    "composed": deg.parse("motion(7,100)|blur(2)|bicubic(x4)|noise(0.1)|grey|area(5)"),
}


def _image(seed: int, shape: tuple[int, ...] = (H, W, 3)) -> jax.Array:
    return jax.random.uniform(jax.random.key(seed), shape, minval=-1.0, maxval=1.0)


@pytest.mark.parametrize("name", LINEAR)
def test_linear_degradations_have_their_adjoint(name):
    degradation = LINEAR[name]
    assert degradation.linear
    x = _image(0)
    ax, transpose = degradation(x), jax.linear_transpose(degradation, x)
    y = _image(1, ax.shape)
    (aty,) = transpose(y)
    np.testing.assert_allclose(jnp.vdot(ax, y), jnp.vdot(x, aty), rtol=1e-4, atol=1e-3)
    assert deg.output_shape(degradation, x.shape) == ax.shape
    assert ax.dtype == jnp.float32


@pytest.mark.parametrize("name", [n for n in LINEAR if n not in ("grey", "mask", "composed")])
def test_down_sampling_and_blur_keep_a_constant(name):
    flat = jnp.full((H, W, 3), 0.7)
    np.testing.assert_allclose(LINEAR[name](flat), 0.7, atol=2e-6)


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 70)] * 4),
    kernel=st.sampled_from(["bicubic", "bilinear", "lanczos"]),
)
def test_resize_equals_pillow(sizes, kernel):
    height, width, h, w = sizes
    x = np.random.default_rng(0).uniform(-1, 1, (height, width)).astype(np.float32)
    method = getattr(Image.Resampling, kernel.upper())
    expected = np.asarray(Image.fromarray(x).resize((w, h), method))
    actual = deg.resize(jnp.asarray(x)[..., None], (h, w), kernel=kernel)[..., 0]
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("size", [16, 32])
def test_bicubic_equals_pillow_from_1024(size):
    x = np.random.default_rng(1).uniform(-1, 1, (1024, 1024)).astype(np.float32)
    expected = np.asarray(Image.fromarray(x).resize((size, size), Image.Resampling.BICUBIC))
    actual = jax.jit(lambda d, x: d(x))(deg.Bicubic(size=size), x[..., None])[..., 0]
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_resize_without_antialiasing_interpolates():
    x = _image(2)
    expected = jax.image.resize(x, (11, 50, 3), "cubic", antialias=False)
    np.testing.assert_allclose(deg.resize(x, (11, 50), antialias=False), expected, atol=1e-5)


def test_resize_takes_batches():
    x = _image(2, (2, 3, 20, 12, 3))
    expected = jax.vmap(jax.vmap(lambda x: deg.resize(x, (7, 30))))(x)
    np.testing.assert_allclose(deg.resize(x, (7, 30)), expected, atol=1e-6)


def test_area_by_whole_factors_is_the_mean():
    x = _image(3)
    expected = x.reshape(H // 4, 4, W // 4, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(deg.Area(factor=4)(x), expected, atol=1e-6)


def test_pulse_kernel_is_a_strided_convolution_of_the_mirrored_image():
    factor, x = 4, np.asarray(_image(4, (32, 24, 1)), np.float64)[..., 0]
    t = np.abs((np.arange(16) - 8 + 0.5) / factor)
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    taps = np.where(t < 1, near, far)
    taps /= taps.sum()
    padded = np.pad(x, 6, mode="reflect")
    expected = np.array(
        [
            [taps @ padded[4 * i : 4 * i + 16, 4 * j : 4 * j + 16] @ taps for j in range(6)]
            for i in range(8)
        ]
    )
    actual = deg.PulseBicubic(factor=factor)(jnp.asarray(x[..., None], jnp.float32))
    np.testing.assert_allclose(actual[..., 0], expected, atol=1e-6)


def test_pulse_differs_from_pillow_at_the_borders_only():
    x = _image(5, (64, 64, 3))
    a, b = deg.PulseBicubic(factor=4)(x), deg.Bicubic(factor=4)(x)
    np.testing.assert_allclose(a[2:-2, 2:-2], b[2:-2, 2:-2], atol=1e-6)
    assert jnp.max(jnp.abs(a - b)) > 1e-3


@pytest.mark.parametrize("sigma", [0.6, 2.0, 9.0])
def test_gaussian_blur_equals_scipy(sigma):
    x = _image(6)
    expected = scipy.ndimage.gaussian_filter(np.asarray(x, np.float64), (sigma, sigma, 0))
    np.testing.assert_allclose(deg.GaussianBlur(sigma=sigma)(x), expected, atol=1e-5)


def test_motion_blur_is_a_mirrored_convolution():
    x = _image(7)
    kernel = np.asarray(deg.motion_kernel(8.0, 25.0), np.float64)
    expected = scipy.ndimage.convolve(np.asarray(x, np.float64), kernel[..., None], mode="mirror")
    np.testing.assert_allclose(deg.MotionBlur(length=8.0, angle=25.0)(x), expected, atol=1e-5)


def test_motion_kernel_has_its_length_and_direction():
    across = np.asarray(deg.motion_kernel(9, 0.0))
    np.testing.assert_allclose(across.sum(), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(np.delete(across, 4, axis=0), 0.0)
    np.testing.assert_allclose(across[4, 1:-1], across[4, 4], rtol=0.01)
    np.testing.assert_allclose(deg.motion_kernel(9, 90.0), across.T, atol=1e-6)
    # Anticlockwise: at 45 degrees the line rises to the right, towards the first row.
    rising = np.asarray(deg.motion_kernel(9, 45.0))
    assert rising[2, 6] > 0.02
    assert rising[6, 6] == 0.0
    np.testing.assert_allclose(deg.motion_kernel(1, 45.0), [[1.0]])


def test_random_motion_is_drawn_once_and_can_be_told():
    degradation = deg.parse("motion(9)|bicubic(8)")
    key, x = jax.random.key(4), _image(8)
    told = degradation.realise(key)
    np.testing.assert_array_equal(told(x), told.degrade(jax.random.key(9), x))
    np.testing.assert_allclose(told(x), degradation.degrade(key, x), atol=1e-6)
    other = degradation.degrade(jax.random.key(5), x)
    assert jnp.max(jnp.abs(other - told(x))) > 0.01
    with pytest.raises(UserError, match="direction is random"):
        degradation(x)


def test_grey_equals_pillow():
    levels = np.random.default_rng(2).integers(0, 256, (H, W, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(levels).convert("L"), np.float32)
    actual = (deg.Grey()(jnp.asarray(levels / 127.5 - 1.0, jnp.float32)) + 1) * 127.5
    np.testing.assert_allclose(actual, np.repeat(expected[..., None], 3, axis=-1), atol=0.51)


def test_identities_tell_masks_of_one_name_apart():
    one, other = (deg.Mask(known=jnp.full((4, 4), v), source="m.png") for v in (0.0, 1.0))
    assert str(one) == str(other)
    assert deg.degradation_identity(one) != deg.degradation_identity(other)
    assert deg.degradation_identity(one) == deg.degradation_identity(deg.Mask(one.known, "m.png"))
    assert deg.degradation_identity(None) == "None"


def test_mask_keeps_what_is_known(tmp_path):
    hole = np.zeros((H, W), np.uint8)
    hole[:10, 5:20] = 255
    Image.fromarray(hole).save(tmp_path / "hole.png")
    degradation = deg.parse(f"mask({tmp_path / 'hole.png'})")
    x = _image(9)
    y = degradation(x)
    np.testing.assert_array_equal(y[:10, 5:20], 0.0)
    np.testing.assert_array_equal(jnp.where((hole == 0)[..., None], y, 0.0), y)
    np.testing.assert_array_equal(y[10:], x[10:])
    with pytest.raises(UserError, match="48x32 but the image at this stage is 32x48"):
        degradation(x.transpose(1, 0, 2))


def _photograph() -> jax.Array:
    """Smooth shapes and an edge, with colour: what JPEG is made for. 70x50 fills no whole block."""
    v, u = np.mgrid[0:70, 0:50] / 50.0
    channels = [np.sin(4 * u + 2 * v), np.cos(3 * v - u), np.where(u + v > 1.1, 0.6, -0.5)]
    return jnp.asarray(np.stack(channels, axis=-1) * 0.8, jnp.float32)


@pytest.mark.parametrize(("quality", "tolerance"), [(10, 1.5), (50, 1.0), (90, 0.8)])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_stand_in_is_close_to_the_codec(quality, tolerance, channels):
    degradation, x = deg.Jpeg(quality=quality), _photograph()[..., :channels]
    codec = degradation.degrade(jax.random.key(0), x)
    stand_in = jax.jit(lambda d, x: d(x))(degradation, x)
    error = jnp.mean(jnp.abs(codec - stand_in)) * 127.5
    assert error < tolerance
    assert jnp.mean(jnp.abs(codec - x)) * 127.5 > 2 * error
    assert stand_in.shape == x.shape == codec.shape


def test_jpeg_stand_in_has_useful_gradients():
    degradation, x = deg.Jpeg(quality=50), _photograph() * 0.8
    target = jnp.asarray(degradation(x))

    @jax.jit
    def loss(z):
        return jnp.mean((degradation(z) - target) ** 2)

    z = x + 0.1
    gradient = jax.jit(jax.grad(loss))(z)
    assert bool(jnp.all(jnp.isfinite(gradient)))
    assert loss(z - 0.1 * gradient / jnp.max(jnp.abs(gradient))) < 0.5 * loss(z)
    assert not degradation.linear
    assert not deg.parse("blur(1)|jpeg(50)").linear


def test_noise_is_apart_from_a_and_has_its_statistics():
    x = jnp.zeros((200, 200, 3))
    for text, spread in {"noise(0.05)": 0.1, "laplace(0.05)": 0.1 * np.sqrt(2.0)}.items():
        degradation = deg.parse(text)
        np.testing.assert_array_equal(degradation(x), x)
        noisy = degradation.degrade(jax.random.key(0), x)
        np.testing.assert_allclose(jnp.std(noisy), spread, rtol=0.02)
        np.testing.assert_allclose(jnp.mean(noisy), 0.0, atol=0.002)
    # The fourth moment tells them apart: 3 for a Gaussian, 6 for a Laplacian.
    np.testing.assert_allclose(jnp.mean((noisy / spread) ** 4), 6.0, rtol=0.1)


def test_salt_and_pepper_strikes_whole_pixels():
    x = jnp.full((200, 200, 3), 0.25)
    noisy = deg.parse("salt_pepper(0.1)").degrade(jax.random.key(1), x)
    np.testing.assert_allclose(jnp.mean(noisy == 1.0), 0.05, atol=0.006)
    np.testing.assert_allclose(jnp.mean(noisy == -1.0), 0.05, atol=0.006)
    np.testing.assert_array_equal(noisy[..., 0], noisy[..., 2])


def test_noise_before_and_after_down_sampling_differ():
    x = jnp.zeros((128, 128, 3))
    key = jax.random.key(0)
    before = deg.parse("noise(0.1)|area(x8)").degrade(key, x)
    after = deg.parse("area(x8)|noise(0.1)").degrade(key, x)
    np.testing.assert_allclose(jnp.std(after) / jnp.std(before), 8.0, rtol=0.1)


def test_composition_equals_its_stages_one_after_another():
    text = "blur(2)|bicubic(24)|blur(0.7)|motion(3,10)|area(x2)|grey|bicubic(5x6)"
    degradation = deg.parse(text)
    x = expected = _image(10)
    for stage in degradation.stages:
        expected = stage(expected)
    np.testing.assert_allclose(degradation(x), expected, atol=1e-5)
    np.testing.assert_allclose(degradation.degrade(jax.random.key(0), x), expected, atol=1e-5)


def test_degrade_is_deterministic_in_its_key():
    degradation, x = deg.parse("noise(0.1)|bicubic(8)|salt_pepper(0.2)|jpeg(40)"), _image(11)
    a, b = (degradation.degrade(jax.random.key(3), x) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert jnp.any(a != degradation.degrade(jax.random.key(4), x))


def test_masks_and_angles_do_not_trace_again():
    traces = []

    @jax.jit
    def apply(degradation, x):
        traces.append(1)
        return degradation(x)

    for i in range(3):
        known = jnp.asarray(np.random.default_rng(i).uniform(size=(H, W)) > 0.5, jnp.float32)
        stages = (deg.MotionBlur(length=5.0, angle=40.0 * i), deg.Mask(known), deg.Bicubic(size=8))
        degradation = deg.Compose(stages)
        np.testing.assert_allclose(apply(degradation, _image(i)), degradation(_image(i)), atol=1e-6)
    assert len(traces) == 1
    apply(deg.parse("bicubic(8)"), _image(0))
    apply(deg.parse("bicubic( size = 8 )"), _image(1))
    assert len(traces) == 2


def test_degradations_map_over_images():
    degradation = deg.parse("motion(5,30)|blur(1)|bicubic(8)|jpeg(50)")
    x = _image(12, (3, H, W, 3))
    apply = jax.jit(lambda d, x: d(x))
    expected = jnp.stack([apply(degradation, i) for i in x])
    np.testing.assert_allclose(jax.jit(jax.vmap(degradation))(x), expected, atol=0.02)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bicubic(32)", deg.Bicubic(size=32)),
        ("bicubic(24x32, false)", deg.Bicubic(size=(24, 32), antialias=False)),
        ("bicubic(factor=4, antialias=false)", deg.Bicubic(factor=4, antialias=False)),
        ("bicubic(x4)", deg.Bicubic(factor=4)),
        ("pulse(X8)", deg.PulseBicubic(factor=8)),
        ("area(size=16)", deg.Area(size=16)),
        ("motion(length=100, angle=-45)", deg.MotionBlur(length=100.0, angle=-45.0)),
        ("motion(100)", deg.MotionBlur(length=100.0)),
        ("grey", deg.Grey()),
        ("grey()", deg.Grey()),
        ("jpeg(30)", deg.Jpeg(quality=30)),
        ("laplace(0.1)", deg.LaplaceNoise(scale=0.1)),
        ("salt_pepper(0.1)", deg.SaltPepper(fraction=0.1)),
    ],
)
def test_parse_reads_what_str_writes(text, expected):
    assert deg.parse(text) == deg.Compose((expected,))
    assert deg.parse(str(expected)) == deg.Compose((expected,))


def test_parse_keeps_the_order():
    degradation = deg.parse(" blur(2) | bicubic(32)|noise( 0.05 )")
    assert str(degradation) == "blur(2)|bicubic(32)|noise(0.05)"
    assert degradation.stages == (
        deg.GaussianBlur(sigma=2.0),
        deg.Bicubic(size=32),
        deg.GaussianNoise(sigma=0.05),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty stage"),
        ("blur(2)||bicubic(8)", "empty stage"),
        ("blr(2)", r"unknown degradation 'blr'; there are:(.|\n)*blur\(2\)"),
        ("blur(2", "no closing bracket"),
        ("blur()", r"blur needs sigma \(a number of pixels\): blur\(2\)"),
        ("blur(two)", "sigma must be a number of pixels, got 'two'"),
        ("blur(0)", "positive number"),
        ("blur(nan)", "positive number"),
        ("blur(1,2)", "at most 1"),
        ("blur(width=2)", r"no argument 'width' \(it has: sigma\)"),
        ("blur(2, sigma=2)", "given twice"),
        ("bicubic", "either a size or a factor"),
        ("bicubic(32, factor=4)", "either a size or a factor"),
        ("bicubic(0)", "whole numbers from 1"),
        ("bicubic(1.5)", "size must be"),
        ("bicubic(99999999999)", "whole numbers from 1 to 4096"),
        ("area(x5000)", "whole numbers from 1 to 4096"),
        ("blur(1e30)", "up to 4096"),
        ("motion(1e9)", "at most 4096"),
        ("bicubic(8, maybe)", "true or false"),
        ("motion(0.5)", "at least 1 pixel"),
        ("jpeg(100)", "1 to 95"),
        ("noise(2)", "0 to 1"),
        ("laplace(-1)", "0 to 1"),
        ("salt_pepper(1.5)", "0 to 1"),
        ("mask(/nowhere/hole.png)", "cannot read"),
        ("grey(1)", "at most 0"),
    ],
)
def test_parse_says_what_is_wrong(text, message):
    with pytest.raises(UserError, match=message):
        deg.parse(text)


@pytest.mark.parametrize(
    ("degradation", "shape", "message"),
    [
        (deg.Bicubic(factor=7), (H, W, 3), "48x32 is not divisible by 7"),
        (deg.PulseBicubic(size=(7, 7)), (H, W, 3), "not a whole multiple"),
        (deg.PulseBicubic(size=1), (32, 32, 3), "too small"),
        (deg.Grey(), (H, W, 1), "needs 3 channels"),
        (deg.Jpeg(quality=50), (H, W, 4), "needs 3 channels"),
    ],
)
def test_wrong_images_are_refused(degradation, shape, message):
    with pytest.raises(UserError, match=message):
        degradation(jnp.zeros(shape))


def test_sizes_keep_the_shape_of_the_image():
    assert deg.Bicubic(size=8)(_image(0)).shape == (12, 8, 3)
    with pytest.raises(UserError, match="unknown resize kernel"):
        deg.resize(_image(0), (8, 8), kernel="cubic")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="sizes start at 1"):
        deg.resize(_image(0), (0, 8))
