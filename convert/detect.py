"""Which format a file has, told from its bytes, and the generator in it."""

from collections.abc import Callable
from typing import Any

import numpy as np

from convert import ada_pytorch, mobilestylegan, rosinality, tf_legacy
from convert.archive import Archive
from convert.checkpoints import (
    Candidate,
    Contents,
    arrays_below,
    choose,
    from_arrays,
    from_value,
    mean_latent,
)
from convert.npz import is_npz, read_npz
from convert.parameters import Network, Source, check_size, mean_w, with_remarks
from convert.pickles import MalformedPickle, TruncatedPickle, read_pickle, refused_globals
from convert.raw import AGAIN, ZIP, refuse_text
from convert.safetensors import is_safetensors, read_safetensors
from convert.torch_files import TORCH_STREAM, pickle_roots, read_torch
from stylesr_jax.errors import UserError

_LAYOUTS: dict[str, Callable[[dict[str, np.ndarray], str], Source]] = {
    "ada": ada_pytorch.convert,
    "rosinality": rosinality.convert,
    "basicsr": rosinality.convert_basicsr,
}


def _from_networks(networks: list[Any], file_size: int) -> Source:
    """The averaged generator of TensorFlow's (G, D, Gs), or of fewer networks: the last one."""
    if len(networks) > 3 or not tf_legacy.is_network(networks[-1]):
        raise UserError("the pickle's last network, the averaged generator, cannot be read")
    source = tf_legacy.convert(networks[-1], file_size)
    refused = refused_globals(networks[:-1])
    if not refused:
        return source
    listed = ", ".join(f"{name!r:.80}" for name in refused[:3])
    return with_remarks(
        source, f"other parts of the file refer to unknown names ({listed}); they were not read"
    )


def _from_pickle(data: memoryview) -> Source | Network:
    value, _ = read_pickle(data)
    if tf_legacy.is_network(value):
        return tf_legacy.convert(value, len(data))
    networks = list(value.values()) if isinstance(value, dict) else value
    if isinstance(networks, tuple | list) and any(tf_legacy.is_network(v) for v in networks):
        return _from_networks(list(networks), len(data))
    return _generator(from_value(value, "pickle", len(data)))


def _from_zip(data: memoryview) -> Source | Network:
    archive = Archive(data)
    if len(pickle_roots(archive.names)) == 1:
        return _from_torch(data)
    if is_npz(archive):
        return _generator(from_arrays(read_npz(archive), "npz", archive.inflated_limit))
    listed = ", ".join(f"{name!r:.60}" for name in archive.names[:3])
    raise UserError(f"this zip archive holds no weights that are known ({listed or 'it is empty'})")


def _from_torch(data: memoryview) -> Source | Network:
    value, storages = read_torch(data)
    return _generator(from_value(value, "torch file", len(data), storages))


def _generator(contents: Contents) -> Source | Network:
    """The generator among a file's contents, in the layout that its names show."""
    candidate, remarks = choose(contents)
    if candidate.layout == "mobile":
        return with_remarks(_mobile(contents, candidate), *remarks)
    if candidate.layout == "module":
        module = contents.modules[candidate.path]
        source = ada_pytorch.convert_module(module, contents.decode, contents.size, contents.kind)
        return with_remarks(source, *remarks)
    arrays = arrays_below(contents, candidate.prefix)
    check_size(arrays, contents.size)
    latent = arrays.pop("latent_avg", None)  # beside a generator that is the file's root
    if latent is None:
        latent = mean_latent(contents, candidate)
    source = _LAYOUTS[candidate.layout](arrays, contents.kind)
    if latent is not None:
        source.state.setdefault("mapping.w_avg", mean_w(latent))
    return with_remarks(source, *remarks)


def _mobile(contents: Contents, candidate: Candidate) -> Network:
    """MobileStyleGAN: the student, and the mapping network beside it."""
    parent = candidate.prefix.removesuffix("student.")
    student = arrays_below(contents, candidate.prefix)
    mapping = arrays_below(contents, f"{parent}mapping_net.layers.")
    check_size({**student, **{f"mapping.{name}": a for name, a in mapping.items()}}, contents.size)
    latent = mean_latent(contents, candidate)
    return mobilestylegan.convert(student, mapping, None if latent is None else mean_w(latent))


def is_openvino(data: memoryview) -> bool:
    """Whether the bytes are the zip archive (wheel) of MobileStyleGAN's OpenVINO networks."""
    if bytes(data[:4]) != ZIP:
        return False
    return any(name.endswith("/SynthesisNetwork.xml") for name in Archive(data).names)


def read_source(data: memoryview) -> Source | Network:
    """The generator in the bytes of a file, whatever its format.

    Raises:
        UserError: the format is unknown, the file is damaged, or it holds something else.
    """
    head = bytes(data[:4096])
    if not head:
        raise UserError(f"this file is empty: {AGAIN}")
    refuse_text(head)
    try:
        if head.startswith(ZIP):
            return _from_zip(data)
        if is_safetensors(data):
            return _generator(from_arrays(read_safetensors(data), "safetensors", len(data)))
        if head.startswith(TORCH_STREAM):
            return _from_torch(data)
        if head[0] == 0x80 or head[:1] in b"(]}c":
            return _from_pickle(data)
    except TruncatedPickle as error:
        raise UserError(f"{error}: the file is incomplete; {AGAIN}") from error
    except MalformedPickle as error:
        raise UserError(f"{error}; {AGAIN}") from error
    raise UserError(
        f"unknown format (it begins with {head[:8]!r}, an invalid load key for a pickle); "
        f"if it should be a generator, {AGAIN}"
    )
