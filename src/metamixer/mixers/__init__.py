"""Mixers: settings that draw a plan for every batch. Each method has one file, and one line here."""

from metamixer.core.registry import Entry, Registry, lazy_names


def _mixer(target: str, summary: str, paper: str = "") -> Entry:
    return Entry(f"{__name__}.{target}", summary, paper)


# One line for each method.
# fmt: off
MIXERS = Registry({
    "none": _mixer("no_mix:NoMix", "Plain training without mixing."),
    "mixup": _mixer("mixup:Mixup", "Blends each image with another random one, and their labels in the same proportion.", "arXiv 1710.09412"),
    "cutmix": _mixer("cutmix:CutMix", "Pastes a box of another random image; labels are mixed by the pasted area.", "arXiv 1905.04899"),
    "cutnmix": _mixer("cutnmix:CutnMix", "CutMix with a different box for each peer.", "arXiv 2206.12370"),
    "manifold-mixup": _mixer("manifold_mixup:ManifoldMixup", "Mixup at a random stage of the networks.", "arXiv 1806.05236"),
    "same-class-cutmix": _mixer("cutmix:SameClassCutMix", "CutMix with another image of the same class; labels do not change.", "arXiv 2303.07951"),
    "metamixer": _mixer("metamixer:MetaMixer", "Same-class CutMix at the input, then manifold mixup at a random stage.", "arXiv 2303.07951"),
})
# fmt: on

__getattr__, __all__ = lazy_names(__name__, [*MIXERS.targets, f"{__name__}.base:BaseMixer", f"{__name__}.base:Draw"])
