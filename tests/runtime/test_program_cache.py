"""Traced programs kept on disk: the same results, and no second trace."""

import gc
import inspect
import mmap
import os
import platform
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

from stylesr_jax.errors import UserError
from stylesr_jax.generators.mobile.native import compiler as native_compiler
from stylesr_jax.generators.mobile.native import library as native_library
from stylesr_jax.loading import load_generator
from stylesr_jax.methods import METHODS
from stylesr_jax.methods.base import stages_of
from stylesr_jax.priors.autoregressive import FlowConfig
from stylesr_jax.priors.flow import load_prior
from stylesr_jax.runtime import files, program_cache, program_files, program_names
from stylesr_jax.runtime.memory import mappings, release_memory
from stylesr_jax.solver.solve import upsample

TRACES = []


class Powers(NamedTuple):
    sum: Any
    x: Any


@struct.dataclass
class Settings:
    """A number, which is a leaf, and a choice, which is static."""

    scale: float = 1.0
    how: str = struct.field(pytree_node=False, default="sum")


@partial(program_cache.kept_jit, static_argnames=("power", "how"))
def _powers(x, tree, *, power, how=None):
    TRACES.append(power)
    return {"sum": sum(v**power for v in tree.values()) + x, "x": x}


def _call(power=2, how=None):
    return _powers(jnp.ones(3), {"a": jnp.arange(3.0), "b": jnp.ones(3)}, power=power, how=how)


@program_cache.kept_jit
def _scaled(settings, x):
    TRACES.append(settings.how)
    total = x.sum() if settings.how == "sum" else x.max()
    powers = Powers(settings.scale * total, [settings, None])
    return powers, {"settings": settings}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Programs, this file's too, are kept in a folder of the test's own, and forgotten between."""
    packages = program_names.PACKAGES | {__name__.partition(".")[0]}
    monkeypatch.setattr(program_names, "PACKAGES", packages)
    _forget()
    program_cache.keep_in(tmp_path)
    yield tmp_path
    program_cache.keep_in(None)
    _forget()


def _forget():
    """As a new process would begin."""
    program_cache._ready.clear()
    for kept in (_powers, _scaled):
        kept.__wrapped__.clear_cache()
    TRACES.clear()


def _programs(folder):
    return list(folder.glob("*.program"))


def test_another_precision_is_another_program(folder):
    """Both on disk and in the same process."""
    for precision in ("float32", "bfloat16", "float32"):
        with jax.default_matmul_precision(precision):
            _call()
    assert TRACES == [2, 2] and len(_programs(folder)) == 2


def test_a_kept_program_is_not_traced_again(folder):
    first = _call()
    assert TRACES == [2] and len(_programs(folder)) == 1
    _forget()
    again = _call()
    assert TRACES == []
    np.testing.assert_array_equal(first["sum"], again["sum"])
    np.testing.assert_array_equal(first["sum"], [2.0, 3.0, 6.0])


def test_numbers_of_an_argument_share_a_program_and_choices_have_their_own(folder):
    for scale in (0.5, 2.0, 3.0):
        powers, _ = _scaled(Settings(scale), jnp.arange(3.0))
        assert powers.sum == 3.0 * scale and powers.x[0].scale == scale
    assert TRACES == ["sum"] and len(_programs(folder)) == 1
    assert _scaled(Settings(0.5, "max"), jnp.arange(3.0))[0].sum == 1.0
    assert TRACES == ["sum", "max"] and len(_programs(folder)) == 2


def test_numbers_are_weakly_typed_as_for_jit(folder):
    x = jnp.arange(3, dtype=jnp.bfloat16)
    (powers, _), (expected, _) = _scaled(Settings(2.0), x), _scaled.__wrapped__(Settings(2.0), x)
    assert powers.sum.dtype == expected.sum.dtype == jnp.bfloat16


def test_results_are_as_strongly_typed_as_those_that_are_read(folder):
    """Or what is called with them would be traced again in the next process."""
    made = _scaled(Settings(2.0), jnp.ones(2))
    _forget()
    read = _scaled(Settings(2.0), jnp.ones(2))
    assert TRACES == [] and _types(made) == _types(read)
    assert _types(made) != _types(_scaled.__wrapped__(Settings(2.0), jnp.ones(2)))


def _types(tree):
    return [str(jax.typeof(leaf)) for leaf in jax.tree.leaves(tree)]


def test_arguments_are_taken_by_place_or_by_name(folder):
    first = _scaled(Settings(), jnp.arange(3.0))
    again = _scaled(x=jnp.arange(3.0), settings=Settings())
    assert first == again and TRACES == ["sum"] and len(_programs(folder)) == 1
    assert inspect.signature(_powers).parameters.keys() == {"x", "tree", "power", "how"}


def test_defaults_are_static_values_too(folder):
    _call()
    _powers(jnp.ones(3), {"a": jnp.arange(3.0), "b": jnp.ones(3)}, power=2)
    assert TRACES == [2] and len(_programs(folder)) == 1


def test_within_another_trace_it_is_jit(folder):
    np.testing.assert_array_equal(jax.jit(_call)()["sum"], [2.0, 3.0, 6.0])
    gradient = jax.grad(lambda x: _scaled(Settings(2.0), x)[0].sum)(jnp.ones(2))
    np.testing.assert_array_equal(gradient, [2.0, 2.0])
    assert TRACES == [2, "sum"] and not _programs(folder)


def test_other_devices_are_other_programs(folder):
    """Its key names the kind of device; the results are where the arguments are."""
    subprocess.run([sys.executable, "-c", DEVICES, folder], check=True)
    assert len(_programs(folder)) == 1


DEVICES = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
from pathlib import Path
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from stylesr_jax.runtime import program_cache, program_names

program_names.PACKAGES |= {"__main__"}
traces = []

def double(x, y=0.0, mesh=None):
    traces.append(x)
    if mesh is not None:
        x = jax.lax.with_sharding_constraint(x, spread)
    return 2.0 * x + y

double = program_cache.kept_jit(double, static_argnames=("mesh",))
program_cache.keep_in(Path(sys.argv[1]))
first, second = jax.devices()
mesh = Mesh(np.array([first, second]), ("x",))
x = jnp.arange(4.0)
spread = NamedSharding(mesh, PartitionSpec("x"))
for given, options in ((jax.device_put(x, spread), {}), (x, {"mesh": mesh})):
    result = double(given, **options)
    assert (result == 2.0 * x).all() and len(result.devices()) == 2
assert len(traces) == 2 and not list(Path(sys.argv[1]).iterdir())
for device in (first, second):
    result = double(jnp.ones(()), jax.device_put(x, device))  # the first is not tied to a device
    assert (result == x + 2.0).all() and result.devices() == {device}
assert len(traces) == 3
"""

