"""Scores: cases of known answers, and slow loops."""

import numpy as np
import pytest
import torch

from metamixer.evaluation.localization.box_accuracy import (
    THRESHOLDS,
    best_overlaps,
    choose_thresholds,
    correlations,
    energy_inside,
    points_inside,
)
from metamixer.evaluation.localization.centre_baseline import centre_map, centre_scores
from metamixer.evaluation.localization.connected_components import boxes_at, foreground, largest_box, overlaps


def box_maps(boxes, size=(20, 30)):
    maps = torch.zeros(len(boxes), *size)
    for one, (x0, y0, x1, y1) in zip(maps, boxes.int().tolist(), strict=True):
        one[y0:y1, x0:x1] = 1
    return maps


BOXES = torch.tensor([[3.0, 4.0, 12.0, 15.0], [0.0, 0.0, 30.0, 20.0], [20.0, 2.0, 21.0, 3.0]])


def test_a_map_that_is_the_box_is_right_in_everything():
    maps = box_maps(BOXES)
    best = best_overlaps(maps, BOXES)
    ends = [1, 30 * 20 / (31 * 21), 1]  # a box that ends with the map ends a pixel before the known one
    np.testing.assert_allclose(best, np.array(ends)[:, None] * np.ones(100))
    assert points_inside(maps, BOXES).all()
    assert energy_inside(maps, BOXES).tolist() == [1.0, 1.0, 1.0]


def test_a_hand_made_example():
    """Two parts at 0.5, one of them high, and one bridge at 0.2."""
    one = torch.zeros(10, 20)
    one[2:6, 2:6] = 1.0
    one[2:6, 10:18] = 0.5
    one[3, 6:10] = 0.2
    truth = torch.tensor([[10.0, 2.0, 18.0, 8.0]])
    best = best_overlaps(one[None], truth, [0.1, 0.3, 0.6])[0]
    # Ends count: the three together, 17 x 5; the right part alone, 9 x 5 of 9 x 7; the left part, apart from the box.
    np.testing.assert_allclose(best, [45 / (85 + 63 - 45), 45 / 63, 0])
    assert choose_thresholds(best[None], [0.1, 0.3, 0.6]) == (0.3, 0.3, 0.3)
    assert largest_box(one, 0.3).tolist() == [10, 2, 18, 6]
    assert largest_box(one, 0.6).tolist() == [2, 2, 6, 6]
    assert largest_box(torch.zeros(4, 4), 0.0) is None
    assert not points_inside(one[None], truth).item()
    assert energy_inside(one[None], truth).item() == pytest.approx(16 / (16 + 16 + 0.8), rel=1e-6)


def flood(places, near):
    """Parts of a set of places by a stack."""
    left, found = set(places), []
    while left:
        stack, part = [left.pop()], set()
        while stack:
            y, x = stack.pop()
            part.add((y, x))
            next_to = {(y + dy, x + dx) for dy, dx in near} & left
            left -= next_to
            stack += next_to
        found.append(part)
    return found


FOUR = [(-1, 0), (1, 0), (0, -1), (0, 1)]
EIGHT = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]


def official_boxes(one, threshold):
    """wsolevaluation, slowly: 8 bits, cv2.threshold, the contours of cv2.findContours with RETR_TREE, boundingRect."""
    height, width = one.shape
    levels = [[int(np.float32(value) * np.float32(255)) for value in row] for row in one.tolist()]
    cut = int(threshold * max(map(max, levels)))
    above = {(y, x) for y in range(height) for x in range(width) if levels[y][x] > cut}
    around = {(y, x) for y in range(-1, height + 1) for x in range(-1, width + 1)} - above
    contours = flood(above, EIGHT)
    for hole in flood(around, FOUR):
        if (-1, -1) not in hole:  # Suzuki and Abe: its border are the pixels of the foreground next to it
            contours.append({(y + dy, x + dx) for y, x in hole for dy, dx in FOUR} & above)
    boxes = []
    for contour in contours:
        ys, xs = zip(*contour, strict=True)
        boxes.append([min(xs), min(ys), min(max(xs) + 1, width - 1), min(max(ys) + 1, height - 1)])
    return sorted(boxes) or [[0, 0, 0, 0]]


def official_iou(a, b):
    """Its calculate_multiple_iou for two boxes, of which the known one is cut to whole pixels before."""
    b = [int(value) for value in b]
    width, height = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return shared / (sum(areas) - shared)


