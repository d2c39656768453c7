"""Writes weight files in the published layouts, without the packages that define them."""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

SOURCE_TRAP = 'raise RuntimeError("source code embedded in a pickle was executed")\n'


class Name:
    """A global: only its name goes into the pickle."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Call:
    """function(*args), then, if there is one, the state."""

    def __init__(self, function: Any, args: tuple, state: Any = None, *, new: bool = False) -> None:
        self.function, self.args, self.state, self.new = function, args, state, new


class Persistent:
    """A persistent id."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Writer(pickle._Pickler):  # type: ignore[name-defined]
    """A pickler that also writes `Name`, `Call` and `Persistent`."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Name | Call | Persistent) and id(obj) in self.memo:
            self.write(self.get(self.memo[id(obj)][0]))
        elif isinstance(obj, Name):
            if self.proto >= 4:
                self.save(obj.module)
                self.save(obj.name)
                self.write(pickle.STACK_GLOBAL)
            else:
                self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
            self.memoize(obj)
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.args)
            self.write(pickle.NEWOBJ if obj.new else pickle.REDUCE)
            self.memoize(obj)
            if obj.state is not None:
                self.save(obj.state)
                self.write(pickle.BUILD)
        elif isinstance(obj, Persistent):
            self.save(obj.value)
            self.write(pickle.BINPERSID)
        else:
            super().save(obj, save_persistent_id)


def dumps(value: Any, protocol: int = 4) -> bytes:
    file = io.BytesIO()
    Writer(file, protocol).dump(value)
    return file.getvalue()


# --- torch ----------------------------------------------------------------------------------

ORDERED = Name("collections", "OrderedDict")
LOAD_BYTES = Name("torch.storage", "_load_from_bytes")
REBUILD = Name("torch._utils", "_rebuild_tensor_v2")
PARAMETER = Name("torch._utils", "_rebuild_parameter")
STORAGES = {
    np.dtype("f4"): Name("torch", "FloatStorage"),
    np.dtype("f2"): Name("torch", "HalfStorage"),
    np.dtype("f8"): Name("torch", "DoubleStorage"),
    np.dtype("i8"): Name("torch", "LongStorage"),
}


def strides(array: np.ndarray) -> tuple[int, ...]:
    return tuple(int(np.prod(array.shape[i + 1 :])) for i in range(array.ndim))


def storage_reference(array: np.ndarray, key: str) -> Persistent:
    kind = STORAGES[array.dtype]
    return Persistent(("storage", kind, key, "cuda:0", array.size, None))


def torch_stream(value: Any, storages: dict[str, np.ndarray]) -> bytes:
    """What `torch.save(..., _use_new_zipfile_serialization=False)` writes."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    parts = [dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system, value)]
    parts.append(dumps(sorted(storages), 2))
    for _, array in sorted(storages.items()):
        parts += [struct.pack("<q", array.size), array.tobytes()]
    return b"".join(parts)


def tensor_by(source: Any, array: np.ndarray) -> Call:
    hooks = Call(ORDERED, ())
    return Call(REBUILD, (source, 0, array.shape, strides(array), False, hooks))


def nested_tensor(array: np.ndarray) -> Call:
    """A tensor whose storage is a stream of its own, as modules pickled by `pickle` have it."""
    array = np.asarray(array)
    stream = torch_stream(storage_reference(array, "94"), {"94": array})
    return tensor_by(Call(LOAD_BYTES, (stream,)), array)


def _with_references(values: Any, storages: dict[str, np.ndarray]) -> Any:
    """A copy in which the arrays are tensors, their data beside the pickle."""
    if isinstance(values, dict):
        return {name: _with_references(v, storages) for name, v in values.items()}
    if isinstance(values, tuple | list):
        return type(values)(_with_references(v, storages) for v in values)
    if isinstance(values, Call):
        args, state = (_with_references(v, storages) for v in (values.args, values.state))
        return Call(values.function, args, state, new=values.new)
    if isinstance(values, Entries):
        return Entries(values.container, _with_references(values.entries, storages))
    if isinstance(values, np.ndarray):
        key = f"{len(storages)}"
        storages[key] = values
        return tensor_by(storage_reference(values, key), values)
    return values


def torch_save_legacy(values: Any) -> bytes:
    storages: dict[str, np.ndarray] = {}
    return torch_stream(_with_references(values, storages), storages)


def torch_save_zip(values: Any, compression: int = zipfile.ZIP_STORED) -> bytes:
    storages: dict[str, np.ndarray] = {}
    return torch_archive(_with_references(values, storages), storages, compression)


