"""Degradations as text: "blur(2)|bicubic(32)"."""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image

from stylesr_jax.degradations.base import Compose, Degradation
from stylesr_jax.degradations.blur import GaussianBlur, MotionBlur
from stylesr_jax.degradations.downsample import Area, Bicubic, PulseBicubic
from stylesr_jax.degradations.jpeg import Jpeg
from stylesr_jax.degradations.mask import Grey, Mask
from stylesr_jax.degradations.noise import GaussianNoise, LaplaceNoise, SaltPepper
from stylesr_jax.degradations.resize import Size
from stylesr_jax.errors import UserError


def _number(text: str) -> float:
    return float(text)


def _whole(text: str) -> int:
    return int(text)


def _flag(text: str) -> bool:
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[
        text.lower()
    ]


def _size(text: str) -> Size:
    height, cross, width = text.lower().partition("x")
    return (int(height), int(width)) if cross else int(text)


def _mask_file(text: str) -> Mask:
    if not os.path.isfile(text):
        raise UserError(f"mask: cannot read {text!r:.200}: no such file; check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bombs, and of damaged metadata
            with Image.open(text) as image:
                levels = np.asarray(image.convert("L"))
    except Exception as error:  # Pillow's readers raise whatever they meet in a damaged file
        raise UserError(f"mask: cannot read {text!r} as an image: {error}") from error
    # White marks the hole, as in most inpainting tools.
    return Mask(jnp.asarray(levels < 128, jnp.float32), source=Path(text).as_posix())


@dataclass(frozen=True)
class _Argument:
    name: str
    convert: Callable[[str], object]
    kind: str  # what to write, for messages
    required: bool = True


@dataclass(frozen=True)
class _Stage:
    make: Callable[..., Degradation]
    arguments: tuple[_Argument, ...]
    example: str
    about: str


def _sizes(*more: _Argument) -> tuple[_Argument, ...]:
    return (
        _Argument("size", _size, "a size (32, or 24x32 for height x width)", required=False),
        _Argument("factor", _whole, "a whole factor (x4 or factor=4)", required=False),
        *more,
    )


_STAGES: dict[str, _Stage] = {
    "bicubic": _Stage(
        Bicubic,
        _sizes(_Argument("antialias", _flag, "true or false", required=False)),
        "bicubic(32)",
        "bicubic down-sampling, as Pillow's",
    ),
    "pulse": _Stage(PulseBicubic, _sizes(), "pulse(x32)", "PULSE's bicubic down-sampling"),
    "area": _Stage(Area, _sizes(), "area(32)", "down-sampling by averaging areas"),
    "blur": _Stage(
        GaussianBlur, (_Argument("sigma", _number, "a number of pixels"),), "blur(2)", "Gaussian"
    ),
    "motion": _Stage(
        MotionBlur,
        (
            _Argument("length", _number, "a number of pixels"),
            _Argument("angle", _number, "degrees", required=False),
        ),
        "motion(100,45)",
        "motion blur; without an angle, a random direction",
    ),
    "grey": _Stage(Grey, (), "grey()", "colour to grey"),
    "mask": _Stage(
        _mask_file,
        (_Argument("text", str, "an image file; white marks the hole"),),
        "mask(hole.png)",
        "inpainting",
    ),
    "jpeg": _Stage(
        Jpeg, (_Argument("quality", _whole, "a whole number 1 to 95"),), "jpeg(30)", "compression"
    ),
    "noise": _Stage(
        GaussianNoise,
        (_Argument("sigma", _number, "a fraction of the full range"),),
        "noise(0.05)",
        "Gaussian noise",
    ),
    "laplace": _Stage(
        LaplaceNoise,
        (_Argument("scale", _number, "a fraction of the full range"),),
        "laplace(0.05)",
        "Laplace noise",
    ),
    "salt_pepper": _Stage(
        SaltPepper,
        (_Argument("fraction", _number, "a fraction of the pixels"),),
        "salt_pepper(0.05)",
        "salt-and-pepper noise",
    ),
}


def available() -> str:
    """The stages that `parse` knows, as examples, in one line."""
    return "; ".join(f"{stage.example} ({stage.about})" for stage in _STAGES.values())


def _parse_arguments(name: str, stage: _Stage, texts: Sequence[str]) -> dict[str, object]:
    values: dict[str, object] = {}
    by_name = {a.name: a for a in stage.arguments}
    for position, text in enumerate(texts):
        key, equals, value = (part.strip() for part in text.partition("="))
        if name == "mask":
            key, equals, value = "", "", text.strip()
        factor = not equals and "factor" in by_name and key[:1] in "xX" and key[1:].isdigit()
        if equals:
            if key not in by_name:
                known = ", ".join(by_name) or "none"
                raise UserError(f"{name} has no argument {key!r} (it has: {known})")
            argument = by_name[key]
        elif factor:
            argument, value = by_name["factor"], key[1:]
        else:
            places = [a for a in stage.arguments if a.name != "factor"]
            if position >= len(places):
                raise UserError(f"{name} takes at most {len(places)} arguments: {stage.example}")
            argument, value = places[position], value or key
        if argument.name in values:
            raise UserError(f"{name}: {argument.name} is given twice")
        try:
            values[argument.name] = argument.convert(value)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{name}: {argument.name} must be {argument.kind}, got {value!r}"
            ) from error
    for argument in stage.arguments:
        if argument.required and argument.name not in values:
            raise UserError(f"{name} needs {argument.name} ({argument.kind}): {stage.example}")
    return values


def parse(text: str) -> Compose:
    """Read "blur(2)|bicubic(32)|noise(0.05)": stages applied from left to right.

    Arguments are in order or by name (`motion(length=100, angle=45)`); a down-sampler takes a
    size (shorter side, or heightxwidth) or a factor (`bicubic(x4)`). `str` of the result reads
    back as the same. Raises UserError that says what is wrong and what there is.
    """
    stages = []
    for part in text.split("|"):
        name, bracket, inside = part.strip().partition("(")
        name = name.strip()
        if not name:
            raise UserError(f"empty stage in degradation {text!r}; it can have: {available()}")
        if name not in _STAGES:
            raise UserError(f"unknown degradation {name!r}; there are: {available()}")
        if bracket and not inside.endswith(")"):
            raise UserError(f"{part.strip()!r} has no closing bracket, as in {text!r}")
        inside = inside.removesuffix(")").strip()
        texts = inside.split(",") if inside else []
        stage = _STAGES[name]
        stages.append(stage.make(**_parse_arguments(name, stage, texts)))
    return Compose(tuple(stages))