@pytest.mark.parametrize("kind", ["noise", "blobs", "islands", "nothing"])
def test_boxes_and_overlaps_are_those_of_the_official_code(kind):
    one = torch.rand(12, 15, generator=torch.Generator().manual_seed(0))
    if kind == "blobs":
        one = torch.nn.functional.avg_pool2d(one[None], 3, 1, 1)[0]
    one = (one - one.min()) / (one.max() - one.min())
    if kind == "islands":  # a part in a hole of a part that touches the edge of the map
        one = torch.zeros(12, 15)
        one[2:11, 0:13], one[3:9, 2:10], one[5:7, 4:7] = 1.0, 0.0, 0.8
    one = one * (kind != "nothing")
    rows, boxes = boxes_at(one, THRESHOLDS)
    assert (np.diff(rows) >= 0).all()
    truth = torch.tensor([[2.0, 3.0, 9.5, 8.0], [10.0, 1.0, 14.0, 12.0]])
    for index in range(0, 100, 7):
        expected = official_boxes(one, THRESHOLDS[index])
        assert sorted(boxes[rows == index].astype(int).tolist()) == expected
        slow = max(official_iou(box, other) for box in expected for other in truth.tolist())
        assert best_overlaps(one[None], [truth], [THRESHOLDS[index]])[0, 0] == pytest.approx(slow)
    if kind == "islands":
        assert len(official_boxes(one, 0.5)) == 3


def test_overlaps_are_those_of_the_official_code():
    draw = torch.Generator().manual_seed(0)
    first, second = (torch.randint(0, 10, (9, 4), generator=draw).double() for _ in range(2))
    for boxes in (first, second):
        boxes[:, 2:] += boxes[:, :2]
    second += 0.75
    slow = [[official_iou(a, b) for b in second.tolist()] for a in first.tolist()]
    np.testing.assert_allclose(overlaps(first.numpy(), second.numpy()), slow)


def test_several_boxes_the_best_counts():
    maps = box_maps(BOXES[:1])
    both = [torch.stack([BOXES[2], BOXES[0]])]
    assert best_overlaps(maps, both, [0.5]).item() == 1
    assert points_inside(maps, both).item()
    assert energy_inside(maps, both).item() == 1
    twice = [torch.stack([BOXES[0], BOXES[0]])]  # boxes that cover each other are counted once
    assert energy_inside(maps, twice).item() == 1
    assert best_overlaps(maps, [BOXES[2:]], [0.5]).item() == 0


def test_thresholds_are_chosen_for_each_overlap():
    best = np.array([[0.35, 0.1, 0.8], [0.35, 0.55, 0.1], [0.4, 0.6, 0.1]])
    assert choose_thresholds(best, [0.2, 0.4, 0.6]) == (0.2, 0.4, 0.6)


def test_pointing_has_a_tolerance():
    one = torch.zeros(1, 20, 20)
    one[0, 4, 13] = 1.0  # its centre is at x 13.5, y 4.5
    box = torch.tensor([[2.0, 8.0, 10.0, 12.0]])
    away = (3.5**2 + 3.5**2) ** 0.5
    assert [points_inside(one, box, reach).item() for reach in (0, away - 0.01, away + 0.01)] == [False, False, True]
    assert not points_inside(torch.zeros(1, 20, 20), torch.tensor([[0.0, 0.0, 20.0, 20.0]])).item()


def test_energy_counts_pixels_whose_centre_is_inside():
    even = torch.ones(1, 10, 10)
    assert energy_inside(even, torch.tensor([[0.0, 0.0, 5.0, 4.0]])).item() == pytest.approx(0.2)
    assert energy_inside(even, torch.tensor([[0.6, 0.0, 5.4, 4.0]])).item() == pytest.approx(0.16)
    assert energy_inside(torch.zeros(1, 10, 10), torch.tensor([[0.0, 0.0, 5.0, 4.0]])).item() == 0


def test_correlations_are_those_of_numpy():
    maps = torch.rand(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    maps[2] = 1 - maps[0]
    found = correlations(maps)
    for image in range(4):
        np.testing.assert_allclose(found[image], np.corrcoef(maps[:, image].flatten(1).numpy()), atol=1e-6)
    np.testing.assert_allclose(found[:, 0, 2], -1, atol=1e-6)
    maps[1, 0] = 0.5
    assert correlations(maps)[0, 1].isnan().all()


@pytest.mark.parametrize("size", [(20, 20), (21, 13), (56, 56)])
def test_the_centre_map_holds_centred_boxes(size):
    pyramid = centre_map(size)
    assert pyramid.min() == 0
    assert pyramid.max() == 1
    rows, boxes = boxes_at(pyramid, THRESHOLDS)
    assert rows.tolist() == list(range(100))  # one box each
    inside = (boxes[:, :2] > 0).all(1)  # a box that ends with the map ends a pixel before
    assert inside.any()
    np.testing.assert_allclose((boxes[:, 0] + boxes[:, 2])[inside], size[1])
    np.testing.assert_allclose((boxes[:, 1] + boxes[:, 3])[inside], size[0])


def test_the_centre_box_is_right_about_centred_boxes():
    truth = torch.tensor([[8.0, 8.0, 12.0, 12.0]] * 3)
    thresholds, found, pointing, energy = centre_scores((20, 20), truth, truth)
    assert found == (1.0, 1.0, 1.0)
    assert pointing == 1
    assert energy == pytest.approx(16 / foreground(centre_map((20, 20)), thresholds[1:2]).sum())
    aside = torch.tensor([[0.0, 0.0, 4.0, 4.0]] * 3)
    assert centre_scores((20, 20), aside, truth)[1:] == ((0.0, 0.0, 0.0), 0.0, 0.0)
