"""Recipes: batch size, learning rate and length of a run, by the kind of model that it starts from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from tsdae.bert import BertConfig
from tsdae.config import MethodConfig, TrainConfig
from tsdae.hub.conversion import read_config
from tsdae.hub.downloads import MINI
from tsdae.hub.model_folder import model_folder, read_sentence_settings
from tsdae.run.resume import check_one_length

DIP = "the vectors of a raw model get worse before they get better"
SMALL = 30_000_000  # weights in the layers; a model with fewer is small. DistilBERT has 43M, BERT-base 85M


@dataclass(frozen=True)
class Recipe:
    """The settings of a run where no flag gives them. Its length: one epoch, and at least ``min_steps``.

    min_steps: a run of TSDAE from a raw model makes its sentence vectors worse before it makes them better; a run that
        is shorter than this may end in that dip.
    """

    start: str  # the models it is for, in words
    batch_size: int
    learning_rate: float
    min_steps: int
    hold_on: float = 0.0

    def steps_at(self, size: int) -> int:
        """Return how many steps of ``size`` sentences do as much as ``min_steps`` of the recipe's batches.

        Smaller batches: as many sentences. Larger ones: by the square root, as measured (benchmarks/LOG.md).
        """
        ratio = self.batch_size / size
        return math.ceil(self.min_steps * max(ratio, math.sqrt(ratio)))

    def __str__(self) -> str:
        return (
            f"batches of {self.batch_size}, learning rate {self.learning_rate:g}, "
            f"1 epoch or {self.min_steps:,} steps, whichever is longer"
        )


Name = Literal["paper", "small", "adapt"]
RECIPES: dict[Name, Recipe] = {
    # Wang, Reimers and Gurevych 2021, section 4: batches of 8 at 3e-5, on 10,000 to 100,000 sentences.
    "paper": Recipe("a raw model of BERT-base's size", 8, 3e-5, 2000),
    "small": Recipe("a small raw model", 32, 5e-4, 2000),
    "adapt": Recipe("a finished sentence model", 8, 3e-5, 1000, hold_on=100.0),
}


def recipe_of(start: str, name: Name) -> Recipe:
    """Return a recipe for an initial model. The dip of mini ends within 250 steps: 1,500 are enough."""
    recipe = RECIPES[name]
    return dataclasses.replace(recipe, min_steps=1500) if (start, name) == (MINI, "small") else recipe


def recipe_for(config: BertConfig, is_sentence_model: bool) -> Name:
    """Return the name of the recipe for an initial model of this shape."""
    if is_sentence_model:
        return "adapt"
    in_layers = config.layers * (4 * config.width**2 + 2 * config.width * config.feed_forward)
    return "small" if in_layers < SMALL else "paper"


def with_recipe(
    start: str, method: MethodConfig, config: TrainConfig, given: Collection[str]
) -> tuple[MethodConfig, TrainConfig, list[str]]:
    """Return the settings with a recipe's in place of defaults, and lines to print that say so.

    start: name or path of the model. given: settings that the user has chosen; they win over the recipe.
    """
    name = method.recipe
    if name == "auto":
        folder = model_folder(start)
        settings = read_sentence_settings(folder)
        name = recipe_for(read_config(folder / settings.model_folder)[0], settings.pooling is not None)
    recipe = recipe_of(start, name)
    check_one_length(given)
    batch: dict[str, Any] = {"batch_size": recipe.batch_size, "learning_rate": recipe.learning_rate}
    config = dataclasses.replace(config, **{key: value for key, value in batch.items() if key not in given})
    recipe = dataclasses.replace(recipe, min_steps=max(recipe.min_steps, recipe.steps_at(config.step_size)))
    if not {"steps", "epochs"} & set(given):
        least = config.min_steps if "min_steps" in given else recipe.min_steps
        config = dataclasses.replace(config, epochs=1.0, min_steps=least)
    hold_on, distilled = method.hold_on, ""
    if recipe.hold_on and "hold_on" not in given:
        hold_on = recipe.hold_on if method.objective == "tsdae" else 0.0
        distilled = f", --hold-on {hold_on:g}" if hold_on else f", no --hold-on with the objective {method.objective}"
    why = f"{start} is {recipe.start}" if method.recipe == "auto" else "chosen by --recipe"
    lines = [f"recipe {name} ({why}): {recipe}{distilled}"]
    if chosen := sorted({*batch, "steps", "epochs", "min_steps", "hold_on"} & set(given)):
        both = vars(config) | vars(method)
        values = {key: f"{both[key]:g}" if isinstance(both[key], float) else both[key] for key in chosen}
        lines.append("overridden by flags: " + " ".join(f"--{key.replace('_', '-')} {values[key]}" for key in chosen))
    return dataclasses.replace(method, recipe=name, hold_on=hold_on), config, lines


def cut_in_the_dip(start: str, method: MethodConfig, steps: int, size: int) -> str | None:
    """Return a warning for a run from a raw model that may end while its vectors are still worse than at the start.

    size: sentences in one step. None if the run is long enough, or if no recipe of a raw model was used.
    """
    if method.objective != "tsdae" or method.recipe == "auto" or method.recipe == "adapt":
        return None
    needed = recipe_of(start, method.recipe).steps_at(size)
    if steps >= needed:
        return None
    return f"{steps:,} x {size} sentences may be too few: {DIP}; train for at least {needed:,} steps"


def what_to_try(method: MethodConfig, is_sentence_model: bool) -> str:
    """Return advice for a run that has made the vectors of its initial model worse."""
    if is_sentence_model:
        distil = method.objective == "tsdae" and not method.hold_on
        return f"Try {'--hold-on 100' if distil else 'a lower learning rate'} or fewer steps."
    if method.objective != "tsdae":
        return "Train longer, or try a lower learning rate."
    return f"Train longer: {DIP}.{'' if method.pooling == 'mean' else ' Or try --pooling mean.'}"
