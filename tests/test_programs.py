"""Traced programs kept on disk: the same results, and no second trace."""

import gc
import mmap
import platform
import subprocess
import sys
import threading
from concurrent.futures import Future, wait
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stylesr_jax.errors import UserError
from stylesr_jax.generators.mobile.native import blocks as native
from stylesr_jax.generators.mobile.native import library as native_library
from stylesr_jax.loading import load_generator
from stylesr_jax.methods import METHODS
from stylesr_jax.priors.flow import load_prior
from stylesr_jax.runtime import files
from stylesr_jax.runtime import program_cache as programs
from stylesr_jax.runtime.memory import mappings, release_memory
from stylesr_jax.solver.solve import upsample

TRACES = []


@partial(jax.jit, static_argnames=("power", "how"))
def _powers(x, tree, *, power, how=None):
    TRACES.append(power)
    return {"sum": sum(v**power for v in tree.values()) + x, "x": x}


def _call(power=2, how=None, **options):
    tree = {"a": jnp.arange(3.0), "b": jnp.ones(3)}
    return programs.call(_powers, jnp.ones(3), tree, power=power, how=how, **options)


@pytest.fixture
def folder(tmp_path):
    """Programs are kept in a folder of the test's own, and forgotten in between."""
    _forget()
    programs.keep_in(tmp_path)
    yield tmp_path
    programs.keep_in(None)
    _forget()


def _forget():
    """As a new process would begin."""
    programs._ready.clear()
    _powers.clear_cache()
    TRACES.clear()


def test_another_precision_is_another_program(folder):
    """Both on disk and in the same process."""
    for precision in ("float32", "bfloat16", "float32"):
        with jax.default_matmul_precision(precision):
            _call()
    assert TRACES == [2, 2] and len(list(folder.glob("*.program"))) == 2


def test_a_kept_program_is_not_traced_again(folder):
    first = _call()
    assert TRACES == [2] and len(list(folder.glob("*.program"))) == 1
    _forget()
    again = _call()
    assert TRACES == []
    np.testing.assert_array_equal(first["sum"], again["sum"])
    np.testing.assert_array_equal(first["sum"], [2.0, 3.0, 6.0])


def test_a_structure_that_cannot_be_kept_is_given(folder):
    plain, given = _call(), _call(out={"sum": 0, "x": 0})
    np.testing.assert_array_equal(plain["sum"], given["sum"])
    assert plain.keys() == given.keys() and TRACES == [2]  # the jitted function was traced once
    assert len(list(folder.glob("*.program"))) == 2


def test_what_is_not_to_be_kept_is_called_as_it_is(folder):
    np.testing.assert_array_equal(_call(keep=False)["sum"], [2.0, 3.0, 6.0])
    assert not list(folder.iterdir())


def test_other_static_values_are_other_programs(folder):
    _call(2)
    np.testing.assert_array_equal(_call(3)["sum"], [2.0, 3.0, 10.0])
    assert len(list(folder.glob("*.program"))) == 2


def test_what_has_no_name_is_traced_as_usual(folder):
    np.testing.assert_array_equal(_call(how=lambda x: x)["sum"], [2.0, 3.0, 6.0])
    assert not list(folder.iterdir())


def test_a_damaged_program_is_made_again(folder):
    _call()
    (file,) = folder.glob("*.program")
    whole = file.read_bytes()
    file.write_bytes(b"no program")
    _forget()
    np.testing.assert_array_equal(_call()["sum"], [2.0, 3.0, 6.0])
    assert file.read_bytes() != b"no program" and len(file.read_bytes()) == len(whole)


def test_what_compiling_took_is_given_back_before_the_program_runs(folder, monkeypatch):
    order = []
    monkeypatch.setattr(programs, "release_memory", lambda: order.append("released"))
    compiled = programs._compile

    def compile_and_note(function, leaves):
        run = compiled(function, leaves)
        return lambda *args: order.append("ran") or run(*args)

    monkeypatch.setattr(programs, "_compile", compile_and_note)
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
        monkeypatch.setattr(programs, "mappings", lambda used=used: (used, 100))
        programs.make_room()
        assert len(programs._ready) == kept
    monkeypatch.setattr(programs, "mappings", lambda: None)  # a system that does not tell
    np.testing.assert_array_equal(_call()["sum"], [2.0, 3.0, 6.0])
    assert TRACES == [2]  # it came back from its file
    programs.make_room()
    assert len(programs._ready) == 1