def torch_archive(
    values: Any, storages: dict[str, np.ndarray], compression: int = zipfile.ZIP_STORED
) -> bytes:
    """A new file of `torch.save` with these values as they are."""
    value = dumps(values, 2)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", value)
        archive.writestr("archive/byteorder", b"little")
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", b"3\n")
    return file.getvalue()


# --- stylegan2-ada-pytorch ------------------------------------------------------------------

RECONSTRUCT = Name("torch_utils.persistence", "_reconstruct_persistent_obj")
EASY_DICT = Name("dnnlib.util", "EasyDict")
BUFFERS = ("w_avg", "noise_const", "resample_filter")


def module(class_name: str, state: dict) -> Call:
    meta = {
        "type": "class",
        "version": 6,
        "module_src": SOURCE_TRAP,
        "class_name": class_name,
        "state": state,
    }
    easy = Call(EASY_DICT, (), new=True)
    # An EasyDict is a dict subclass: its entries are set after it is made.
    return Call(RECONSTRUCT, (Entries(easy, meta),))


class Entries:
    """A container call followed by its entries."""

    def __init__(self, container: Call, entries: dict) -> None:
        self.container, self.entries = container, entries


def _save_entries(writer: Writer, obj: Entries) -> None:
    writer.save(obj.container)
    writer._batch_setitems(obj.entries.items())


Writer.dispatch = {**pickle._Pickler.dispatch, Entries: _save_entries}  # type: ignore[attr-defined]


def ada_network(
    state: dict[str, np.ndarray],
    *,
    class_name: str = "Generator",
    conv_clamp: float | None = None,
    architecture: str = "skip",
    lr_multiplier: float = 0.01,
    shortcut: str = "linear",
    record: Callable[[np.ndarray], Any] = nested_tensor,
) -> Call:
    """A generator's state dict as the module tree of the published PyTorch pickles.

    `record` makes a tensor's record: `np.asarray` leaves that to `torch_save_zip`, as when PTI
    saves a module by torch.
    """
    tree: dict[str, dict] = {}

    def node(path: str) -> dict:
        if path not in tree:
            tree[path] = {
                "training": False,
                "_parameters": {},
                "_buffers": {},
                "_non_persistent_buffers_set": set(),
                "_forward_hooks": Call(ORDERED, ()),
                "_modules": {},
            }
            if path:
                parent, _, child = path.rpartition(".")
                node(parent)["_modules"][child] = path
        return tree[path]

    for name, array in state.items():
        path, _, leaf = name.rpartition(".")
        value = record(array)
        if leaf in BUFFERS:
            node(path)["_buffers"][leaf] = value
        else:
            node(path)["_parameters"][leaf] = Call(PARAMETER, (value, True, Call(ORDERED, ())))
        kind = path.rpartition(".")[2]
        if kind in ("conv0", "conv1", "torgb"):
            node(path)["conv_clamp"] = conv_clamp
        if kind in ("conv0", "conv1"):
            tree[path] |= {"activation": "lrelu", "use_noise": f"{path}.noise_const" in state}
        if kind == "skip":
            tree[path] |= {"activation": shortcut, "conv_clamp": None}
        if kind.startswith("fc"):
            tree[path] |= {"activation": "lrelu", "bias_gain": np.float64(lr_multiplier)}
        if kind in ("affine", "embed"):
            tree[path] |= {"activation": "linear", "bias_gain": 1}
    for path in list(tree):
        if path.startswith("synthesis.b") and path.count(".") == 1:
            tree[path]["architecture"] = architecture

    def build(path: str) -> Call:
        own = dict(tree[path])
        own["_modules"] = {name: build(child) for name, child in own["_modules"].items()}
        return module(class_name if not path else "Module", own)

    return build("")


def ada_pickle(generator: Any, protocol: int = 4, **others: Any) -> bytes:
    values = {"G": None, "D": None, "G_ema": generator, "augment_pipe": None, **others}
    return dumps(values, protocol)


# --- TensorFlow -----------------------------------------------------------------------------

NETWORK = Name("dnnlib.tflib.network", "Network")


def tf_network(
    name: str, variables: dict[str, np.ndarray], kwargs: dict, **components: Any
) -> Call:
    state = {
        "version": 4,
        "name": name,
        "static_kwargs": kwargs,
        "components": Entries(Call(ORDERED, ()), components),
        "build_module_src": SOURCE_TRAP,
        "build_func_name": name,
        "variables": list(variables.items()),
    }
    return Call(NETWORK, (), state, new=True)


