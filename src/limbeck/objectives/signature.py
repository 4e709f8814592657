"""What an objective reads and what can be set on it, both taken from its signature and from nowhere else.

Parameters before ``*`` are batch tensors; parameters after it are knobs. A knob's domain, meaning and unit are
``Domain`` metadata in its annotation: ``beta: Annotated[float, Domain("(0, inf)", "...")] = 0.1``.
"""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args, get_origin

from limbeck.errors import ConfigError, nearest
from limbeck.types import Objective

OPTIONAL_INPUTS = ("teacher_mask",)  # all of the mask where a batch has none
LOOP_KNOBS = ("step", "num_steps")  # known to the training loop, which passes them; never set by hand


class Domain(NamedTuple):
    """Where a number may lie, what it means and its unit; "0 or (1, inf)" reads: off, or more than one.

    >>> Domain("0 or (1, inf)", "dual clip").admits(0.0), Domain("[0, 1)", "share").admits(1.0)
    (True, False)
    """

    interval: str
    meaning: str
    unit: str = ""

    def admits(self, number: float | int) -> bool:
        if self.interval.startswith("0 or ") and number == 0:
            return True
        text = self.interval.removeprefix("0 or ")
        low, high = (float(part) for part in text[1:-1].split(","))
        above = number > low or (text[0] == "[" and number == low)
        below = number < high or (text[-1] == "]" and number == high)
        return above and below and math.isfinite(number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One setting of an objective. ``by_loop`` marks what the training loop passes at each step."""

    name: str
    kind: type
    default: Any
    required: bool
    by_loop: bool
    meaning: str
    domain: str
    unit: str = ""
    choices: tuple[str, ...] = ()


def inputs(objective: Objective) -> tuple[str, ...]:
    """Names of the tensors that a batch must have for the objective, in the order of its signature.

    ``mask`` is among them where it is read; ``teacher_mask``, which stands for the whole mask when absent, never is.
    """
    return tuple(name for name in tensor_parameters(objective) if name not in OPTIONAL_INPUTS)


def tensor_parameters(objective: Objective) -> tuple[str, ...]:
    """Every tensor of the signature, the optional ones too."""
    parameters = inspect.signature(objective.function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)


def knobs(objective: Objective) -> dict[str, Knob]:
    """Every setting of the objective by name, in the order of its signature."""
    parameters = inspect.signature(objective.function, eval_str=True).parameters.values()
    return {p.name: _knob(p) for p in parameters if p.kind is p.KEYWORD_ONLY}


def check_knobs(objective: Objective, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run: defaults overridden by ``given``, each inside its domain, integers widened to float.

    Knobs that the loop passes (``step``, ``num_steps``) are absent from the result.

    Raises:
        ConfigError: an unknown name, a value outside its domain, or a required knob that was not given.
    """
    known = {name: knob for name, knob in knobs(objective).items() if not knob.by_loop}
    for name in given:
        if name in LOOP_KNOBS:
            raise ConfigError(
                f'{objective.name}: "{name}" is passed by the training loop, remove it from the settings.'
            )
        if name not in known:
            takes = ", ".join(known) or "no settings"
            hint = nearest(name, known) if known else "Remove it."
            raise ConfigError(f'{objective.name} has no setting "{name}" ({objective.name} takes {takes}). {hint}')
    missing = [name for name, knob in known.items() if knob.required and name not in given]
    if missing:
        raise ConfigError(
            f"{objective.name} needs a value for {', '.join(missing)}: {known[missing[0]].meaning}; its source "
            f"gives no default. Received none. Set {missing[0]} to a number in {known[missing[0]].domain}."
        )
    return {name: _checked(objective.name, knob, given.get(name, knob.default)) for name, knob in known.items()}


def _knob(parameter: inspect.Parameter) -> Knob:
    annotation, domain = parameter.annotation, Domain("", "")
    if hasattr(annotation, "__metadata__"):
        domain = next(m for m in annotation.__metadata__ if isinstance(m, Domain))
        annotation = get_args(annotation)[0]
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    required = parameter.default is parameter.empty
    kind = str if choices else annotation
    fallback = " or ".join(choices) if choices else "true or false" if kind is bool else ""
    return Knob(
        name=parameter.name,
        kind=kind,
        default=None if required else parameter.default,
        required=required and parameter.name not in LOOP_KNOBS,
        by_loop=parameter.name in LOOP_KNOBS,
        meaning=domain.meaning,
        domain=domain.interval or fallback,
        unit=domain.unit,
        choices=choices,
    )


def _checked(owner: str, knob: Knob, value: Any) -> Any:
    where = f"{owner}: {knob.name} ({knob.meaning})"
    if knob.choices and value not in knob.choices:
        hint = nearest(str(value), knob.choices)
        raise ConfigError(f"{where} must be {knob.domain}, received {value!r}. {hint}")
    if knob.kind in (float, int):
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and (knob.kind is float or whole)
        if not is_number or not Domain(knob.domain, "").admits(value):
            kind = "a number" if knob.kind is float else "a whole number"
            default = "" if knob.required else f" The default is {knob.default}."
            raise ConfigError(f"{where} must be {kind} in {knob.domain}, received {value!r}.{default}")
        return knob.kind(value)
    if knob.kind is bool and not isinstance(value, bool):
        raise ConfigError(f"{where} must be true or false, received {value!r}. The default is {knob.default}.")
    return value
