"""What to say when training is too short for the amount of mixing."""

from __future__ import annotations

from metamixer.config.recipe import Recipe
from metamixer.training.auto_strength import bound, is_auto

_ENOUGH_EPOCHS = 100
_WEAK_ENOUGH = 0.5


def short_budget(recipe: Recipe, images: int) -> str | None:
    """A hint if mixing is strong for a short training run, else None.

    Mixing is a regulariser: it helps if the networks would otherwise overfit, and slows down learning if training is
    too short for that. The hint is given if every image is seen fewer than 100 times and a batch is mixed with a mean
    probability above 0.5 over the run. Measured on 500 images (docs/results.md): MetaMixer at full strength lost 3
    points in 25 epochs, was even in 100 and gained 2 in 200; with probabilities of 0.3 in the first half of training it
    lost nothing in 25.

    Args:
        recipe: recipe with the probabilities of the mixer.
        images: number of training images.
    """
    if recipe.train.epochs >= _ENOUGH_EPOCHS or (mixed := _mixed_share(recipe)) <= _WEAK_ENOUGH:
        return None
    settings = recipe.as_dict()["mixer"]
    weaker = [f"mixer.{name}=0.3" for name in settings if name.endswith("probability") and settings[name] > 0]
    times = "once" if recipe.train.epochs == 1 else f"{recipe.train.epochs} times"
    return (
        f"a short training for so much mixing: each of the {images:,} images is seen {times} and "
        f"{100 * mixed:.0f} % of the batches are mixed; mixer.strength=auto, or {' '.join(weaker)} "
        f"mixer.until={_WEAK_ENOUGH} together, or train.epochs={_ENOUGH_EPOCHS} and more, usually do better"
    )


def bounded_strength(recipe: Recipe) -> str | None:
    """A note if ``strength=auto`` cannot rise to 1 in so few epochs, else None."""
    if not is_auto(recipe.build_mixer()) or (most := bound(recipe.train)) == 1:
        return None
    mixing = f"mixing with a strength of at most {most:.2g}" if most else "no mixing"
    return f"{mixing} in so short a run (mixer.strength=auto, train.strength_epochs={recipe.train.strength_epochs})"


def _mixed_share(recipe: Recipe) -> float:
    """The expected share of mixed batches, by the most likely operation of the mixer; 0 for ``strength=auto``."""
    if is_auto(recipe.build_mixer()):
        return 0.0
    settings = recipe.as_dict()["mixer"]
    probabilities = [float(settings[name]) for name in settings if name.endswith("probability")]
    probability = float(settings.get("strength", 1.0)) * max(probabilities, default=0.0)
    # The probability falls linearly to 0 over the ramp that ends at `until`.
    return probability * (float(settings.get("until", 1.0)) - float(settings.get("ramp", 0.0)) / 2)
