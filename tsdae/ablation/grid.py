"""The grid of an ablation: which settings differ from the base, and the runs that follow from them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tsdae.config import AblationConfig, DataConfig, MethodConfig, TrainConfig
from tsdae.utils.checks import did_you_mean

# Settings that decide nothing about a run, or by which it is judged.
NO_AXES = set(
    "output resume overwrite seed threads report_to tensorboard device keep save_every log_every evaluate "
    "recipe".split()
)
UNTRAINED = "untrained"
Configs = tuple[DataConfig, MethodConfig, TrainConfig]


@dataclass(frozen=True)
class Arm:
    """One run: the settings that differ from the base, and a seed (None: the model as it is, untrained)."""

    settings: dict[str, Any]
    seed: int | None
    configs: Configs

    @property
    def name(self) -> str:
        if self.seed is None:
            return UNTRAINED
        return ",".join(f"{name}={shown(value)}" for name, value in self.settings.items()) or "base"

    @property
    def id(self) -> str:
        """Return the name of its files."""
        whole = self.name if self.seed is None else f"{self.name},seed={self.seed}"
        return "".join(letter if letter.isalnum() or letter in "=,._-" else "_" for letter in whole)

    @property
    def flat(self) -> dict[str, Any]:
        """Return all settings, {name: value}."""
        return {name: value for config in self.configs for name, value in dataclasses.asdict(config).items()}


def parse_grid(grid: list[str]) -> dict[str, list[Any]]:
    """Return {"noise": ["delete", "mask"], ...} of ``noise=delete,mask`` and ``noise_ratio=0.1:0.9:0.1``.

    ValueError that names the axis: a setting that can be none, a value of the wrong type, no values.
    """
    if not grid:
        raise ValueError("--grid is empty; give axes such as noise=delete,mask noise_ratio=0.1:0.9:0.1")
    hints = get_type_hints(DataConfig) | get_type_hints(MethodConfig) | get_type_hints(TrainConfig)
    axes: dict[str, list[Any]] = {}
    for axis in grid:
        name, equals, text = axis.partition("=")
        name = name.replace("-", "_")
        if name not in hints or name in NO_AXES:
            near = did_you_mean(name, sorted(hints.keys() - NO_AXES)) if name not in hints else None
            hint = near or "an axis is a flag of `tsdae train` that affects the result"
            raise ValueError(f"--grid {axis}: {name!r} cannot be an axis; {hint}")
        if not equals or not text:
            raise ValueError(f"--grid {axis}: no values; write {name}=VALUE,VALUE")
        if name in axes:
            raise ValueError(f"--grid names {name} twice")
        values = _range(axis, text) if text.count(":") == 2 and "," not in text else text.split(",")
        axes[name] = list(dict.fromkeys(_value(name, value, hints[name]) for value in values))
    return axes


def _range(axis: str, text: str) -> list[str]:
    """Return the values of first:last:step, the last one included."""
    try:
        first, last, step = (float(part) for part in text.split(":"))
    except ValueError:
        return text.split(",")  # file.py:function of a drive, or nothing numeric
    if not all(map(math.isfinite, (first, last, step))) or step <= 0 or last < first:
        raise ValueError(f"--grid {axis}: a range is first:last:step, with first <= last and step > 0")
    return [f"{first + step * k:.10g}" for k in range(int((last - first) / step + 1e-9) + 1)]


def _value(name: str, text: str, hint: Any) -> Any:
    """Return ``text`` as a value of the field's type."""
    alternatives = get_args(hint) if get_origin(hint) is not Literal else (hint,)
    kinds = sorted(alternatives, key=lambda kind: kind is not type(None))  # "none" is no text where None is allowed
    for kind in kinds or (hint,):
        if kind is type(None) and text.lower() in ("none", "all"):
            return None
        if get_origin(kind) is Literal and text in get_args(kind):
            return text
        if kind is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if kind is str:
            return text
        if kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    wanted = ", ".join(choices) or " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds or (hint,))
    raise ValueError(f"--grid {name}: invalid value {text!r}; expected: {wanted}")


def arms_of(
    flags: Configs,
    axes: dict[str, list[Any]],
    config: AblationConfig,
    completed: Callable[[Configs, Collection[str]], Configs] = lambda configs, _: configs,
) -> Iterator[Arm]:
    """Yield the untrained model, the base, then every value of every axis (or every combination), each with all seeds.

    flags: settings as they were given. completed: fills in, by a recipe, those that neither flag nor axis has set.
    """
    base = completed(flags, ())
    start = Arm({}, None, base)
    yield start
    differing = {
        name: [{name: value} for value in values if value != start.flat[name]] for name, values in axes.items()
    }
    chosen: list[dict[str, Any]] = [{}]
    if config.product:
        for parts in itertools.product(*([{}, *values] for values in differing.values())):
            settings = {name: value for part in parts for name, value in part.items()}
            chosen += [settings] if settings else []
    else:
        chosen += itertools.chain(*differing.values())
    for seed in range(base[2].seed, base[2].seed + config.seeds):
        for settings in chosen:
            yield Arm(settings, seed, completed(_with(flags, {**settings, "seed": seed}), settings))


def _with(configs: Configs, settings: dict[str, Any]) -> Configs:
    data, method, train = configs
    own = [{name: value for name, value in settings.items() if name in vars(config)} for config in configs]
    replace = dataclasses.replace
    return replace(data, **own[0]), replace(method, **own[1]), replace(train, **own[2])


def shown(value: Any) -> str:
    """Return a value as --grid understands it."""
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
