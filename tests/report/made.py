"""Run folders written by hand: an evaluation from random predictions, and names that try to break out."""

import json

import numpy as np
import yaml

NASTY = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    r"$\frac$",
    "[red] {{ 7 * 7 }}",
    "new\nline",
    "née 猫 ' & --> ]]>",
    "</script><svg onload=alert(1)>",
]
PEERS = ("0 resnet8", "1 resnet14")


def network(name, kind, classes, rng, strength=2.0, images=400):
    """Figures of random predictions, as ``evaluation.json`` has them."""
    labels = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, classes))
    logits[np.arange(images), labels] += strength
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    named, sure = shares.argmax(1), shares.max(1)
    right = named == labels
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (labels, named), 1)
    edges = np.linspace(0, 1, 16)
    place = np.clip(np.digitize(sure, edges) - 1, 0, 14)
    count = np.bincount(place, minlength=15)
    mean = [[float(what[place == k].mean()) if count[k] else None for k in range(15)] for what in (sure, right)]
    ece = sum(count[k] * abs(mean[0][k] - mean[1][k]) for k in range(15) if count[k]) / images
    nll = float(-np.log(shares[np.arange(images), labels]).mean())
    totals = confusion.sum(1)
    return {
        "name": name, "kind": kind, "accuracy": float(right.mean()), "top5": None, "nll": nll,
        "brier": float(((shares - np.eye(classes)[labels]) ** 2).sum(1).mean()), "ece": float(ece),
        "gap": float(sure.mean() - right.mean()), "temperature": 1.2,
        "calibrated": {"nll": nll - 0.01, "brier": 0.3, "ece": float(ece) / 2, "gap": 0.001},
        "per_class": [float(confusion[k, k] / totals[k]) if totals[k] else None for k in range(classes)],
        "confusion": confusion.tolist(),
        "reliability": {"edges": edges.tolist(), "count": count.tolist(), "confidence": mean[0], "accuracy": mean[1]},
    }  # fmt: skip


def evaluation(classes, peers=PEERS, seed=0, *, hard=True, strength=2.0):
    """A whole ``evaluation.json``."""
    rng = np.random.default_rng(seed)
    kinds = [*((name, "peer") for name in peers), ("ensemble", "ensemble"), (peers[-1], "deployed")]
    networks = [network(name, kind, len(classes), rng, strength) for name, kind in kinds]
    names = [*peers, "ensemble"]
    kinds = {
        kind: {name: sorted(rng.uniform(0.2, 0.7, 5).tolist(), reverse=True) for name in names}
        for kind in ("gaussian_noise", "motion_blur", "contrast")
    }
    mean = {name: float(np.mean([by_name[name] for by_name in kinds.values()])) for name in names}
    attacks = {
        key: {"eps": 8 / 255, "accuracy": {name: float(rng.uniform(0, 0.3)) for name in names}}
        for key in ("fgsm", "pgd-10", "pgd-20")
    }
    square = rng.uniform(0.5, 1, (len(peers), len(peers))).tolist()

    def located(name):
        boxes = {"0.3": 0.8, "0.5": float(rng.uniform(0.3, 0.7)), "0.7": 0.2}
        return {"name": name, "max_box_acc_v2": float(np.mean(list(boxes.values()))), "max_box_acc": boxes,
                "thresholds": {"0.3": 0.2, "0.5": 0.3, "0.7": 0.4}, "pointing": 0.66, "energy": 0.41}  # fmt: skip

    return {
        "format": "metamixer-evaluation-1", "split": "test", "checkpoint": "last", "images": 400,
        "classes": list(classes), "networks": networks,
        "peers": {"agreement": 0.7, "pairwise_agreement": square, "pairwise_kl": square, "disagreement": 0.3,
                  "ensemble_gain": 0.013},
        "robustness": {"images": 100, "clean": {name: float(rng.uniform(0.6, 0.9)) for name in names},
                       "corruptions": {"kinds": kinds, "mean": mean}, "attacks": attacks} if hard else None,
        "localization": {"method": "grad-cam", "images": 50, "networks": [located(name) for name in peers],
                         "centre_box": located("centre"), "map_agreement": square} if hard else None,
    }  # fmt: skip


def run(folder, classes=NASTY, peers=PEERS, epochs=4, seed=0, data="photos", notes=(), evaluated=True):
    """A run that nobody trained."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)

    def scores():
        rows = [{"name": name, "accuracy": float(rng.uniform(0.3, 0.9)), "top5": 0.97, "nll": float(rng.uniform(1, 2))}
                for name in (*peers, "ensemble")]  # fmt: skip
        return {"peers": rows[:-1], "ensemble": rows[-1], "agreement": 0.61, "images": 400}

    def write(name, content):
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")

    recipe = {
        "data": {"name": data}, "peers": [{"name": name.partition(" ")[2]} for name in peers],
        "mixer": {"name": "metamixer", "until": 0.8}, "loss": {"name": "dml", "temperature": 4},
        "optim": {"name": "sgd", "lr": 0.05}, "train": {"epochs": epochs, "batch_size": 64, "seed": seed},
    }  # fmt: skip
    write("recipe.yaml", yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    lines = [
        {"epoch": epoch + 1, "step": 10 * epoch, "lr": 0.05, "terms": {"task": [1.5 / (epoch + 1)] * len(peers)},
         "train_accuracy": [0.5] * len(peers), "val": scores() if epoch % 2 else None}
        for epoch in range(epochs)
    ]  # fmt: skip
    write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    last = scores()
    write("report.json", {"split": "test", "last_epoch": last, "deployed": last["peers"][-1],
                          "best": {"peer": 1, "epoch": epochs}, "notes": list(notes)})  # fmt: skip
    write("environment.json", {"python": "3.11.7", "platform": "Linux", "versions": {"torch": "2.13.0", "timm": None}})
    if evaluated:
        write("evaluation.json", evaluation(classes, peers, seed))
    return folder
