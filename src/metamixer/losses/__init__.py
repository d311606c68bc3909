"""Losses: what each peer learns from the labels and from the others. One method a file, and one line here."""

from metamixer.core.registry import Entry, Registry, lazy_names


def _loss(target: str, summary: str, paper: str, needs: tuple[str, ...] = (), deploys: str = "the best peer") -> Entry:
    return Entry(f"{__name__}.{target}", summary, paper, needs, deploys)


# One line for each method.
# fmt: off
LOSSES = Registry({
    "independent": _loss("independent:Independent", "Cross-entropy alone: plain training of each peer.", "the baseline"),
    "dml": _loss("dml:DML", "Peers learn from the labels and from what the others predict at the same moment.", "arXiv 1706.00384"),
    "cl-ilr": _loss("cl_ilr:CLILR", "Heads on one trunk learn from the labels and from the consensus of the other heads.", "arXiv 1805.11761", ("trunk",)),
    "one": _loss("one:ONE", "Branches on one trunk learn from an ensemble of themselves, weighted by a gate.", "arXiv 1806.04606", ("trunk",)),
    "okddip": _loss("okddip:OKDDip", "Auxiliary peers learn from mixtures of their own choice, and a leader learns from all of them.", "arXiv 1912.00350", ("features",), "the leader"),
    "mcl": _loss("mcl:MCL", "Peers learn which samples belong together, and each other's distributions of similarities.", "arXiv 2104.12565", ("features", "per-class")),
    "lmcl": _loss("lmcl:LMCL", "Contrastive learning between all pairs of stages of two peers, whose exits teach the final one.", "arXiv 2207.11518", ("features", "stages", "per-class")),
    "afd": _loss("afd:AFD", "Peers learn each other's predictions, and adversarially the distribution of each other's feature maps.", "arXiv 2002.01775", ("stages",)),
    "amln": _loss("amln:AMLN", "Peers align their features stage by stage adversarially, and lead them towards the other's final ones.", "ECCV 2020, doi 10.1007/978-3-030-58610-2_10", ("stages",)),
    "infomax-adversarial": _loss("infomax_adversarial:InfoMaxAdversarial", "Peers share information about each image and meet an adversary: ours, not MetaMixer's objective.", "ours, of parts from 2104.12565, 1904.05835, 2002.01775, 2108.07969", ("features", "stages")),
    "ffl": _loss("ffl:FFL", "The peers' feature maps are fused and classified; the fused classifier teaches every peer.", "arXiv 1904.09058", ("stages",)),
    "switokd": _loss("switokd:SwitOKD", "Mutual learning of large and small peers, where a large one pauses while it is too far ahead.", "arXiv 2209.04996", deploys="the best student"),
    "cutnmix": _loss("cutnmix:CutnMixLoss", "Peers teach each other by logits and features, and the mean of their averaged copies teaches all of them.", "arXiv 2206.12370", ("features", "shadows")),
    "kd": _loss("kd:KD", "Peers learn from the labels and from a frozen teacher's soft predictions.", "arXiv 1503.02531", ("teacher",)),
    "dkd": _loss("dkd:DKD", "Peers learn from a frozen teacher: its trust in the label and its view of the other classes, apart.", "arXiv 2203.08679", ("teacher",)),
    "kdcl": _loss("kdcl:KDCL", "All peers learn from one soft target that is made of the predictions of all of them.", "CVPR 2020, 11020-11029", ("views",)),
    "pcl": _loss("pcl:PCL", "Peers learn from a classifier over all their features, and from the others' averages over time.", "arXiv 2006.04147", ("features", "shadows", "views"), "the best averaged peer"),
    "codistillation": _loss("codistillation:Codistillation", "Peers learn from what the others predicted some time ago; they may live in other processes.", "arXiv 1804.03235", ("shadows",)),
})
# fmt: on

__getattr__, __all__ = lazy_names(__name__, [*LOSSES.targets, f"{__name__}.base:Loss"])
