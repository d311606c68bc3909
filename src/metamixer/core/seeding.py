"""Seeds: every random decision has a seed derived from its purpose.

No generator state is saved. A run that resumes after step 1,000 draws step 1,001 from ``generator(seed, "mix", 1001)``,
exactly as an uninterrupted run does. Saving the states of all generators instead would fail with worker processes,
skipped batches or additional draws.
"""

from __future__ import annotations

from hashlib import blake2b

import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed that depends on ``seed`` and on every part of ``purpose``.

    >>> derive(0, "order", 3) == derive(0, "order", 3), derive(0, "order", 3) == derive(0, "order", 4)
    (True, False)
    """
    # int(): NumPy's integers mean the same number but print differently.
    parts = [part if isinstance(part, str) else int(part) for part in purpose]
    text = repr((int(seed), *parts)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator seeded by :func:`derive`: the draws do not depend on the training device."""
    return torch.Generator().manual_seed(derive(seed, *purpose))
