"""What is shown while a cohort trains, and at the end."""

from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from metamixer.cli.console import say
from metamixer.cli.result_tables import report_table, result_table, result_text
from metamixer.cli.training_progress import Progress
from metamixer.core.text import clean
from metamixer.evaluation.evaluate import Report, Score
from metamixer.runs.run import Result
from metamixer.training.callbacks import EpochRecord, Start, StepRecord
from metamixer.training.trainer import Best

NAMES = ("0 [red]$x$[/]", "1 esc\x1b[31m")


def a_report(*accuracies, images=1000, top5=None):
    scores = [Score(name, share, top5, 1.25) for name, share in zip((*NAMES, "ensemble"), accuracies, strict=True)]
    return Report(tuple(scores[:-1]), scores[-1], 0.5, images)


def shown(thing, width=100):
    target = Console(file=StringIO(), width=width)
    target.print(thing)
    return target.file.getvalue()


class CountedTerms(dict):
    """Terms that count how often they are read."""

    reads = 0

    def items(self):
        CountedTerms.reads += 1
        return super().items()


def drive(progress, clock, epochs=3, steps=10, first=0, waited=0.0, val=True, reading=""):
    """A training whose steps take 50 ms on the clock."""
    progress.on_start(Start(epochs, steps, first, NAMES, reading))
    terms = CountedTerms(task=torch.tensor([1.5, 2.5]), distill=torch.tensor([0.25, 0.125]))
    for step in range(first, epochs * steps):
        clock[0] += 0.05
        progress.on_step(StepRecord(step // steps + 1, step + 1, 32, terms, 0.1, waited, 0.05))
        if (step + 1) % steps == 0:
            means = {name: value.tolist() for name, value in terms.items()}
            report = a_report(0.5, 0.625, 0.75) if val else None
            speed = (640.0, waited / 0.05, 1.0, reading)
            progress.on_epoch(EpochRecord(step // steps + 1, step + 1, 0.1, means, [0.25, 0.375], report, *speed))
    progress.on_end()


def test_the_bar_shows_terms_accuracies_speed_and_time():
    clock = [0.0]
    target = Console(file=StringIO(), force_terminal=True, width=120, color_system=None, _environ={})
    progress = Progress(target, "run:", clock=lambda: clock[0])
    drive(progress, clock, waited=0.02)
    text = shown(progress.view(), width=120)
    for part in (
        "run: epoch 3/3", "0 [red]$x$[/]", "1 esc\\x1b[31m", "task 1.500", "task 2.500", "distill 0.125",
        "train 25.0 %", "val 62.5 %", "ensemble", "val 75.0 %", "640 images/s",
    ):  # fmt: skip
        assert part in text
    assert "esc\x1b[31m" not in target.file.getvalue()


def test_time_left_and_no_mark_without_waiting():
    clock = [0.0]
    target = Console(file=StringIO(), force_terminal=True, width=120, _environ={})
    progress = Progress(target, clock=lambda: clock[0])
    progress.on_start(Start(2, 100, 50, NAMES))
    for step in range(50, 100):
        clock[0] += 1.0
        progress.on_step(StepRecord(1, step + 1, 32, {"task": torch.zeros(2)}, 0.1, 0.0, 1.0))
    text = shown(progress.view(), width=120)
    assert "0:01:40 left" in text
    assert "validating" in text
    assert "waits 0 %" in text
    clock[0] += 30.0  # a validation does not raise it
    assert "0:01:10 left" in shown(progress.view(), width=120)
    progress.on_step(StepRecord(2, 101, 32, {"task": torch.zeros(2)}, 0.1, 0.0, 1.0))
    assert "validating" not in shown(progress.view(), width=120)
    clock[0] += 1000.0
    assert "0:00:00 left" in shown(progress.view(), width=120)
    assert "data ▱▱▱▱▱▱▱▱▱▱ compute up to 32/s" in text
    progress.on_end()


def test_old_validations_are_named_by_their_epoch():
    clock, target = [0.0], Console(file=StringIO(), force_terminal=False, width=200, _environ={})
    progress = Progress(target, clock=lambda: clock[0])
    progress.on_start(Start(3, 1, 0, NAMES))
    for epoch, val in ((1, None), (2, a_report(0.5, 0.625, 0.75)), (3, None)):
        progress.on_step(StepRecord(epoch, epoch, 32, {}, 0.1, 0.0, 1.0))
        progress.on_epoch(EpochRecord(epoch, epoch, 0.1, {}, [0.25, 0.375], val, 1.0, 0.0, 1.0, ""))
    lines = target.file.getvalue().splitlines()
    assert "epoch 1/3  training 0 [red]$x$[/] 25.0 %" in lines[0]
    assert "epoch 2/3  validation 0 [red]$x$[/] 50.0 %" in lines[1]
    assert "epoch 3/3  validation after epoch 2 0 [red]$x$[/] 50.0 %" in lines[2]


@pytest.mark.parametrize(
    ("reading", "waited", "sides", "helps"),
    [
        ("disk", 0.02, "640 images/s  data 1,600/s ▰▰▰▰▱▱▱▱▱▱ compute up to 1,067/s  waits 40 %", "data.workers=2"),
        ("workers", 0.02, "640 images/s  data ▰▰▰▰▱▱▱▱▱▱ compute up to 1,067/s  waits 40 %", "more data.workers"),
        (
            "augment",
            0.01,
            "640 images/s  data 3,200/s ▰▰▱▱▱▱▱▱▱▱ compute up to 800/s  waits 20 %",
            "data.augment=light",
        ),
        ("memory", 0.01, "640 images/s  data 3,200/s ▰▰▱▱▱▱▱▱▱▱ compute up to 800/s  waits 20 %", "cropping"),
        ("disk", 0.005, "640 images/s  data 6,400/s ▰▱▱▱▱▱▱▱▱▱ compute up to 711/s  waits 10 %", ""),
        ("", 0.02, "640 images/s  data ▰▰▰▰▱▱▱▱▱▱ compute up to 1,067/s  waits 40 %", ""),
    ],
)
@pytest.mark.parametrize("terminal", [True, False])
def test_both_sides_are_shown_and_help_is_given_once(reading, waited, sides, helps, terminal):
    clock = [0.0]
    target = Console(file=StringIO(), force_terminal=terminal, width=200 if not terminal else 80, _environ={})
    progress = Progress(target, clock=lambda: clock[0])
    drive(progress, clock, waited=waited, reading=reading)
    printed = target.file.getvalue()
    assert printed.count("hint: ") == bool(helps)
    assert helps in printed
    if terminal:
        assert sides in shown(progress.view(), width=80)
    else:
        assert printed.count("640 images/s") == 3
        noted = waited > 0.005
        assert printed.count(f"(waits for data {waited / 0.05:.0%} of the time)".replace("%", " %")) == 3 * noted


def test_the_bar_of_both_sides_where_there_are_no_blocks():
    class Ascii(StringIO):
        encoding = "ascii"

    clock, target = [0.0], Console(file=Ascii(), force_terminal=True, width=120, _environ={})
    progress = Progress(target, clock=lambda: clock[0])
    drive(progress, clock, waited=0.02, reading="workers")
    assert "data ####------ compute" in shown(progress.view())


def test_the_device_is_read_four_times_a_second_at_most():
    clock, CountedTerms.reads = [0.0], 0
    target = Console(file=StringIO(), force_terminal=True, width=120, _environ={})
    drive(Progress(target, clock=lambda: clock[0]), clock, epochs=1, steps=100)
    assert CountedTerms.reads <= 100 * 0.05 * 4 + 1


@pytest.mark.parametrize(("epochs", "lines"), [(1, 1), (7, 7), (10, 10), (11, 6), (19, 10), (200, 10)])
def test_a_pipe_gets_few_lines(epochs, lines):
    clock, target = [0.0], Console(file=StringIO(), width=200)
    drive(Progress(target, clock=lambda: clock[0]), clock, epochs=epochs, steps=2)
    text = target.file.getvalue().splitlines()
    assert len(text) == lines
    figures = "0 [red]$x$[/] 50.0 %, 1 esc\\x1b[31m 62.5 %, ensemble 75.0 %  640 images/s"
    assert text[-1].startswith(f"epoch {epochs}/{epochs}  validation {figures}")


def test_a_pipe_gets_a_line_every_thirty_seconds_inside_of_an_epoch():
    clock, target = [0.0], Console(file=StringIO(), width=200)
    progress = Progress(target, "run:", clock=lambda: clock[0])
    progress.on_start(Start(2, 100, 0, NAMES))
    for step in range(100):
        clock[0] += 1.0
        progress.on_step(StepRecord(1, step + 1, 32, {}, 0.1, 0.5, 1.0))
    assert target.file.getvalue().splitlines() == [
        "run: epoch 1/2  step 30/200  32 images/s (waits for data 50 % of the time)  0:02:50 left",
        "run: epoch 1/2  step 60/200  32 images/s (waits for data 50 % of the time)  0:02:20 left",
        "run: epoch 1/2  step 90/200  32 images/s (waits for data 50 % of the time)  0:01:50 left",
    ]


def test_loops_inside_of_the_training_move():
    target, seen = Console(file=StringIO(), force_terminal=True, width=120, _environ={}), []
    progress = Progress(target, clock=lambda: 0.0, otherwise=lambda *loop: seen.append(loop))
    progress.on_start(Start(1, 1, 0, NAMES))
    progress.on_step(StepRecord(1, 1, 32, {}, 0.1, 0.0, 1.0))
    assert "validating" in shown(progress.view())
    progress.watch("evaluating", 3, 9)
    assert "evaluating 3/9" in shown(progress.view())
    progress.watch("evaluating", 9, 9)
    assert "evaluating" not in shown(progress.view())
    assert not seen
    progress.on_end()
    progress.watch("evaluating", 3, 9)
    assert seen == [("evaluating", 3, 9)]


def test_a_pipe_gets_training_accuracy_without_validation():
    clock, target = [0.0], Console(file=StringIO(), width=200)
    drive(Progress(target, clock=lambda: clock[0]), clock, epochs=1, first=5, val=False)
    first, second = target.file.getvalue().splitlines()
    assert first == "resuming from step 5/10"
    assert "training 0 [red]$x$[/] 25.0 %" in second


def test_nothing_that_a_user_supplies_is_markup(capsys):
    nasty = "[/] [red]x[/red] :cat: $\\frac$ \x1b[31m \u202e <script>"
    assert "\x1b" not in clean(nasty)
    say(nasty)
    say("first\nsecond", stderr=True)
    out, err = capsys.readouterr()
    assert out == "[/] [red]x[/red] :cat: $\\frac$ \\x1b[31m \\u202e <script>\n"
    assert err == "first\nsecond\n"
    assert nasty[:16] in shown(report_table(nasty, a_report(0.1, 0.2, 0.3)))


def a_result(*accuracies, split="test", chosen=0.9, images=1000):
    report = a_report(*accuracies, images=images, top5=0.95)
    return Result(
        Path("run"), split, report, report.peers[1], Best(7, 1, chosen, 1.0), Path("run/model.safetensors"), 10
    )


def test_the_result_names_epochs_and_gains():
    result, before = a_result(0.5, 0.6, 0.7), a_result(0.4, 0.65, 0.7)
    text = shown(result_table(result, 9, before))
    lines = text.splitlines()
    assert "1,000 test images, after the last epoch (9)" in lines[0]
    assert lines[4].split("[/]")[1].split() == ["50.0", "%", "95.0", "%", "1.250", "40.0", "%", "+10.0"]
    assert "-5.0" in lines[5]
    assert "+0.0" in lines[6]
    assert "deployed: 1 esc\\x1b[31m, epoch 7" in text
    words = " ".join(result_text(result, 9, before))
    assert "after epoch 9, the last; the test set was not used for model selection" in words
    assert "as it was after epoch 7, chosen by its validation accuracy of 90.0 %" in words
    assert "under 4.1 may be chance" in words


def test_the_result_without_test_or_validation_images():
    assert "optimistically biased" in " ".join(result_text(a_result(0.5, 0.6, 0.7, split="validation"), 9))
    assert "Without validation images" in " ".join(result_text(a_result(0.5, 0.6, 0.7, chosen=float("nan")), 9))
    assert "top-5" not in shown(report_table("", a_report(0.1, 0.2, 0.3)))
    assert "12.34 %" in shown(report_table("", a_report(0.12341, 0.2, 0.3, images=10_000)))
