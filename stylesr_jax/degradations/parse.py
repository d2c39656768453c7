"""Degradations as text: "blur(2)|bicubic(32)"."""

from collections.abc import Sequence

from stylesr_jax.degradations.base import Compose, Degradation
from stylesr_jax.errors import UserError

# What texts can name, one line each, in the order of the help.
# isort: off
from stylesr_jax.degradations.downsample import Bicubic as Bicubic
from stylesr_jax.degradations.downsample import PulseBicubic as PulseBicubic
from stylesr_jax.degradations.downsample import Area as Area
from stylesr_jax.degradations.blur import GaussianBlur as GaussianBlur
from stylesr_jax.degradations.blur import MotionBlur as MotionBlur
from stylesr_jax.degradations.mask import Grey as Grey
from stylesr_jax.degradations.mask import Mask as Mask
from stylesr_jax.degradations.jpeg import Jpeg as Jpeg
from stylesr_jax.degradations.noise import GaussianNoise as GaussianNoise
from stylesr_jax.degradations.noise import LaplaceNoise as LaplaceNoise
from stylesr_jax.degradations.noise import SaltPepper as SaltPepper
# isort: on


def _named(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Degradation) and hasattr(kind, "name")


STAGES: dict[str, type[Degradation]] = {
    kind.name: kind for kind in tuple(globals().values()) if _named(kind)
}


def available() -> str:
    """The stages that `parse` knows, as examples, in one line."""
    return "; ".join(f"{kind.example} ({kind.about})" for kind in STAGES.values())


def _parse_arguments(stage: type[Degradation], texts: Sequence[str]) -> dict[str, object]:
    name, values = stage.name, dict[str, object]()
    by_name = {a.name: a for a in stage.arguments}
    verbatim = any(a.verbatim for a in stage.arguments)
    for position, text in enumerate(texts):
        key, equals, value = (part.strip() for part in text.partition("="))
        if verbatim:
            key, equals, value = "", "", text.strip()
        factor = not equals and "factor" in by_name and key[:1] in "xX" and key[1:].isdigit()
        if equals:
            if key not in by_name:
                choices = ", ".join(by_name) or "none"
                raise UserError(f"{name} has no argument {key!r} (it has: {choices})")
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
            values[argument.name] = argument.read(value)
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
        if name not in STAGES:
            raise UserError(f"unknown degradation {name!r}; there are: {available()}")
        if bracket and not inside.endswith(")"):
            raise UserError(f"{part.strip()!r} has no closing bracket, as in {text!r}")
        inside = inside.removesuffix(")").strip()
        texts = inside.split(",") if inside else []
        stages.append(STAGES[name].make(**_parse_arguments(STAGES[name], texts)))
    return Compose(tuple(stages))