@pytest.mark.skipif(mappings() is None, reason="only Linux tells")
def test_programs_that_are_let_go_give_their_mappings_back(folder, monkeypatch):
    def used():
        gc.collect()
        return mappings()[0]

    def let_go():
        with monkeypatch.context() as patch:
            patch.setattr(programs, "mappings", lambda: (1, 1))
            programs.make_room()
        return used()

    before = let_go()
    for power in range(2, 22):
        _call(power)
    taken = used() - before
    assert taken >= 40 and let_go() - before < taken / 4


@pytest.fixture
def loaded(monkeypatch):
    """Whether programs were loaded by the main thread, one after the other."""
    seen, placed = [], programs._placed

    def note(*args):
        seen.append(threading.current_thread() is threading.main_thread())
        return placed(*args)

    monkeypatch.setattr(programs, "_placed", note)
    return seen


def _as_another_process(kind, *powers):
    """Call programs in a process of this kind."""
    _forget()
    with programs.foreseen(kind):
        wait(programs._foreseen.values())
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
    monkeypatch.setattr(programs, "_sources", lambda: "others")
    _as_another_process("a", 2)
    assert loaded == [True, True] and len(list(folder.glob("*.called"))) == 2
    with programs.foreseen("a"):
        ((key, waiting),) = programs._foreseen.items()
        assert waiting.result()
        monkeypatch.setattr(programs, "_device", lambda leaves: "another")
        assert programs._fetch(key, []) is None


@pytest.mark.parametrize("damage", [b"", b"no list", b"null", b"[[1]]", b'["unknown"]'])
def test_damaged_notes_and_programs_cost_time_only(folder, damage):
    first = _as_another_process("a", 2)
    (notes,) = folder.glob("*.called")
    notes.write_bytes(damage)
    np.testing.assert_array_equal(_as_another_process("a", 2), first)
    next(folder.glob("*.program")).write_bytes(damage)
    np.testing.assert_array_equal(_as_another_process("a", 2), first)
    assert TRACES == [2]


LAPACK = """
import sys, tempfile
from pathlib import Path
import jax
import jax.numpy as jnp
from stylesr_jax.runtime import program_cache as programs

double = jax.jit(lambda x: 2.0 * x)
double.__qualname__ = "double"
cholesky = jax.jit(jnp.linalg.cholesky)
programs.keep_in(Path(tempfile.mkdtemp()))
assert programs.call(double, jnp.eye(3)).sum() == 6.0
assert "scipy" not in sys.modules
assert programs.call(cholesky, 4.0 * jnp.eye(3), out=0).sum() == 6.0
assert "scipy" in sys.modules
"""


def test_lapack_is_made_ready_only_for_programs_that_call_it():
    subprocess.run([sys.executable, "-c", LAPACK], check=True)


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
    # The first solution's noise and the second's, beginning, the choice of starts, the search
    # (first chunk and later ones alike), the picture, its correction, and it corrected.
    assert len(list(folder.glob("*.program"))) == 8

    def export(*args, **options):
        raise AssertionError("the program was not found")

    _forget()
    monkeypatch.setattr(jax.export, "export", export)
    np.testing.assert_array_equal(run(), first)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_has_a_name(name):
    """No method's stages are made of lambdas or closures, so that all start warm."""
    method = METHODS[name]
    for stage in method.stages(method.settings):
        assert programs._name(stage)


@pytest.fixture(scope="module")
def native_features():
    """A call of a program with native blocks, and what it returns in XLA."""
    generator = load_generator()
    if not native.ready():
        pytest.skip("there is no C++ compiler")
    ws = jnp.tile(generator.statistics["w_mean"], (1, generator.num_ws, 1))
    plain = generator.replace(config=generator.config.portable())
    return lambda: programs.call(_features, generator, ws, out=0), _features(plain, ws)


@jax.jit
def _features(generator, ws):
    return generator.features(ws, generator.stored_noise, block=5)


@pytest.mark.parametrize(("fails", "writable"), [(False, True), (True, True), (True, False)])
def test_tracing_does_not_wait_for_the_compiler(
    folder, monkeypatch, native_features, fails, writable
):
    """Nor does a compiler that fails after all leave a program that cannot run."""
    call, expected = native_features
    asked, library = [], native._loaded()

    def loaded():
        asked.append(len(list(folder.glob("*.program"))))
        return None if fails else library

    def unwritable(path):
        raise UserError("cannot write")

    if not writable:
        monkeypatch.setattr(files, "atomic_path", unwritable)
    _features.clear_cache()
    monkeypatch.setattr(native, "_loaded", loaded)
    monkeypatch.setattr(native_library, "begun", Future)  # never done
    np.testing.assert_allclose(call(), expected, atol=1e-4)
    assert asked[0] == writable  # what is traced by then
    assert len(list(folder.glob("*.program"))) == (1 + fails) * writable