STRUCTURES = """
import sys
from pathlib import Path
from typing import Any, NamedTuple
import jax.numpy as jnp
import optax
from flax import struct
from stylesr_jax.runtime import program_cache, program_names

program_names.PACKAGES |= {"__main__"}

class Pair(NamedTuple):
    first: Any
    rest: Any

@struct.dataclass
class Labelled:
    kind: str = struct.field(pytree_node=False)
    x: Any = None

def begin(x):
    print("traced")
    return Pair(optax.adam(0.1).init(x), {"b": [x, None, ()], "a": Labelled("square", x**2)})

program_cache.keep_in(Path(sys.argv[1]))
result = program_cache.kept_jit(begin)(jnp.arange(3.0))
assert type(result) is Pair and type(result.first[0]) is optax.ScaleByAdamState
assert (result.first[0].mu == 0.0).all() and result.first[0].count == 0
assert (result.rest["b"][0] == jnp.arange(3.0)).all() and result.rest["b"][1:] == [None, ()]
assert type(result.rest["a"]) is Labelled and result.rest["a"].kind == "square"
assert result.rest["a"].x[2] == 4.0
"""


def test_results_are_of_their_classes_in_another_process(tmp_path):
    command = [sys.executable, "-c", STRUCTURES, tmp_path]
    printed = [subprocess.run(command, check=True, capture_output=True).stdout for _ in range(2)]
    assert printed == [b"traced\n", b""] and len(_programs(tmp_path)) == 1


def test_results_that_cannot_be_described_are_traced_as_usual(folder, monkeypatch):
    """Here a class that changes what it is made of."""
    monkeypatch.setattr(Powers, "_make", classmethod(lambda cls, values: (*values,)))
    powers, _ = _scaled(Settings(2.0), jnp.ones(2))
    assert type(powers) is Powers and powers.sum == 4.0 and not _programs(folder)


