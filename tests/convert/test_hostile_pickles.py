"""Files made to harm the reader: each ends in one clear error, in bounded time and memory."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import weight_files as wf
from convert import pickles
from convert.detect import read_source
from convert.parameters import checked
from convert.pickles import Global, Record, read_pickle, refused_globals
from convert.state_dict import random_state
from convert.torch_files import TORCH_MAGIC
from stylesr_jax.errors import UserError
from where import GOLDEN, ROOT

SETTINGS = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TINY = random_state(
    seed=0, resolution=8, channel_base=64, channel_max=4, z_dim=8, w_dim=8, mapping_layers=2
)


def load(data: bytes) -> None:
    checked(read_source(memoryview(data)))


def expect_error(data: bytes, pattern: str = ".") -> None:
    begin = time.process_time()
    with pytest.raises(UserError, match=pattern) as caught:
        load(data)
    assert time.process_time() - begin < 20  # takes at most 2 s; without bounds, hours
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


class Trap:
    """What an honest unpickler would run, writing a file that gives it away."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


NAMES = {
    "os.system": b"cos\nsystem\n",
    "posix.system": b"cposix\nsystem\n",
    "eval": b"cbuiltins\neval\n",
    "exec": b"cbuiltins\nexec\n",
    "Python 2's eval": b"c__builtin__\neval\n",
    "getattr": b"cbuiltins\ngetattr\n",
    "import": b"cbuiltins\n__import__\n",
    "subprocess": b"csubprocess\nPopen\n",
    "copyreg": b"ccopyreg\n_reconstructor\n",
    "add_extension": b"ccopyreg\nadd_extension\n",
    "pickle.loads": b"cpickle\nloads\n",
    "runpy": b"crunpy\n_run_code\n",
    "torch.load": b"ctorch\nload\n",
    "numpy.load": b"cnumpy\nload\n",
    "dotted name": b"cnumpy\ncore.multiarray.fromfile\n",
    "attribute of an allowed class": (
        b"\x80\x04\x8c\x0bcollections\x8c\x15OrderedDict.__class__\x93"
    ),
    "module of an allowed name": b"\x80\x04\x8c\x05numpy\x8c\x00\x93",
    "nul": b"cbuiltins\ndict\x00eval\n",
}
CALLS = {
    "reduce": lambda name: name + b"(X\x02\x00\x00\x00idtR.",
    "newobj": lambda name: b"\x80\x02" + name + b"X\x02\x00\x00\x00id\x85\x81.",
    "newobj_ex": lambda name: b"\x80\x04" + name + b"X\x02\x00\x00\x00id\x85}\x92.",
    "obj": lambda name: b"(" + name + b"X\x02\x00\x00\x00ido.",
    "build": lambda name: name + b")R}X\x09\x00\x00\x00__class__X\x01\x00\x00\x00xsb.",
    "alone": lambda name: name + b".",
    "as a key": lambda name: b"}" + name + b"K\x01s.",
    "in a persistent id": lambda name: name + b"(X\x02\x00\x00\x00idtRQ.",
    "as a function's result": lambda name: name + b")R)R)R.",
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", NAMES)
def test_a_name_outside_the_list_is_only_reported(name, call):
    data = CALLS[call](NAMES[name])
    value, end = read_pickle(memoryview(data))
    assert end == len(data)
    assert refused_globals(value)
    expect_error(data, "refers to|no StyleGAN2|unknown format")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_outside_the_list_inside_the_generator(name):
    value, _ = read_pickle(memoryview(NAMES[name] + b"."))
    (refused,) = refused_globals(value)
    module, _, function = refused.partition(".")
    call = wf.Call(wf.Name(module, function), ("id",))
    network = wf.ada_network(TINY)
    network.args[0].entries["state"]["_forward_hooks"] = call
    expect_error(wf.ada_pickle(network), "refers to.*nothing was run")
    tf = wf.tf_generator(TINY, extra=call)
    expect_error(wf.dumps((None, None, tf)), "refers to.*nothing was run")
    expect_error(wf.torch_save_zip({"g_ema": {"a": call}}), "refers to.*nothing was run")


@pytest.mark.parametrize("protocol", range(6))
def test_a_real_exploit_does_not_run(protocol, tmp_path):
    witness = tmp_path / "witness"
    data = pickle.dumps({"G_ema": Trap(witness)}, protocol)
    expect_error(data, "system" if protocol else ".")
    assert not witness.exists()
    os.system(pickle.loads(pickle.dumps(f"touch {witness}")))
    assert witness.exists()  # the command itself works


def test_the_unpickler_imports_nothing():
    code = (
        "import sys; from convert.pickles import read_pickle; before = set(sys.modules)\n"
        "read_pickle(memoryview(b'cantigravity\\nfly\\n)R.'))\n"
        "assert set(sys.modules) == before and 'antigravity' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_reader_uses_no_unpickler():
    for path in (ROOT / "convert").rglob("*.py"):
        text = path.read_text()
        for word in ("import pickle", "from pickle", "eval(", "exec(", "__import__", "importlib"):
            assert word not in text, (path.name, word)


def test_state_never_reaches_an_object():
    data = b"ccollections\nOrderedDict\n)R}X\x09\x00\x00\x00__class__X\x02\x00\x00\x00absb."
    value, _ = read_pickle(memoryview(data))
    assert type(value) is dict and value == {}
    data = b"cnumpy\ndtype\n)R}(X\x09\x00\x00\x00__class__K\x01X\x08\x00\x00\x00functionK\x02ub."
    value, _ = read_pickle(memoryview(data))
    assert type(value) is Record and value.function == Global("numpy.dtype")


# --- sizes ----------------------------------------------------------------------------------


def numpy_record(shape: object, kind: object = "f4", data: object = b"\0" * 16) -> wf.Call:
    dtype = wf.Call(
        wf.Name("numpy", "dtype"), (kind, False, True), (3, "<", None, None, None, -1, -1, 0)
    )
    core = "numpy.core.multiarray"
    return wf.Call(
        wf.Name(core, "_reconstruct"),
        (wf.Name("numpy", "ndarray"), (0,), b"b"),
        (1, shape, dtype, False, data),
    )


def tf_with(array: object) -> bytes:
    network = wf.tf_generator(TINY)
    network.state["variables"].append(("hostile", array))
    return wf.dumps(network)


def ada_with(tensor: object) -> bytes:
    network = wf.ada_network(TINY)
    network.args[0].entries["state"]["_parameters"]["hostile"] = tensor
    return wf.ada_pickle(network)


def tensor(**changes: object) -> wf.Call:
    stream = wf.torch_stream(
        wf.storage_reference(np.zeros(4, np.float32), "0"), {"0": np.zeros(4, np.float32)}
    )
    values = {
        "source": wf.Call(wf.LOAD_BYTES, (stream,)),
        "offset": 0,
        "size": (4,),
        "stride": (1,),
    }
    return wf.Call(wf.REBUILD, (*{**values, **changes}.values(), False, {}))


def reference(*parts: object) -> wf.Call:
    stream = wf.torch_stream(wf.Persistent(tuple(parts)), {"0": np.zeros(4, np.float32)})
    return tensor(source=wf.Call(wf.LOAD_BYTES, (stream,)))


FLOAT = wf.Name("torch", "FloatStorage")
SIZES = {
    "bytes": lambda: b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"abc",
    "text": lambda: b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"abc",
    "32-bit bytes": lambda: b"\x80\x03B\xff\xff\xff\xffabc",
    "negative 32-bit integer": lambda: b"\x80\x02\x8b\xff\xff\xff\xffabc",
    "bytearray": lambda: b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"abc",
    "frame": lambda: b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.",
    "long integer": lambda: (
        b"\x80\x02\x8b" + struct.pack("<I", 1 << 20) + b"\x7f" * (1 << 20) + b"."
    ),
    "long decimal": lambda: b"(L" + b"9" * 100_000 + b"L\nl.",
    "long line": lambda: b"c" + b"a" * 100_000 + b"\nb\n.",
    "memo index": lambda: b"\x80\x02Nr\xff\xff\xff\xffj\xfe\xff\xff\xff.",
    "negative memo index": lambda: b"(Np-5\nl.",
    "long text": lambda: b"\x80\x02X" + struct.pack("<I", 1 << 25) + b"a" * (1 << 25) + b".",
    "many opcodes": lambda: b"\x80\x02" + b"N0" * 600_000 + b"N.",
    "many lists": lambda: b"\x80\x02" + b"]" * 1_200_000 + b".",
    "many marks": lambda: b"\x80\x02" + b"(" * 1_200_000 + b".",
    "deep lists": lambda: b"\x80\x02" + b"](" * 150_000 + b"N" + b"le" * 50_000 + b".",
    "deep tuples": lambda: b"\x80\x02)" + b"\x85" * 450_000 + b".",
    "deep records": lambda: b"\x80\x02)" + b"cnumpy\ndtype\n)R\x85" * 100_000 + b".",
    "deep persistent ids": lambda: b"\x80\x02N" + b"Q" * 450_000 + b".",
    "nested tuples as keys": lambda: b"\x80\x02}" + b"K\x01" + b"2\x86" * 200 + b"Ns.",
    "doubled tuples": lambda: b"\x80\x02)" + b"2\x86" * 200_000 + b".",
    "doubled lists": lambda: b"\x80\x02]" + b"2a" * 200_000 + b".",
    "copies of a list": lambda: (
        b"\x80\x02]("
        + b"N" * 100_000
        + b"eq\x000cbuiltins\nset\nq\x010"
        + b"h\x01h\x00\x85R0" * 100_000
        + b"N."
    ),
    "its own element": lambda: b"\x80\x02]q\x00h\x00a.",
    "its own key and value": lambda: b"\x80\x02}q\x00(h\x00h\x00u.",
    "colliding integer keys": lambda: (
        b"\x80\x02}("
        + b"".join(
            b"\x8a\x10" + (i * ((1 << 61) - 1)).to_bytes(16, "little") + b"N" for i in range(50_000)
        )
        + b"u."
    ),
    "no stop": lambda: b"\x80\x04" + b"N0" * 50,
    "underflow": lambda: b"\x80\x020.",
    "pop through a mark": lambda: b"\x80\x02(R.",
    "append to a number": lambda: b"\x80\x02K\x01K\x02a.",
    "item of a number": lambda: b"\x80\x02K\x01K\x02K\x03s.",
    "state of a number": lambda: b"\x80\x02K\x01}b.",
    "odd items": lambda: b"\x80\x02}(K\x01u.",
    "extension 1": lambda: b"\x80\x02\x82\x01)R.",
    "extension 2": lambda: b"\x80\x02\x83\x01\x00)R.",
    "extension 4": lambda: b"\x80\x02\x84\x01\x00\x00\x00)R.",
    "instance": lambda: b"(X\x02\x00\x00\x00idios\nsystem\n.",
    "buffers": lambda: b"\x80\x05\x97.",
    "protocol 255": lambda: b"\x80\xffN.",
    "unknown opcode": lambda: b"\x80\x04\xff.",
    "name of numbers": lambda: b"\x80\x04K\x01K\x02\x93.",
    "damaged text": lambda: b"\x80\x04\x8c\x02\xff\xfe.",
    "numpy: huge shape": lambda: tf_with(numpy_record((1 << 40, 1 << 40))),
    "numpy: negative shape": lambda: tf_with(numpy_record((-1, -4))),
    "numpy: overflowing shape": lambda: tf_with(numpy_record((1 << 63, 2))),
    "numpy: empty and huge": lambda: tf_with(numpy_record((0, 1 << 62), data=b"")),
    "numpy: 65 dimensions": lambda: tf_with(numpy_record((1,) * 65, data=b"\0" * 4)),
    "numpy: shape of text": lambda: tf_with(numpy_record(("4",))),
    "numpy: shape of truth": lambda: tf_with(numpy_record((True, True, 4))),
    "numpy: no shape": lambda: tf_with(numpy_record(None)),
    "numpy: objects": lambda: tf_with(numpy_record((2,), "O8")),
    "numpy: records": lambda: tf_with(numpy_record((2,), "V8")),
    "numpy: text": lambda: tf_with(numpy_record((2,), "U2")),
    "numpy: kind of list": lambda: tf_with(numpy_record((4,), ["f4"])),
    "numpy: data of list": lambda: tf_with(numpy_record((4,), data=[1, 2, 3, 4])),
    "numpy: wide text as data": lambda: tf_with(numpy_record((4,), data="\u1234" * 16)),
    "numpy: a plain number": lambda: tf_with(7),
    "torch: negative offset": lambda: ada_with(tensor(offset=-1)),
    "torch: offset too far": lambda: ada_with(tensor(offset=2)),
    "torch: huge offset": lambda: ada_with(tensor(offset=1 << 70)),
    "torch: huge size": lambda: ada_with(tensor(size=(1 << 39,), stride=(0,))),
    "torch: expanded": lambda: ada_with(tensor(size=(1000, 4), stride=(0, 1))),
    "torch: huge stride": lambda: ada_with(tensor(size=(2,), stride=(1 << 39,))),
    "torch: negative stride": lambda: ada_with(tensor(offset=3, stride=(-1,))),
    "torch: unequal ranks": lambda: ada_with(tensor(stride=(1, 1))),
    "torch: no arguments": lambda: ada_with(wf.Call(wf.REBUILD, ())),
    "torch: parameter of itself": lambda: ada_with(
        wf.Call(wf.PARAMETER, (wf.Call(wf.PARAMETER, (tensor(), True, {})), True, {}))
    ),
    "torch: not bytes": lambda: ada_with(tensor(source=wf.Call(wf.LOAD_BYTES, (5,)))),
    "torch: empty stream": lambda: ada_with(tensor(source=wf.Call(wf.LOAD_BYTES, (b"",)))),
    "torch: storage type": lambda: ada_with(
        reference("storage", wf.Name("os", "system"), "0", "cpu", 4, None)
    ),
    "torch: storage count": lambda: ada_with(
        reference("storage", FLOAT, "0", "cpu", 1 << 40, None)
    ),
    "torch: negative count": lambda: ada_with(reference("storage", FLOAT, "0", "cpu", -4, None)),
    "torch: another key": lambda: ada_with(reference("storage", FLOAT, "1", "cpu", 4, None)),
    "torch: view": lambda: ada_with(reference("storage", FLOAT, "0", "cpu", 4, ("0", 0, 4))),
    "torch: short reference": lambda: ada_with(reference("storage")),
    "torch: another reference": lambda: ada_with(reference("module", 1, 2, 3, 4, 5)),
    "torch: persistent id outside": lambda: ada_with(tensor(source=wf.Persistent("x"))),
    "torch: stream of many steps": lambda: ada_with(
        tensor(source=wf.Call(wf.LOAD_BYTES, (b"\x80\x02" + b"N0" * 5000 + b"N.",)))
    ),
    "dictionaries that multiply": lambda: multiplied(),
    "long names in dictionaries": lambda: long_names(),
    "torch: stream in a stream": lambda: ada_with(
        tensor(
            source=wf.Call(
                wf.LOAD_BYTES,
                (wf.torch_stream(wf.Call(wf.LOAD_BYTES, (wf.torch_stream(1, {}),)), {}),),
            )
        )
    ),
}


def multiplied() -> bytes:
    """A few shared dictionaries that are a hundred million entries to who walks through them."""
    shared: dict[str, object] = {"input": 1}
    for _ in range(5):
        shared = {str(i): shared for i in range(40)}
    return wf.torch_archive(shared, {})


def long_names() -> bytes:
    """Entries whose dotted paths would take 20 GB."""
    inner = {str(i): {} for i in range(10_000)}
    return wf.torch_archive({"a" * 1_000_000: {"b" * 1_000_000: inner}}, {})


@pytest.mark.parametrize("what", SIZES)
def test_absurd_declarations(what):
    expect_error(SIZES[what]())


def test_one_storage_under_many_names_is_not_multiplied():
    array = np.zeros(100_000, np.float32)
    shared = wf.nested_tensor(array)
    network = wf.ada_network(TINY)
    network.args[0].entries["state"]["_parameters"] |= {f"p{i}": shared for i in range(1000)}
    expect_error(wf.ada_pickle(network), "add up to more than the file holds")


def test_modules_that_go_deep_or_multiply():
    nested = wf.module("Module", {"_modules": {}})
    for _ in range(30):
        nested = wf.module("Module", {"_modules": {"inner": nested}})
    state = wf.ada_network(TINY)
    state.args[0].entries["state"]["_modules"]["inner"] = nested
    expect_error(wf.ada_pickle(state), "implausibly many modules")
    wide = wf.module("Module", {"_modules": {}})
    for _ in range(14):
        wide = wf.module("Module", {"_modules": {"a": wide, "b": wide}})
    state.args[0].entries["state"]["_modules"]["inner"] = wide
    expect_error(wf.ada_pickle(state), "implausibly many modules")


def test_tensorflow_components_that_multiply():
    part = wf.tf_network("part", {}, {})
    for _ in range(6):
        part = wf.tf_network("part", {}, {}, a=part, b=part, c=part)
    expect_error(wf.dumps(part), "malformed")


# --- archives -------------------------------------------------------------------------------


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def npy(shape: str, data: bytes = b"", descr: str = "<f4") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new)


def directory_of(count: int, size: int, offset: int) -> bytes:
    return (
        b"PK\x03\x04"
        + bytes(60)
        + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, size, offset, 0)
    )


