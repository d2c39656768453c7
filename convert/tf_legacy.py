"""Pickles of the TensorFlow versions of StyleGAN2 and StyleGAN2-ADA.

The pickle is a tuple (G, D, Gs), or one network; a network is a
`dnnlib.tflib.network.Network` whose state lists variables and component networks. Layout of the
variables against stylegan2-ada-pytorch's: convolutions are (height, width, in, out), those that
up-sample (and the residual skips) flipped in space; dense layers are (in, out); the modulation's
bias is stored less one; noise maps are numbered from the input on.
"""

import re
from typing import Any

import numpy as np

from convert.arrays import number, numpy_array
from convert.parameters import Source, check_size
from convert.pickles import Global, Record, require_allowed
from stylesr_jax.errors import UserError

NETWORK = "dnnlib.tflib.network.Network"
FORMAT = "TensorFlow pickle"
MAX_DEPTH = 8
MAX_VARIABLES = 4096
# Arguments that say something which the arrays do not, and the values that are understood.
_REQUIRED = {
    "nonlinearity": ("lrelu",),
    "mapping_nonlinearity": ("lrelu",),
    "num_channels": (1, 3),
    "normalize_latents": (True,),
    "normalize_z": (True,),
}
# Arguments that the arrays repeat, or that matter for training only.
_IGNORED = frozenset(
    """
    latent_size label_size dlatent_size resolution mapping_layers mapping_fmaps label_fmaps
    w_avg_beta dlatent_avg_beta fmap_base fmap_decay fmap_max fmap_min num_fp16_res use_noise
    truncation_psi truncation_cutoff truncation_psi_val truncation_cutoff_val style_mixing_prob
    structure resolution_w resolution_h conditioning fused_modconv dtype randomize_noise
    is_validation is_training return_dlatents is_template_graph lod_in blur_filter
    """.split()  # noqa: SIM905
)
_READ = frozenset({"mapping_lrmul", "conv_clamp", "architecture", "resample_kernel"})


def is_network(value: Any) -> bool:
    """Whether an inert value is a TensorFlow network of dnnlib."""
    return (
        isinstance(value, Record)
        and isinstance(value.function, Global)
        and value.function.name == NETWORK
    )


def _state(value: Any) -> dict:
    if not is_network(value) or not isinstance(value.state, dict):
        raise UserError("a component network in the pickle is malformed; the file is damaged")
    return value.state


