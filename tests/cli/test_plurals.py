"""A count of one is never followed by a plural, whatever is counted."""

import re

from PIL import Image

from tests.command import metamixer

THINGS = "epoch file image line network peer plot row run step"
PLURAL = re.compile(rf"(?<![\d.,])\b1 (?:\w+ )?(?:{'|'.join(THINGS.split())})s\b")


def test_one_of_each(tmp_path):
    photos = tmp_path / "photos"
    for name, count in (("train/cat", 3), ("train/dog", 2), ("val/cat", 1), ("test/dog", 1)):
        (photos / name).mkdir(parents=True)
        for number in range(count):
            Image.effect_noise((16, 16), 80).convert("RGB").save(photos / name / f"{number}.png")
    (photos / "val" / "cat" / "0.png").write_bytes((photos / "train" / "cat" / "0.png").read_bytes())
    run, study = tmp_path / "run", tmp_path / "study.yaml"
    study.write_text(
        f"recipe: {{data: {{name: {photos}}}, peers: [resnet8], mixer: none, train: {{epochs: 1}}}}\n"
        "seeds: [0]\nmethods: [independent]\n"
    )
    train = ("train", "--data", photos, "--peers", "resnet8", "--loss", "independent", "--epochs", 1)
    said = [
        metamixer(*words, code=code).output
        for code, words in [
            (0, ("check", photos)),
            (0, (*train, "--out", run)),
            (0, ("train", "--resume", run, "--epochs", 2)),
            (0, ("evaluate", run, "--robustness", "fgsm", "--limit", 1)),
            (0, ("evaluate", run, "--quick")),
            (0, ("export", run, "--to", "safetensors")),
            (0, ("predict", run, photos / "train" / "cat" / "0.png", "--out", tmp_path / "a.csv")),
            (0, ("report", run, "--out", tmp_path / "page.html")),
            (0, ("study", study, "--out", tmp_path / "study")),
            (65, ("evaluate", run, "--data", photos / "train")),
        ]
    ]
    said += [(tmp_path / "page.html").read_text(), (run / "export" / "best" / "README.md").read_text()]
    found = [text[max(0, one.start() - 60) : one.end() + 20] for text in said for one in PLURAL.finditer(text)]
    assert not found
    assert "1 validation image found, pixel for pixel, in the training images" in said[1]
    assert "the run of 1 epoch has ended: epoch 2 follows" in said[2]