ARCHIVES = {
    "bomb in a torch archive": lambda: wf.torch_save_zip(
        {"g_ema": {"a": np.zeros(4_000_000, np.float32)}}, zipfile.ZIP_DEFLATED
    ),
    "bomb in npz": lambda: zipped(
        {"synthesis.b4.const.npy": npy("50000000,", bytes(200_000_000))}, zipfile.ZIP_DEFLATED
    ),
    "understated size": lambda: understated(),
    "overlapping members": lambda: overlapping(),
    "twice the same name": lambda: twice(),
    "entries beyond the file": lambda: directory_of(9, 460, 1 << 30),
    "implausibly many entries": lambda: directory_of(65535, 3_000_000, 0),
    "empty directory": lambda: directory_of(0, 0, 64),
    "no end": lambda: b"PK\x03\x04" + bytes(100),
    "encrypted": lambda: encrypted(),
    "wrong checksum": lambda: patched(
        zipped({"a.npy": npy("4,", b"\x01\x02\x03\x04" * 4)}),
        b"\x01\x02\x03\x04" * 4,
        b"\x01\x02\x03\x05" * 4,
    ),
    "npz: objects": lambda: zipped({"a.npy": npy("2,", b"\0" * 16, "|O8")}),
    "npz: huge shape": lambda: zipped({"a.npy": npy("999999999999, 999999999999", b"")}),
    "npz: many dimensions": lambda: zipped({"a.npy": npy("1, " * 40, b"\0" * 4)}),
    "npz: code in the header": lambda: zipped(
        {"a.npy": npy("__import__('os').system('id'),", b"")}
    ),
    "npz: not numpy": lambda: zipped({"a.npy": b"hello, this is no array"}),
    "npz: too short": lambda: zipped({"a.npy": b"\x93NUMPY"}),
    "npz: pickle inside": lambda: zipped({"a.npy": pickle.dumps(1)}),
    "torch: no storages": lambda: patched(
        wf.torch_save_zip({"g_ema": wf.rosinality_state(TINY)}),
        b"archive/data/0",
        b"archive/data/x",
    ),
    "torch: hostile pickle": lambda: zipped(
        {"a/data.pkl": b"cos\nsystem\n(X\x02\x00\x00\x00idtR."}
    ),
    "torch: truncated pickle": lambda: zipped({"a/data.pkl": b"\x80\x02}q\x00(X\x05"}),
    "torch: persistent id": lambda: zipped({"a/data.pkl": b"\x80\x02Pwhat\n."}),
    "safetensors: huge header": lambda: struct.pack("<Q", 1 << 39) + b"{" + bytes(100),
    "safetensors: 20 MB header": lambda: struct.pack("<Q", 20 << 20) + b"{" + bytes(20 << 20),
    "safetensors: deep header": lambda: safetensors_of('{"a":' * 100_000),
    "safetensors: big number": lambda: safetensors_of('{"a": ' + "9" * 10_000 + "}"),
    "safetensors: entry of text": lambda: safetensors_of('{"a": "b"}'),
    "safetensors: header of list": lambda: safetensors_of('{"a": [1]}'),
    "safetensors: metadata of list": lambda: safetensors_of('{"__metadata__": [1]}'),
    "safetensors: negative": lambda: safetensors_entry([2], [-8, 0]),
    "safetensors: backwards": lambda: safetensors_entry([2], [8, 0]),
    "safetensors: beyond": lambda: safetensors_entry([2], [0, 1 << 40]),
    "safetensors: shape": lambda: safetensors_entry([1 << 40, 1 << 40], [0, 8]),
    "safetensors: negative shape": lambda: safetensors_entry([-1, -2], [0, 8]),
    "safetensors: three offsets": lambda: safetensors_entry([2], [0, 4, 8]),
    "safetensors: infinite": lambda: safetensors_of(
        '{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 8]}}'
    ),
}