def test_what_other_packages_define_is_traced_as_usual(tmp_path, folder, monkeypatch):
    """A change of its source could not be seen."""
    monkeypatch.setattr(program_names, "PACKAGES", program_names.PACKAGES - {__name__})
    np.testing.assert_array_equal(_call()["sum"], [2.0, 3.0, 6.0])
    _call()
    assert TRACES == [2] and not _programs(folder)


def test_what_nobody_reads_is_deleted(folder):
    _call(2), _call(3)
    two, three = sorted(_programs(folder), key=lambda path: path.stat().st_mtime_ns)
    notes = folder / "some.called"
    notes.write_text("{}")
    long_ago = time.time() - program_files.UNREAD_SECONDS - 1
    for path in (two, three, notes):
        os.utime(path, (long_ago, long_ago))
    _forget()
    _call(3)  # is read
    assert len(_programs(folder)) == 2 and notes.exists()
    _call(4)  # is written
    assert three.exists() and len(_programs(folder)) == 2 and not notes.exists()


NAMELESS = (
    _call,  # of no package whose version is known
    lambda x: x,
    jax.vmap(load_generator),  # named as what it wraps
    partial(load_generator),
    type("Local", (), {"__module__": load_generator.__module__}),
    np.ones(1),
    {},
    "a".join,
)


@pytest.mark.parametrize("value", NAMELESS)
def test_what_is_not_the_same_in_every_process_has_no_name(value):
    for nameless in (value, (1, value)):
        with pytest.raises(program_names.NoNameError):
            program_names.name_of(nameless)


def test_names_tell_values_apart():
    sequences = ((1,), [1], ("1",), (), optax.EmptyState(), optax.ScaleByScheduleState(1))
    configs = (FlowConfig(dim=16), FlowConfig(dim=17), FlowConfig)
    functions = (load_generator, load_prior, jnp.tanh, jnp.sinh)
    values = (1, 1.0, True, None, "1", *sequences, *configs, *functions)
    assert len(set(map(program_names.name_of, values))) == len(values)


def test_other_static_values_are_other_programs(folder):
    """Equal ones of another type too."""
    _call(2)
    np.testing.assert_array_equal(_call(3)["sum"], [2.0, 3.0, 10.0])
    assert len(_programs(folder)) == 2
    _call(1), _call(True)
    assert len(TRACES) == len(_programs(folder)) == 4


def test_what_has_no_name_is_traced_as_usual(folder):
    np.testing.assert_array_equal(_call(how=lambda x: x)["sum"], [2.0, 3.0, 6.0])
    assert not list(folder.iterdir())


@pytest.mark.parametrize("function", [lambda x: x + 1.0, partial(jnp.add, 1.0), jax.vmap(jnp.sinc)])
def test_functions_without_a_name_are_traced_as_usual(folder, function):
    kept, x = program_cache.kept_jit(function), jnp.arange(3.0)
    np.testing.assert_array_equal(kept(x), jax.jit(function)(x))
    assert not _programs(folder)


def test_a_damaged_program_is_made_again(folder):
    _call()
    (file,) = _programs(folder)
    whole = file.read_bytes()
    file.write_bytes(b"no program")
    _forget()
    np.testing.assert_array_equal(_call()["sum"], [2.0, 3.0, 6.0])
    assert file.read_bytes() != b"no program" and len(file.read_bytes()) == len(whole)


