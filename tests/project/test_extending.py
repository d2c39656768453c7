"""The recipes of docs/extending.md, followed word for word."""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

import convert
from convert import checkpoints, detect
from convert.state_dict import random_state
from stylesr_jax import degradations, generators, methods
from stylesr_jax.errors import UserError
from stylesr_jax.generators import registry
from stylesr_jax.generators.base import Generator
from stylesr_jax.metrics.lpips import load_features
from stylesr_jax.solver.solve import upsample
from where import ROOT

parsing = importlib.import_module("stylesr_jax.degradations.parse")  # not the function

PAGE = ROOT / "docs" / "extending.md"


def _blocks(recipe: str) -> list[str]:
    """The Python of a recipe, block by block."""
    (section,) = re.findall(rf"^## {recipe}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)
    return re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a module of a recipe as if it lay in a package, and imports it."""

    def written(package: ModuleType, name: str, text: str) -> ModuleType:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
        monkeypatch.setattr(package, name, None, raising=False)  # goes when the test ends
        full = f"{package.__name__}.{name}"
        monkeypatch.setitem(sys.modules, full, None)
        del sys.modules[full]
        return importlib.import_module(full)

    return written


@pytest.fixture
def with_line():
    """Runs a module again with one line more among its list of imports."""
    before = {}

    def run(module: ModuleType, line: str) -> None:
        assert line.count("\n") == 1, "the recipe says one line"
        assert module.__file__ is not None
        text = Path(module.__file__).read_text()
        assert text.count("# isort: on\n") == 1
        before[module.__name__] = dict(vars(module))
        exec(text.replace("# isort: on\n", f"{line}# isort: on\n"), vars(module))

    yield run
    for name, names in before.items():
        namespace = vars(sys.modules[name])
        namespace.clear()
        namespace.update(names)


@pytest.fixture(scope="module")
def target():
    return np.random.default_rng(0).uniform(-0.5, 0.5, (8, 8, 3)).astype(np.float32)


def test_the_method_recipe_is_a_method(write, with_line, tiny, target):
    module_text, line = _blocks("A method")
    write(methods, "nearest", module_text)
    with pytest.raises(UserError, match="unknown method 'nearest'"):
        upsample(target, generator=tiny, method="nearest", key=jax.random.key(0))
    with_line(methods, line)
    settings = {"steps": 40, "learning_rate": "0.1", "fidelity": 0.0}
    options = {"generator": tiny, "key": jax.random.key(0), "solutions": 2, "settings": settings}
    result = upsample(target, method="nearest", **options)
    assert result.method == "nearest" and result.images.shape == (2, 32, 32, 3)
    for one in result.solutions:
        assert one.status == "ok" and set(one.terms) == {"l2", "mean"}
        assert one.terms["l2"] < one.history["l2"][0]
    with pytest.raises(UserError, match=r"nearest has no setting 'typo'.*lambda_mean"):
        upsample(target, method="nearest", **{**options, "settings": {"typo": 1}})


def test_the_degradation_recipe_is_a_degradation(write, with_line, tiny, target):
    module_text, line = _blocks("A degradation")
    write(degradations, "pixelate", module_text)
    with pytest.raises(UserError, match="unknown degradation 'pixelate'"):
        parsing.parse("pixelate(4)")
    with_line(parsing, line)
    assert "pixelate(4)" in parsing.available()
    text = "pixelate(4)|bicubic(8)"
    degradation = parsing.parse(text)
    assert str(degradation) == text and degradation.linear
    with pytest.raises(UserError, match="side must be a whole number of pixels"):
        parsing.parse("pixelate(wide)")

    x, y = (jax.random.normal(jax.random.key(i), (16, 16, 3)) for i in range(2))
    one = parsing.parse("pixelate(4)")
    np.testing.assert_allclose(
        one(x)[4:8, 8:12], jnp.mean(x[4:8, 8:12], (0, 1)) + 0 * x[:4, :4], atol=1e-5
    )
    (back,) = jax.linear_transpose(one, x)(y)
    np.testing.assert_allclose(jnp.vdot(one(x), y), jnp.vdot(x, back), rtol=1e-4, atol=1e-3)

    result = upsample(
        target,
        generator=tiny,
        method="csgm",
        degradation=degradation,
        solutions=1,
        key=jax.random.key(0),
        settings={"steps": 3, "fidelity": 0.0},
    )
    (solution,) = result.solutions
    np.testing.assert_allclose(solution.low, degradation(solution.image), atol=1e-4)


def test_the_recipe_for_a_generator_is_a_generator(write, monkeypatch):
    module = write(generators, "flat", *_blocks("A generator architecture"))
    kind = module.FlatConfig
    monkeypatch.setitem(registry.ARCHITECTURES, kind.architecture, kind)
    config = kind(
        name="flat-8", resolution=8, num_ws=1, w_dim=2, z_dim=2, mapping_widths=(2,), sizes=(8,)
    )
    assert registry.config_from_dict(registry.config_to_dict(config)) == config
    weight = jnp.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]])
    generator = Generator({"synthesis": {"weight": weight}, "noise": {}}, {}, None, config)
    images = generator.synthesise(jnp.array([[[2.0, 3.0]]]))
    np.testing.assert_allclose(images[0, 5, 2], [2.0, 3.0, 2.5])
    with pytest.raises(TypeCheckError, match="N num_ws w_dim"):
        generator.synthesise(jnp.zeros((1, 2)))


def test_the_recipe_for_a_weight_format_is_read(write, monkeypatch):
    module = write(convert, "renamed", *_blocks("A weight format"))
    monkeypatch.setitem(checkpoints._ANCHORS, "renamed", "syn.b4.const")
    monkeypatch.setitem(detect._LAYOUTS, "renamed", module.convert)
    state = random_state(seed=0, resolution=8, channel_base=64, z_dim=4, w_dim=4)
    renamed = {
        n.replace("mapping.", "map.").replace("synthesis.", "syn."): a for n, a in state.items()
    }
    contents = checkpoints.from_arrays(renamed, "npz", size=10**6)
    source = detect._generator(contents)
    assert source.format == "renamed npz" and set(source.state) == set(state)
    with pytest.raises(UserError, match="which StyleGAN2 does not"):
        module.convert({"D.weight": np.zeros(1)}, "npz")


def test_the_recipe_for_the_loss_of_rls_searches(write, tiny, tiny_prior, target):
    module = write(methods, "rls_perceptual", *_blocks("RLS's loss"))
    result = upsample(
        target,
        generator=tiny,
        prior=tiny_prior,
        method=module.PerceptualRLS,
        perceptual=load_features("vgg16"),
        solutions=1,
        key=jax.random.key(0),
        settings={"style_steps": 0, "coarse": False, "steps": 2, "tries": 1, "lambda_lpips": "0.2"},
    )
    (solution,) = result.solutions
    assert solution.status == "ok" and solution.terms["lpips"] > 0.0
    assert set(solution.terms) == {"l1", "prior", "gauss", "cross", "norm", "spread", "lpips"}


def test_wrong_shapes_are_errors_in_the_tests():
    with pytest.raises(TypeCheckError, match="H W C"):
        degradations.Bicubic(size=4)(jnp.zeros((8, 8)))