def _collect(network: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(variables by path, arguments) of a network and its components."""
    variables: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    pending = [("", network, 0)]
    networks = 0
    while pending:
        prefix, value, depth = pending.pop()
        state = _state(value)
        networks += 1
        entries = state.get("variables")
        components = state.get("components", {})
        kwargs = state.get("static_kwargs", {})
        if not all(
            (
                isinstance(entries, list) and len(entries) <= MAX_VARIABLES,
                isinstance(components, dict) and all(isinstance(n, str) for n in components),
                isinstance(kwargs, dict) and all(isinstance(n, str) for n in kwargs),
                networks <= 16 and depth <= MAX_DEPTH,
            )
        ):
            raise UserError("a network in the pickle is malformed; the file is damaged")
        for entry in entries:  # type: ignore[union-attr]
            if not isinstance(entry, tuple | list) or len(entry) != 2 or type(entry[0]) is not str:
                raise UserError("a variable in the pickle is malformed; the file is damaged")
            variables[prefix + entry[0]] = entry[1]
        arguments.update(kwargs)
        pending.extend((f"{prefix}{n}/", child, depth + 1) for n, child in components.items())
    return variables, arguments


def _refuse_others(network: Any, variables: dict[str, Any]) -> None:
    state = _state(network)
    names = "\n".join(variables)
    version = state.get("version")
    function = str(state.get("build_func_name"))
    if re.search(r"StyleMod|ToRGB_lod", names) or function.startswith("G_style"):
        raise UserError("this is a StyleGAN1 generator; only StyleGAN2 generators can be converted")
    if not isinstance(version, int) or version < 4:
        raise UserError(
            f"this TensorFlow pickle has version {version!r:.20}; StyleGAN2's have 4 or more"
        )
    if "mapping/LabelConcat/weight" in variables:
        raise UserError(
            "this generator joins labels as StyleGAN1 does (LabelConcat); it cannot be converted"
        )


def _check_arguments(arguments: dict[str, Any]) -> tuple[str, float | None, float]:
    """(architecture, conv_clamp, learning rate multiplier) from a network's arguments."""
    for name, value in arguments.items():
        value = number(value)
        if name in _REQUIRED:
            if value not in _REQUIRED[name]:
                raise UserError(f"the generator has {name} = {value!r:.40}, which is not read")
        elif name not in _IGNORED | _READ and value is not None:
            raise UserError(f"the generator has an argument {name!r:.40} that is not known")
    clamp, multiplier = number(arguments.get("conv_clamp")), arguments.get("mapping_lrmul", 0.01)
    multiplier = number(multiplier)
    if not isinstance(clamp, int | float | None) or not isinstance(multiplier, int | float):
        raise UserError("an argument of the generator is no number; the file is damaged")
    architecture = arguments.get("architecture", "skip")
    if not isinstance(architecture, str):
        raise UserError("the generator's architecture is no text; the file is damaged")
    return architecture, None if clamp is None else float(clamp), float(multiplier)


def _filter(arguments: dict[str, Any]) -> np.ndarray:
    """The resampling filter, (taps, taps), from a network's arguments."""
    kernel = arguments.get("resample_kernel")
    if kernel is None:
        kernel = [1, 3, 3, 1]
    taps = [number(tap) for tap in kernel] if isinstance(kernel, list | tuple) else []
    if len(taps) not in (2, 4) or not all(isinstance(tap, int | float) for tap in taps):
        raise UserError("the generator's resampling filter is not one of two or four taps")
    # Only symmetric filters have the same meaning in both versions, and a sum to divide by.
    if taps != taps[::-1] or not 1e-6 < sum(taps) < 1e6:
        raise UserError("the generator's resampling filter is not symmetric; not read")
    outer = np.outer(taps, taps)
    return (outer / outer.sum()).astype(np.float32)


def _kernel(array: np.ndarray, *, flip: bool = False) -> np.ndarray:
    """(height, width, in, out) -> (out, in, height, width)."""
    if array.ndim != 4:
        raise UserError("a convolution in the pickle has another shape than StyleGAN2's")
    return (array[::-1, ::-1] if flip else array).transpose(3, 2, 0, 1)


def _map_of(array: np.ndarray) -> np.ndarray:
    """(1, channels, h, w) -> (h, w) of the first channel."""
    if array.ndim != 4 or array.shape[:2] != (1, 1):
        raise UserError("a noise map in the pickle has another shape than StyleGAN2's")
    return array[0, 0]


def _layer(tf: dict[str, np.ndarray], source: str, target: str, *, flip: bool) -> dict:
    """One modulated convolution's arrays; those that are missing are left to the later check."""
    rules = {
        "weight": ("weight", lambda a: _kernel(a, flip=flip)),
        "bias": ("bias", lambda a: a),
        "mod_weight": ("affine.weight", lambda a: a.T),
        "mod_bias": ("affine.bias", lambda a: a + np.float32(1)),
        "noise_strength": ("noise_strength", lambda a: a),
    }
    return {
        f"{target}.{name}": rule(tf[f"{source}/{part}"])
        for part, (name, rule) in rules.items()
        if f"{source}/{part}" in tf
    }


def _state_dict(tf: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    state: dict[str, np.ndarray] = {}
    if "dlatent_avg" in tf:
        state["mapping.w_avg"] = tf["dlatent_avg"]
    for name, array in tf.items():
        if match := re.fullmatch(r"mapping/(?:Dense(\d+)|LabelEmbed)/(weight|bias)", name):
            layer = "embed" if match[1] is None else f"fc{int(match[1])}"
            state[f"mapping.{layer}.{match[2]}"] = array.T
    constant = tf.get("synthesis/4x4/Const/const")
    if constant is not None and constant.ndim == 4 and constant.shape[0] == 1:
        state["synthesis.b4.const"] = constant[0]
    resolutions = {int(m[1]) for n in tf if (m := re.match(r"synthesis/(\d{1,5})x\1/", n))}
    for resolution in sorted(resolutions):
        source, target = f"synthesis/{resolution}x{resolution}", f"synthesis.b{resolution}"
        first = "Conv" if resolution == 4 else "Conv1"
        state |= _layer(tf, f"{source}/Conv0_up", f"{target}.conv0", flip=True)
        state |= _layer(tf, f"{source}/{first}", f"{target}.conv1", flip=False)
        state |= _layer(tf, f"{source}/ToRGB", f"{target}.torgb", flip=False)
        if f"{source}/Skip/weight" in tf:
            state[f"{target}.skip.weight"] = _kernel(tf[f"{source}/Skip/weight"], flip=True)
        number_of_conv1 = 2 * resolution.bit_length() - 6  # 2 log2 r - 4
        for layer, index in (("conv0", number_of_conv1 - 1), ("conv1", number_of_conv1)):
            noise = tf.get(f"synthesis/noise{index}") if index >= 0 else None
            if noise is not None and f"{target}.{layer}.noise_strength" in state:
                state[f"{target}.{layer}.noise_const"] = _map_of(noise)
    return state


def convert(network: Any, file_size: int) -> Source:
    """A generator from its inert record in a TensorFlow pickle.

    Raises:
        UserError: it is no StyleGAN2 generator, is malformed, or refers to unknown names.
    """
    require_allowed(network, "the generator in this pickle")
    variables, arguments = _collect(network)
    _refuse_others(network, variables)
    wanted = {n: v for n, v in variables.items() if n != "lod" and not n.endswith("/lod")}
    arrays = {name: numpy_array(value) for name, value in wanted.items()}
    check_size(arrays, file_size)
    architecture, clamp, multiplier = _check_arguments(arguments)
    state = _state_dict(arrays)
    state["synthesis.b4.resample_filter"] = _filter(arguments)
    return Source(
        state,
        FORMAT,
        conv_clamp=clamp,
        lr_multiplier=multiplier,
        architecture=architecture,
    )