def safetensors_of(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode() + bytes(8)


def safetensors_entry(shape: list, offsets: list) -> bytes:
    return safetensors_of(
        json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}})
    )


def understated() -> bytes:
    body = npy("4,", b"\0" * 16)
    data = zipped({"a.npy": body + bytes(1 << 20)}, zipfile.ZIP_DEFLATED)
    return patched(data, struct.pack("<L", len(body) + (1 << 20)), struct.pack("<L", len(body)))


def overlapping() -> bytes:
    """Many directory entries of one large member."""
    name, body = b"a.npy", npy("250000,", bytes(1_000_000))
    local = (
        struct.pack(
            "<4s5H3L2H",
            b"PK\x03\x04",
            20,
            0,
            0,
            0,
            0,
            zlib.crc32(body),
            len(body),
            len(body),
            len(name),
            0,
        )
        + name
        + body
    )
    entries = b"".join(
        struct.pack(
            "<4s6H3L5H2L",
            b"PK\x01\x02",
            20,
            20,
            0,
            0,
            0,
            0,
            zlib.crc32(body),
            len(body),
            len(body),
            7,
            0,
            0,
            0,
            0,
            0,
            0,
        )
        + f"{i:03d}.npy".encode()
        for i in range(500)
    )
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 500, 500, len(entries), len(local), 0)
    return local + entries + end


