"""Find the stages of any network: the positions where images can be mixed and features compared.

A stage is a sequence of blocks at one resolution. The stem before the first block is not a stage (its output is nearly
the image), and neither is the classifier. The path of a stage, as in ``get_submodule``, is that of the module whose
output ends the stage, so that a forward hook on it sees the input of the next stage.

Stages are found from the structure: the position and order of the weights, and the modules with a stride. A table of
class names would not know new networks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import dropwhile, takewhile

from torch import Tensor, nn

_MOST = 6  # more blocks than this are grouped
_GROUPS = 4  # the number of groups, of equal size
_POINTWISE = tuple(
    f"torch.nn.modules.{kind}" for kind in ("activation", "batchnorm", "normalization", "instancenorm", "dropout")
)
_FLAT = (nn.Flatten, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d)

Blocks = Sequence[tuple[str, nn.Module]]


class StagesNotFound(ValueError):
    """No stages were found in a network, or a given path does not exist."""


def find_stages(network: nn.Module) -> tuple[str, ...]:
    """The paths of the modules where the stages of a network end, in order of execution.

    These are tried in order, from the network inwards: its attribute ``stage_paths``; numbered children with most of
    the layers (``layer1 .. layer4``); the ``nn.Sequential`` or ``nn.ModuleList`` with most of the layers; timm's
    ``feature_info``; numbered convolutions (``conv1, conv2``; these stages end before the activation).

    Up to four blocks are one stage each. More blocks are joined into stages of one resolution. If the resolution never
    decreases, as in a ViT, up to six blocks are one stage each. More than six stages are grouped evenly into four.

    Only the structure is read; the network does not run. The caller has to check that each path is called once in a
    forward pass and returns a tensor, or a tuple that begins with one.

    Raises:
        StagesNotFound: no stages were found; the message lists paths to choose from.

    >>> from metamixer.models import resnet20
    >>> find_stages(resnet20())
    ('stage1', 'stage2', 'stage3')
    >>> layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
    >>> find_stages(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)))
    ('1', '5')
    """
    last = [module for module in network.modules() if _has_weight(module)][-1:]
    found = _search(network, last) or _numbered(network, _before_the_head(network, last), least=1)
    if not found:
        inside = [(path, m) for path, m in network.named_modules() if path and _depth(m)]
        inside.sort(key=lambda block: block[0].count("."))
        shown = ", ".join(f"{path!r} ({type(m).__name__})" for path, m in inside[:8])
        raise StagesNotFound(
            f"no stages found in {type(network).__name__}; pass stages=[...] with the paths of the modules where "
            f"they end, from {shown or 'its modules (it has none with weights)'}"
        )
    return tuple(found)


def check_stages(network: nn.Module, paths: Iterable[str]) -> tuple[str, ...]:
    """The paths as a tuple, checked to name modules inside the network.

    Raises:
        StagesNotFound: a path does not exist; the message names the first one and similar paths.
    """
    paths = tuple(paths)
    known = {path: None for path, _ in network.named_modules(remove_duplicate=False) if path}
    for path in paths:
        if path not in known:
            near = get_close_matches(path, known, n=5) or sorted(known, key=lambda each: each.count("."))[:8]
            raise StagesNotFound(f"{path!r} is not a module of {type(network).__name__}; {', '.join(near)}")
    if not paths:
        raise StagesNotFound(f"stages=[] names no stage of {type(network).__name__}; leave stages out to find them")
    return paths


def _search(node: nn.Module, last: list[nn.Module]) -> list[str]:
    """The ends of the stages inside ``node``, as paths relative to it; empty if there are none."""
    # not getattr(node, ...): a compiled network forwards the attributes of the wrapped network, whose paths differ
    if stated := vars(node).get("stage_paths") or getattr(type(node), "stage_paths", None):
        return list(check_stages(node, stated))
    blocks = _before_the_head(node, last)
    chained = isinstance(node, nn.Sequential | nn.ModuleList)
    wraps_one = isinstance(node, nn.Sequential) and sum(_depth(m) > 1 for _, m in blocks) == 1
    if chained and not wraps_one:
        return _cut(blocks)
    if not chained and (numbered := _numbered(node, blocks, least=2)):
        return numbered
    for path, trunk in sorted(blocks, key=lambda block: -_depth(block[1]))[:1]:
        if _holds_most(blocks, [(path, trunk)]) and (inside := _search(trunk, last)):
            return [f"{path}.{each}" for each in inside]
    if chained:
        return _cut(blocks)
    info = getattr(node, "feature_info", None) or ()
    modules = dict(node.named_modules())
    named = [entry.get("module", "") for entry in getattr(info, "info", info)]
    known = dict.fromkeys(path for path in named if path in modules)
    return list(dropwhile(lambda path: _depth(modules[path]) < 2, known))  # leading entries with one layer are the stem


def _before_the_head(node: nn.Module, last: list[nn.Module]) -> Blocks:
    """The children before the classifier, which has the last weight of the network or follows a Flatten."""
    children: list[tuple[str, nn.Module]] = []
    for path, child in node.named_children():
        weighted = any(_depth(m) for _, m in children)
        if isinstance(node, nn.Sequential) and weighted and isinstance(child, _FLAT):
            break
        is_last = any(module in last for module in child.modules())
        small = _depth(child, least=3) < 2 and _depth(child) <= max(3, _depth(node) // 2)
        if is_last and small and (weighted or _has_weight(child)):
            break
        children.append((path, child))
    return children


def _numbered(node: nn.Module, blocks: Blocks, least: int) -> list[str]:
    """Numbered children with one name and most of the layers: ``layer1 .. layer4``, ``mixed_5b .. mixed_7c``."""
    families: dict[str, list[tuple[int, str, str, nn.Module]]] = {}
    for path, module in blocks:
        match = re.fullmatch(r"(.*\D)(\d+)([a-z]?)", path)
        if match and _depth(module, least=3 if least == 1 else 2) >= least:
            families.setdefault(match[1], []).append((int(match[2]), match[3], path, module))
    largest = max(families.values(), key=lambda family: sum(_depth(row[3]) for row in family), default=[])
    chain = [(path, module) for _, _, path, module in sorted(largest, key=lambda row: row[:2])]
    if least > 1 and (len(chain) < 2 or not _holds_most(blocks, chain)):
        return []
    return _cut(chain)


def _cut(chain: Blocks) -> list[str]:
    """The ends of the stages of a chain of modules: the last block before each decrease of the resolution."""
    least = 2 if any(_depth(m) > 1 for _, m in chain) else 1  # among blocks, a single layer is a stem or transition
    runs: list[list[int]] = []
    fallen = True
    for i, (_, module) in enumerate(chain):
        fallen |= _is_strided(module)
        if _depth(module) >= least:
            runs += [[]] if fallen else []
            runs[-1].append(i)
            fallen = False
        elif runs and runs[-1][-1] == i - 1 and not fallen and _is_pointwise(module):
            runs[-1][-1] = i
    if not runs:
        return []
    tail = chain[runs[-1][-1] + 1 :]  # a final convolution before pooling belongs to the last stage
    runs[-1][-1] += sum(1 for _ in takewhile(lambda b: _belongs(b[1]) and not _is_strided(b[1]), tail))
    every = [end for run in runs for end in run]
    few = len(every) <= _GROUPS and least > 1  # up to four blocks are meant as stages
    ends = every if few or len(runs) == 1 else [run[-1] for run in runs]
    if len(ends) > _MOST:
        ends = [ends[group * len(ends) // _GROUPS - 1] for group in range(1, _GROUPS + 1)]
    return [_called(*chain[end]) for end in ends]


def _called(path: str, module: nn.Module) -> str:
    """The path itself, or for a list, which is never called and never runs a hook, the path of its last entry."""
    while isinstance(module, nn.ModuleList) and len(module):
        path, module = f"{path}.{len(module) - 1}", module[-1]
    return path


def _holds_most(blocks: Blocks, part: Blocks) -> bool:
    """Whether the part has at least three times as many layers as there are convolutions outside it."""
    paths = [path for path, _ in part]
    outside = sum(_depth(module, least=3) for path, module in blocks if path not in paths)
    return 3 * outside <= sum(_depth(module) for _, module in part)


def _has_weight(module: nn.Module, least: int = 2) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim >= least


def _depth(module: nn.Module, least: int = 2) -> int:
    """The number of layers inside whose weight has at least ``least`` axes: 2 excludes norms, 3 linear layers too."""
    return sum(_has_weight(each, least) for each in module.modules())


def _is_strided(module: nn.Module) -> bool:
    strides = [getattr(each, "stride", 1) for each in module.modules()]
    steps = [step for stride in strides for step in (stride if isinstance(stride, tuple | list) else [stride])]
    return any(isinstance(step, int) and step > 1 for step in steps)


def _belongs(module: nn.Module) -> bool:
    return _depth(module) > 0 or _is_pointwise(module)


def _is_pointwise(module: nn.Module) -> bool:
    return any(base.__module__ in _POINTWISE for base in type(module).__mro__)
