"""Losses: what each peer learns from the labels and from the others. Each method has one file, and one line here."""

from metamixer.core.registry import Entry, Registry, lazy_names


def _loss(target: str, summary: str, paper: str, needs: tuple[str, ...] = (), deploys: str = "the best peer") -> Entry:
    return Entry(f"{__name__}.{target}", summary, paper, needs, deploys)


# One line for each method.
# fmt: off
LOSSES = Registry({
    "independent": _loss("independent:Independent", "Cross-entropy alone: plain training of each peer.", "the baseline"),
    "dml": _loss("dml:DML", "Peers learn from the labels and from the current predictions of the others.", "arXiv 1706.00384"),
    "cl-ilr": _loss("cl_ilr:CLILR", "Heads on a shared trunk learn from the labels and from the consensus of the other heads.", "arXiv 1805.11761", ("trunk",)),
    "one": _loss("one:ONE", "Branches on a shared trunk learn from their ensemble, weighted by a gate.", "arXiv 1806.04606", ("trunk",)),
    "okddip": _loss("okddip:OKDDip", "Auxiliary peers learn from individual mixtures of each other; a leader learns from all of them.", "arXiv 1912.00350", ("features",), "the leader"),
    "mcl": _loss("mcl:MCL", "Contrastive learning within and between peers, which also match their similarity distributions.", "arXiv 2104.12565", ("features", "per-class")),
    "lmcl": _loss("lmcl:LMCL", "Contrastive learning between all pairs of stages of two peers; early exits teach the final one.", "arXiv 2207.11518", ("features", "stages", "per-class")),
    "afd": _loss("afd:AFD", "Peers learn each other's predictions and, adversarially, the distribution of each other's feature maps.", "arXiv 2002.01775", ("stages",)),
    "amln": _loss("amln:AMLN", "Peers align features stage by stage adversarially, and match intermediate to final features.", "ECCV 2020, doi 10.1007/978-3-030-58610-2_10", ("stages",)),
    "infomax-adversarial": _loss("infomax_adversarial:InfoMaxAdversarial", "Mutual information and adversarial alignment between peers; ours, not the objective of MetaMixer.", "ours, of parts from 2104.12565, 1904.05835, 2002.01775, 2108.07969", ("features", "stages")),
    "ffl": _loss("ffl:FFL", "The peers' feature maps are fused and classified; the fused classifier teaches every peer.", "arXiv 1904.09058", ("stages",)),
    "switokd": _loss("switokd:SwitOKD", "Mutual learning of large and small peers; a large one pauses while it is too far ahead.", "arXiv 2209.04996", deploys="the best student"),
    "cutnmix": _loss("cutnmix:CutnMixLoss", "Peers teach each other by logits and features; the ensemble of their averaged copies teaches all.", "arXiv 2206.12370", ("features", "shadows")),
    "kd": _loss("kd:KD", "Peers learn from the labels and from the soft predictions of a frozen teacher.", "arXiv 1503.02531", ("teacher",)),
    "dkd": _loss("dkd:DKD", "Peers learn from a frozen teacher, with separate terms for the target and the other classes.", "arXiv 2203.08679", ("teacher",)),
    "kdcl": _loss("kdcl:KDCL", "All peers learn from one soft target, made from the predictions of all of them.", "CVPR 2020, 11020-11029", ("views",)),
    "pcl": _loss("pcl:PCL", "Peers learn from a classifier over all their features, and from averaged copies of the others.", "arXiv 2006.04147", ("features", "shadows", "views"), "the best averaged peer"),
    "codistillation": _loss("codistillation:Codistillation", "Peers learn from predictions of earlier copies of the others, which may run in other processes.", "arXiv 1804.03235", ("shadows",)),
})
# fmt: on

__getattr__, __all__ = lazy_names(__name__, [*LOSSES.targets, f"{__name__}.base:Loss"])