def twice() -> bytes:
    return patched(zipped({"a.npy": npy("0,"), "b.npy": npy("0,")}), b"b.npy", b"a.npy")


def encrypted() -> bytes:
    data = bytearray(zipped({"a.npy": npy("0,")}))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


@pytest.mark.parametrize("what", ARCHIVES)
def test_hostile_archives(what):
    expect_error(ARCHIVES[what]())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_memory_is_bounded():
    """Every hostile file above, in a process of its own that may not use much memory."""
    code = """
import sys
sys.path[:0] = ["tests/convert", "tests/helpers"]
import test_hostile_pickles as hostile
from stylesr_jax.errors import UserError
files = [make() for make in [*hostile.SIZES.values(), *hostile.ARCHIVES.values()]]
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
before = peak()
for data in files:
    try:
        hostile.load(data)
    except UserError:
        continue
    raise SystemExit("read without an error")
print((peak() - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 600  # MB


# --- damage ---------------------------------------------------------------------------------

WHOLE = {
    "ada": wf.ada_pickle(wf.ada_network(TINY)),
    "ada, protocol 2": wf.ada_pickle(wf.ada_network(TINY), 2),
    "tf": wf.dumps((None, None, wf.tf_generator(TINY))),
    "rosinality zip": wf.torch_save_zip({"g_ema": wf.rosinality_state(TINY)}),
    "pSp": wf.torch_save_zip(
        {
            "state_dict": {f"decoder.{n}": a for n, a in wf.rosinality_state(TINY).items()},
            "latent_avg": np.zeros((4, 8), np.float32),
        }
    ),
    "module by torch": wf.torch_save_zip(wf.ada_network(TINY, record=np.asarray)),
    "rosinality legacy": wf.torch_save_legacy({"g_ema": wf.rosinality_state(TINY)}),
    "npz": zipped({f"{n}.npy": npy(str(a.shape)[1:-1], a.tobytes()) for n, a in TINY.items()}),
}


@pytest.mark.parametrize("layout", WHOLE)
def test_the_undamaged_file_is_read(layout):
    load(WHOLE[layout])


@pytest.mark.parametrize("layout", WHOLE)
@given(data=st.data())
@SETTINGS
def test_truncated_files_end_in_an_error(layout, data):
    whole = WHOLE[layout]
    expect_error(whole[: data.draw(st.integers(0, len(whole) - 1))])


@pytest.mark.parametrize("layout", WHOLE)
@given(data=st.data())
@SETTINGS
def test_flipped_bits_end_in_an_error_or_change_a_number(layout, data):
    """A flipped bit of a weight cannot be told from a weight; anything else is an error."""
    damaged = bytearray(WHOLE[layout])
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.integers(0, 8 * len(damaged) - 1))
        damaged[position // 8] ^= 1 << position % 8
    try:
        load(bytes(damaged))
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("layout", WHOLE)
@given(data=st.data())
@SETTINGS
def test_spliced_files(layout, data):
    whole = WHOLE[layout]
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
    target = data.draw(st.integers(0, len(whole)))
    spliced = whole[:target] + whole[start:end] + whole[target + data.draw(st.integers(0, 99)) :]
    try:
        load(spliced)
    except UserError as error:
        assert "\n" not in str(error)


@given(st.binary(max_size=300))
@example(b"")
@example(b"\x80\x04\x95")
@settings(SETTINGS, max_examples=400)
def test_random_bytes_after_a_pickle_header(body):
    expect_error(b"\x80\x04" + body)


@given(
    st.lists(
        st.sampled_from(
            [
                b"(",
                b")",
                b"]",
                b"}",
                b"N",
                b"K\x01",
                b"t",
                b"l",
                b"d",
                b"R",
                b"b",
                b"a",
                b"e",
                b"s",
                b"u",
                b"0",
                b"1",
                b"2",
                b"Q",
                b"\x81",
                b"\x85",
                b"\x86",
                b"\x94",
                b"h\x00",
                b"h\x01",
                b"q\x00",
                b"cnumpy\ndtype\n",
                b"ccollections\nOrderedDict\n",
                b"cos\nsystem\n",
                b"X\x01\x00\x00\x00a",
                b"\x8f",
                b"\x90",
                b"\x91",
                b"\x92",
                b"o",
                b"cbuiltins\nset\n",
                b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n",
                b"cdnnlib.tflib.network\nNetwork\n",
                b"X\x05\x00\x00\x00G_ema",
                b"C\x00",
            ]
        ),
        max_size=60,
    )
)
@settings(SETTINGS, max_examples=600)
def test_random_programs_of_valid_opcodes(parts):
    expect_error(b"\x80\x04" + b"".join(parts) + b".")


def test_limits_are_far_from_real_files():
    """Three networks at 32 px (at 1024 px there are 9 blocks instead of 4)."""
    data = memoryview((GOLDEN / "ada_pytorch_skip_32.pkl").read_bytes())
    read_pickle(data, max_opcodes=pickles.MAX_OPCODES // 20)
    assert TORCH_MAGIC.bit_length() < 8 * pickles.MAX_INTEGER // 3