def tf_generator(state: dict[str, np.ndarray], **kwargs: Any) -> Call:
    """A state dict with stylegan2-ada-pytorch's names in the layout of the TensorFlow pickles."""
    mapping: dict[str, np.ndarray] = {}
    synthesis: dict[str, np.ndarray] = {}
    parts = {
        "bias": ("bias", lambda a: a),
        "affine.weight": ("mod_weight", lambda a: a.T.copy()),
        "affine.bias": ("mod_bias", lambda a: a - np.float32(1)),
        "noise_strength": ("noise_strength", lambda a: a),
    }
    for name, array in state.items():
        if name.startswith("mapping.") and name != "mapping.w_avg":
            _, layer, part = name.split(".")
            dense = "LabelEmbed" if layer == "embed" else layer.replace("fc", "Dense")
            mapping[f"{dense}/{part}"] = array.T.copy()
        if not name.startswith("synthesis.") or name.endswith("resample_filter"):
            continue
        _, block, layer, part = [*name.split(".", 3), ""][:4]
        size = int(block[1:])
        if layer == "const":
            synthesis["4x4/Const/const"] = array[None]
            continue
        layers = {"conv0": "Conv0_up", "torgb": "ToRGB", "skip": "Skip"}
        tf_layer = f"{size}x{size}/" + layers.get(layer, "Conv" if size == 4 else "Conv1")
        if part == "weight":
            kernel = array.transpose(2, 3, 1, 0)
            flipped = layer in ("conv0", "skip")
            synthesis[f"{tf_layer}/weight"] = (kernel[::-1, ::-1] if flipped else kernel).copy()
        elif part == "noise_const":
            index = 2 * int(np.log2(size)) - (5 if layer == "conv0" else 4)
            synthesis[f"noise{index}"] = array[None, None]
        else:
            renamed, change = parts[part]
            synthesis[f"{tf_layer}/{renamed}"] = change(array)
    variables = {"lod": np.float32(0), "dlatent_avg": state["mapping.w_avg"]}
    return tf_network(
        "G_main",
        variables,
        {"num_channels": 3, "truncation_psi": 0.5, **kwargs},
        synthesis=tf_network("G_synthesis", synthesis, {}),
        mapping=tf_network("G_mapping", mapping, {}),
    )


# --- rosinality -----------------------------------------------------------------------------


def rosinality_state(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict with stylegan2-ada-pytorch's names under rosinality's names and shapes."""
    result: dict[str, np.ndarray] = {}
    for name, array in state.items():
        part, block, *rest = name.split(".")
        if name == "mapping.w_avg" or name.endswith("resample_filter"):
            continue
        if part == "mapping":
            result[f"style.{int(block[2:]) + 1}.{rest[0]}"] = array
            continue
        level = int(block[1:]).bit_length() - 3  # 4 px: 0
        if rest == ["const"]:
            result["input.input"] = array[None]
            continue
        layer, tail = rest[0], ".".join(rest[1:])
        if tail == "noise_const":
            index = 2 * level - (layer == "conv0")
            result[f"noises.noise_{index}"] = array[None, None]
            continue
        if layer == "torgb":
            target = "to_rgb1" if level == 0 else f"to_rgbs.{level - 1}"
            names = {"bias": "bias"}
        else:
            target = "conv1" if level == 0 else f"convs.{2 * level - 2 + int(layer[-1])}"
            names = {"bias": "activate.bias", "noise_strength": "noise.weight"}
        names |= {
            "weight": "conv.weight",
            "affine.weight": "conv.modulation.weight",
            "affine.bias": "conv.modulation.bias",
        }
        if tail == "weight":
            array = array[None]
        elif tail == "noise_strength":
            array = array.reshape(1)
        elif layer == "torgb" and tail == "bias":
            array = array.reshape(1, -1, 1, 1)
        result[f"{target}.{names[tail]}"] = array
    return result


def basicsr_state(ros: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict with rosinality's names under BasicSR's; the kernels are no buffers there."""
    result = {}
    for name, array in ros.items():
        part, _, rest = name.partition(".")
        if part == "style":
            renamed = f"style_mlp.{rest}"
        elif name == "input.input":
            renamed = "constant_input.weight"
        elif part == "noises":
            renamed = name.replace("noise_", "noise")
        elif part == "conv1" or part == "convs":
            renamed = f"style_{name}".replace(".conv.", ".modulated_conv.")
            renamed = renamed.replace(".noise.weight", ".weight")
        else:
            renamed = name.replace(".conv.", ".modulated_conv.")
        result[renamed] = array
    return result
