"""Cases in turn."""

import torch

from benchmarks.timing import Case, fixed, interleave

CPU = torch.device("cpu")


def test_all_cases_of_a_round_run_before_the_next_round():
    ran = []
    cases = [Case(name, fixed(lambda name=name: ran.append(name)), items=3) for name in "abcd"]
    measured, missing = interleave(cases, 3, CPU)
    rounds = [ran[at : at + 4] for at in range(0, len(ran), 4)]
    assert [sorted(each) for each in rounds] == [list("abcd")] * 4  # the first one warms up
    assert len({tuple(each) for each in rounds}) > 1  # in an order of its own
    assert [(each.name, len(each.samples), each.items) for each in measured] == [(name, 3, 3) for name in "abcd"]
    assert not missing


def test_preparation_is_fresh_for_each_timing():
    made = []

    def make():
        made.append(len(made))
        return lambda: None

    interleave([Case("a", make)], 2, CPU, warmup=False)
    assert len(made) == 2


def test_samples_are_per_unit(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("benchmarks.timing.time.perf_counter", lambda: float(next(clock)))
    measured, _ = interleave([Case("a", fixed(lambda: None), units=4)], 1, CPU)
    assert measured[0].samples == (0.25,)


def test_a_case_that_raises_is_left_out_with_its_reason():
    def fail():
        raise RuntimeError("no such kernel\nmore")

    measured, missing = interleave([Case("bad", fixed(fail)), Case("good", fixed(lambda: None))], 2, CPU)
    assert [each.name for each in measured] == ["good"]
    assert missing[0].reason == "RuntimeError: no such kernel"
