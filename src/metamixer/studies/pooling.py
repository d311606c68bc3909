"""Pool differences between rows over an axis, such as all data sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metamixer.studies.statistics import Pooled, differences, pooled
from metamixer.studies.study_file import Row, Study, fits

Values = Mapping[Row, Mapping[int, Mapping[str, float]]]
"""Metrics of runs by row, seed and name."""


@dataclass(frozen=True)
class Comparison:
    """A row compared with another over the names of an axis.

    Args:
        row, against: names of both rows on the other axes.
        strata: number of names of the axis that the study has for both.
        differences: pooled differences by metric.
    """

    row: Row
    against: Row
    strata: int
    differences: Mapping[str, Pooled]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "row": dict(self.row),
            "against": dict(self.against),
            "strata": self.strata,
            "differences": {name: vars(found) for name, found in self.differences.items()},
        }


def compare(study: Study, values: Values) -> tuple[Comparison, ...]:
    """Compute the comparisons of ``pool`` in the study file; those with rows that the study lacks are left out.

    Args:
        study: the study.
        values: metrics of finished runs.
    """
    pool = study.content.pool
    if pool is None:
        return ()
    found = []
    rows = dict.fromkeys(tuple(pair for pair in row if pair[0] != pool.over) for row in study.rows)
    for row in (each for each in rows if fits(each, pool.of)):
        for names in pool.against:
            against = tuple((axis, names.get(axis, name)) for axis, name in row)
            pairs = [
                (one, other)
                for one in study.rows
                if tuple(pair for pair in one if pair[0] != pool.over) == row
                and (other := tuple((axis, names.get(axis, name)) for axis, name in one)) in study.rows
            ]
            if against == row or not pairs:
                continue
            made = {}
            for metric in study.content.compared:
                strata = [
                    differences(_by_seed(values, one, metric), _by_seed(values, other, metric)) for one, other in pairs
                ]
                if (apart := pooled(strata, study.content.confidence)) is not None:
                    made[metric] = apart
            found.append(Comparison(row, against, len(pairs), made))
    return tuple(found)


def _by_seed(values: Values, row: Row, metric: str) -> dict[int, float]:
    return {seed: found[metric] for seed, found in values.get(row, {}).items() if metric in found}