def test_what_compiling_took_is_given_back_before_the_program_runs(folder, monkeypatch):
    order = []
    monkeypatch.setattr(program_cache, "release_memory", lambda: order.append("released"))
    compiled = program_cache._compile

    def compile_and_note(*args):
        run = compiled(*args)
        return lambda *args: order.append("ran") or run(*args)

    monkeypatch.setattr(program_cache, "_compile", compile_and_note)
    _call()
    _call()
    _call(how=lambda x: x)  # without a name to be kept under
    assert order == ["released", "ran", "ran", "released", "ran"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to")
def test_freed_memory_goes_back_to_the_system():
    pieces = [b"x" * (100_000 + i % 2) for i in range(3_000)]
    last = pieces[-1]  # keeps the heap from shrinking by itself
    before = _resident()
    del pieces
    release_memory()
    assert before - _resident() > 250e6 and len(last) == 100_001


def _resident():
    """Bytes of memory that this process has now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE


def test_programs_are_let_go_before_the_mappings_run_out(folder, monkeypatch):
    _call()
    for used, kept in ((50, 1), (51, 0)):
        monkeypatch.setattr(program_cache, "mappings", lambda used=used: (used, 100))
        program_cache.drop_programs_if_full()
        assert len(program_cache._ready) == kept
    monkeypatch.setattr(program_cache, "mappings", lambda: None)  # a system that does not tell
    np.testing.assert_array_equal(_call()["sum"], [2.0, 3.0, 6.0])
    assert TRACES == [2]  # it came back from its file
    program_cache.drop_programs_if_full()
    assert len(program_cache._ready) == 1


def test_programs_are_dropped_before_another_is_compiled(folder, monkeypatch):
    for used, kept in ((50, 2), (51, 1)):
        monkeypatch.setattr(program_cache, "mappings", lambda used=used: (used, 100))
        _forget()
        _call(2)
        _call(3)
        assert len(program_cache._ready) == kept


@pytest.mark.skipif(mappings() is None, reason="only Linux tells")
def test_programs_that_are_let_go_give_their_mappings_back(folder, monkeypatch):
    def used():
        gc.collect()
        return mappings()[0]

    def let_go():
        with monkeypatch.context() as patch:
            patch.setattr(program_cache, "mappings", lambda: (1, 1))
            program_cache.drop_programs_if_full()
        return used()

    before = let_go()
    for power in range(2, 62):
        _call(power)
    taken = used() - before
    assert taken >= 40  # fewer than one each: the system joins those of neighbours
    assert let_go() - before < taken / 4


@pytest.fixture
def loaded(monkeypatch):
    """Whether programs were loaded by the main thread, one after the other."""
    seen, compiled = [], program_cache._compile

    def note(*args):
        seen.append(threading.current_thread() is threading.main_thread())
        return compiled(*args)

    monkeypatch.setattr(program_cache, "_compile", note)
    return seen


def _as_another_process(kind, *powers):
    """Call programs in a process of this kind."""
    _forget()
    with program_cache.prefetch(kind):
        wait(program_cache._prefetched.values())
        return [np.asarray(_call(power)["sum"]) for power in powers]


def test_what_the_last_process_called_is_loaded_beforehand(folder, loaded):
    first = _as_another_process("a", 2, 3)
    again = _as_another_process("a", 3, 2)
    assert TRACES == [] and loaded == [True, True, False, False]
    np.testing.assert_array_equal(first, again[::-1])
    _as_another_process("b", 2)
    assert loaded[4:] == [True]  # another kind calls other programs


def test_what_is_called_after_a_repetition_is_not_loaded_beforehand(folder, loaded):
    _as_another_process("a", 2, 2, 3)
    _as_another_process("a", 2, 2, 3)
    assert loaded == [True, True, False, True]


def test_what_is_not_called_again_is_loaded_beforehand_no_more(folder, loaded):
    _as_another_process("a", 2, 3)
    _as_another_process("a", 4)
    del loaded[:]
    _as_another_process("a", 4)
    assert loaded == [False]


def test_what_other_sources_or_devices_called_is_not_loaded(folder, loaded, monkeypatch):
    _as_another_process("a", 2)
    monkeypatch.setattr(program_cache, "_sources", lambda: "others")
    _as_another_process("a", 2)
    assert loaded == [True, True] and len(list(folder.glob("*.called"))) == 2
    with program_cache.prefetch("a"):
        ((key, waiting),) = program_cache._prefetched.items()
        assert waiting.result()
        assert program_cache._take(key, "another device") is None
        assert program_cache._take(key, jax.local_devices()[0])


DAMAGES = (
    b"",
    b"no list",
    b"null",
    b"[[1]]",
    b'{"a": 1}',
    b'{"a": ["stylesr_jax.no", "this"]}',
    b"[0, []]\n",
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_notes_and_programs_cost_time_only(folder, damage):
    first = _as_another_process("a", 2)
    (notes,) = folder.glob("*.called")
    notes.write_bytes(damage)
    np.testing.assert_array_equal(_as_another_process("a", 2), first)
    assert "this" not in sys.modules
    next(folder.glob("*.program")).write_bytes(damage)
    np.testing.assert_array_equal(_as_another_process("a", 2), first)
    assert TRACES == [2]


LAPACK = """
import sys
from pathlib import Path
import jax.numpy as jnp
from stylesr_jax.runtime import program_cache, program_names

program_names.PACKAGES |= {"__main__"}

@program_cache.kept_jit
def double(x):
    return 2.0 * x

@program_cache.kept_jit
def cholesky(x):
    return jnp.linalg.cholesky(x)

program_cache.keep_in(Path(sys.argv[1]))
assert double(jnp.eye(3)).sum() == 6.0
assert "scipy" not in sys.modules
assert cholesky(4.0 * jnp.eye(3)).sum() == 6.0
assert "scipy" in sys.modules
"""


def test_lapack_is_made_ready_only_for_programs_that_call_it(tmp_path):
    subprocess.run([sys.executable, "-c", LAPACK, tmp_path], check=True)
    assert len(_programs(tmp_path)) == 2


def test_nothing_is_kept_without_a_folder(tmp_path):
    _forget()
    np.testing.assert_array_equal(_call()["sum"], [2.0, 3.0, 6.0])
    assert TRACES == [2]


def test_a_search_from_kept_programs_is_the_same(folder, tiny_files, monkeypatch):
    generator = load_generator(tiny_files["generator"])
    prior = load_prior(generator, tiny_files["prior"])
    image = np.random.default_rng(0).uniform(-1, 1, (8, 8, 3))

    def run():
        settings = {"style_steps": 0, "steps": 25}
        options = {"generator": generator, "prior": prior, "solutions": 2, "settings": settings}
        return upsample(image, key=jax.random.key(0), **options).images

    first = run()
    # The first solution's noise and the second's, the choice of starts; of the phase with small
    # images, that with full ones and the activation's the beginning, after another one or not, the
    # first state and the search (first chunk and later ones alike); the picture, its correction,
    # and it corrected.
    assert len(_programs(folder)) == 16

    def export(*args, **options):
        raise AssertionError("the program was not found")

    _forget()
    monkeypatch.setattr(jax.export, "export", export)
    np.testing.assert_array_equal(run(), first)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_has_a_name(name):
    """No method's stages are made of lambdas or closures, so that all start warm."""
    method = METHODS[name]()
    for part in (method, *stages_of(method)):
        assert program_names.describe(jax.tree.structure(part), program_names.name_of)


@pytest.fixture(scope="module")
def native_features():
    """A call of a program with native blocks, and what it returns in XLA."""
    generator = load_generator()
    if not native_library.ready():
        pytest.skip("there is no C++ compiler")
    ws = jnp.tile(generator.statistics["w_mean"], (1, generator.num_ws, 1))
    plain = generator.replace(config=generator.config.portable())
    return lambda: _features(generator, ws), _features.__wrapped__(plain, ws)


@program_cache.kept_jit
def _features(generator, ws):
    return generator.features(ws, generator.stored_noise, block=5)


@pytest.mark.parametrize(("fails", "writable"), [(False, True), (True, True), (True, False)])
def test_tracing_does_not_wait_for_the_compiler(
    folder, monkeypatch, native_features, fails, writable
):
    """Nor does a compiler that fails after all leave a program that cannot run."""
    call, expected = native_features
    asked, library = [], native_library._loaded()

    def loaded():
        asked.append(len(_programs(folder)))
        return None if fails else library

    def unwritable(path):
        raise UserError("cannot write")

    if not writable:
        monkeypatch.setattr(files, "atomic_path", unwritable)
    _features.__wrapped__.clear_cache()
    monkeypatch.setattr(native_library, "_loaded", loaded)
    monkeypatch.setattr(native_compiler, "begun", Future)  # never done
    np.testing.assert_allclose(call(), expected, atol=1e-4)
    assert asked[0] == writable  # what is traced by then
    assert len(_programs(folder)) == (1 + fails) * writable


PREFETCHED = """
import sys
from pathlib import Path
import jax
from stylesr_jax.runtime import program_cache

jax.config.update("jax_numpy_dtype_promotion", "strict")
program_cache.keep_in(Path(sys.argv[1]))
with program_cache.prefetch("a"):
    (waiting,) = program_cache._prefetched.values()
    assert waiting.result(), "the program was not loaded"
"""


def test_programs_with_native_blocks_are_prefetched_before_a_generator_is_imported(
    folder, native_features
):
    call, expected = native_features
    with program_cache.prefetch("a"):
        np.testing.assert_allclose(call(), expected, atol=1e-4)
    subprocess.run([sys.executable, "-c", PREFETCHED, folder], check=True)
