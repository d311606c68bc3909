"""Statistical significance of the difference of two accuracies."""

from __future__ import annotations

from metamixer.core.text import counted

LEVEL = 0.05
"""The largest p-value that counts as significant."""


def chance_range(accuracy: float, images: int, *, up: bool = True) -> float | None:
    """The smallest difference from ``accuracy`` that is significant in Fisher's exact test, as a share.

    The two networks are assumed independent, each with its number of correct predictions on the same number of images.
    The test is valid for any number of images, while a normal approximation is too optimistic for few.

    Args:
        accuracy: accuracy of the first network, as a share.
        images: number of images.
        up: whether the second network is better or worse.

    Returns:
        None if no difference is significant with this number of images.

    >>> chance_range(0.5, 6), round(chance_range(0.5, 1000), 3)
    (None, 0.045)
    """
    from scipy.stats import fisher_exact

    right = round(accuracy * images)

    def significant(more: int) -> bool:
        other = right + more if up else right - more
        return bool(fisher_exact([[right, images - right], [other, images - other]]).pvalue < LEVEL)

    low, high = 0, images - right if up else right
    if not high or not significant(high):
        return None
    while high - low > 1:  # the p-value falls as the counts move apart
        middle = (low + high) // 2
        low, high = (low, middle) if significant(middle) else (middle, high)
    return high / images


def may_be_chance(first: float, second: float, images: int) -> bool:
    """Whether Fisher's exact test finds no significant difference of two accuracies on the same number of images.

    >>> may_be_chance(0.5, 0.52, 1000), may_be_chance(0.5, 0.6, 1000)
    (True, False)
    """
    from scipy.stats import fisher_exact

    rights = [round(share * images) for share in (first, second)]
    return bool(fisher_exact([[right, images - right] for right in rights]).pvalue >= LEVEL)


def chance_note(accuracy: float, baseline: float, images: int) -> str:
    """A note on the significance of the difference of two accuracies on the same number of images, with one seed.

    >>> chance_note(0.17, 0.5, 6)
    'on 6 images and with one seed, any such difference may be chance'
    """
    least = chance_range(baseline, images, up=accuracy >= baseline)
    less = "any such difference" if least is None else f"under {100 * least:.1f}"
    return f"on {counted(images, 'image')} and with one seed, {less} may be chance"
