"""Build networks by name: bundled networks for small images, and those of timm, torchvision or your own code.

>>> import torch
>>> build("resnet20", num_classes=100, in_channels=1)(torch.zeros(2, 1, 28, 28)).shape
torch.Size([2, 100])
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from difflib import get_close_matches
from typing import Any

from torch import nn

from metamixer.core import trusted_imports as imports
from metamixer.models import MODELS
from metamixer.models.ensemble import build_ensemble
from metamixer.models.offline import cached_weights_only, hub_is_reachable

# Options that read weights from any file or address, in some versions with pickle.
_REFUSED = {
    "timm": ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"),
    "torchvision": ("weights", "weights_backbone", "pretrained", "pretrained_backbone"),
}
_INSTEAD = "expected weights from a .safetensors file, as in a peer's 'weights: FILE.safetensors'"
_OTHERS = "'timm:NAME', 'torchvision:NAME', 'package.module:callable'"


class UnknownModel(ValueError):
    """There is no network of that name, or it cannot be built with the given options."""


def names() -> list[str]:
    """The names of the bundled networks."""
    return list(MODELS)


def build(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: tuple[int, int] | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network by name, with random weights unless the options say otherwise.

    Args:
        name: a bundled network (``names()``), ``timm:NAME``, ``torchvision:NAME``, or ``package.module:callable``
            for your own function or class. That is called with ``num_classes``, with ``in_channels`` (it may lack this
            parameter if the value is 3), and with ``image_size`` if it has a parameter of that name. ``ensemble``
            combines several networks, ``members=[{"name": ..., "options": {...}}, ...]``. An import path or a network
            on a hub (``timm:hf-hub:…``) has to be allowed first:
            ``metamixer.core.trusted_imports.allow("nets:Net")``. No option allows it, because options come from files.
            An existing network object needs no name: pass it to ``Cohort``.
        num_classes: number of classes.
        in_channels: number of channels of the images.
        image_size: height and width in pixels, for networks that are built for one size (ViT, Swin, ...).
        options: further arguments of the network: ``shortcut="A"``, ``pretrained=True`` (timm), ``drop_rate=0.1``, ...

    Raises:
        UnknownModel: there is no such network; the message lists similar names.
    """
    check_name(name, options)
    source, colon, rest = name.partition(":")
    if name == "ensemble":
        return build_ensemble(build, num_classes=num_classes, in_channels=in_channels, image_size=image_size, **options)
    if not colon:
        check_exists(name)
        network: nn.Module = MODELS[name](num_classes=num_classes, in_channels=in_channels, **options)
        return network
    if source == "timm":
        return _timm(rest, num_classes, in_channels, image_size, options)
    if source == "torchvision":
        return _torchvision(rest, num_classes, in_channels, image_size, options)
    return _import(name, num_classes, in_channels, image_size, options)


def check_name(name: str, options: Mapping[str, Any]) -> None:
    """Refuse names and options that would run or unpickle code without consent. Does not check that the name exists.

    Raises:
        UnknownModel: the name or an option is refused; the message says what is accepted.
    """
    source, colon, rest = name.partition(":")
    if source in _REFUSED and colon:
        for key in _REFUSED[source]:
            if options.get(key):
                raise UnknownModel(f"{name!r} takes no {key!r} here; {_INSTEAD}")
    # A network on a hub has a configuration and weights from an unknown author.
    if colon and (source not in _REFUSED or ":" in rest):
        try:
            imports.check(name)
        except imports.ImportRefused as error:
            raise UnknownModel(str(error)) from error
    members = options.get("members")
    for member in members if name == "ensemble" and isinstance(members, list | tuple) else ():
        if isinstance(member, Mapping) and isinstance(member.get("name"), str):
            own = member.get("options")
            check_name(member["name"], own if isinstance(own, Mapping) else {})


def _timm(
    name: str, num_classes: int, in_channels: int, image_size: tuple[int, int] | None, options: dict[str, Any]
) -> nn.Module:
    import timm

    _check_timm(name)
    options = {"in_chans": in_channels, **options}
    if not options.get("pretrained"):
        plain: nn.Module = _sized(timm, name, image_size, {"num_classes": num_classes, **options})
        return plain
    # Built with its own head: timm then loads all tensors or fails; with another head it ignores missing tensors.
    reachable = hub_is_reachable()
    try:
        with nullcontext() if reachable else cached_weights_only():
            network: nn.Module = _sized(timm, name, image_size, options)
    except (OSError, RuntimeError) as error:
        if "state_dict" in str(error):
            said = " ".join(str(error).split())[:300]
            raise UnknownModel(f"{name}: its pretrained weights do not fit it: {said}") from error
        if reachable:
            raise
        raise UnknownModel(
            f"{name}: its pretrained weights are not in the cache, and cannot be downloaded without a connection; "
            "accepted: weights: FILE.safetensors, or pretrained: false"
        ) from error
    if network.num_classes != num_classes:
        network.reset_classifier(num_classes)  # type: ignore[operator]
    return network


def _check_timm(name: str) -> None:
    import timm

    if ":" not in name and not timm.is_model(name):
        raise UnknownModel(f"{name!r} is not in timm; {_near(name, timm.list_models())}")


def takes_image_size(name: str, image_size: Sequence[int], options: Mapping[str, Any]) -> bool:
    """Whether :func:`build` passes the image size to this timm network as the argument ``img_size``."""
    import timm

    name = name.removeprefix("timm:")
    if ":" in name or tuple(timm.get_pretrained_cfg(name).input_size[1:]) == tuple(image_size):
        return False
    try:
        timm.create_model(name, **{**options, "pretrained": False, "img_size": tuple(image_size)})
    except TypeError:
        return False
    return True


def _sized(timm: Any, name: str, image_size: tuple[int, int] | None, options: dict[str, Any]) -> Any:
    usual = None if ":" in name else timm.get_pretrained_cfg(name, allow_unregistered=True)
    if image_size is not None and (usual is None or tuple(usual.input_size[1:]) != tuple(image_size)):
        try:
            return timm.create_model(name, **{"img_size": tuple(image_size), **options})
        except TypeError as error:  # timm does not list the architectures that take a size
            if "img_size" not in str(error):
                raise
    return timm.create_model(name, **options)


def check_exists(name: str) -> None:
    """Refuse an unknown name without building the network. Import paths are not imported.

    Raises:
        UnknownModel: there is no such network; the message lists similar names.
    """
    source, colon, rest = name.partition(":")
    if not colon and name != "ensemble" and name not in MODELS:
        raise UnknownModel(f"{name!r} is not a network; {_near(name, MODELS)} or {_OTHERS}")
    if colon and source == "timm":
        _check_timm(rest)
    if colon and source == "torchvision":
        _check_torchvision(rest)


def _torchvision(
    name: str, num_classes: int, in_channels: int, image_size: tuple[int, int] | None, options: dict[str, Any]
) -> nn.Module:
    from torchvision import models

    _check_torchvision(name)
    if name.startswith("vit_") and image_size is not None:
        if image_size[0] != image_size[1]:
            raise UnknownModel(f"torchvision's {name} takes square images, not {image_size}; 'timm:NAME' does")
        options = {"image_size": image_size[0], **options}
    network: nn.Module = models.get_model(name, **{"weights": None, "num_classes": num_classes, **options})
    if in_channels != 3:
        _replace_first_conv(network, in_channels)
    return network


def _check_torchvision(name: str) -> None:
    from torchvision import models

    if name not in (known := models.list_models(module=models)):
        raise UnknownModel(f"{name!r} is not in torchvision; {_near(name, known)}")


def _replace_first_conv(network: nn.Module, in_channels: int) -> None:
    """Replace the first convolution by one for ``in_channels`` channels, with weights of the same output variance."""
    path, old = next((path, m) for path, m in network.named_modules() if isinstance(m, nn.Conv2d))
    settings = {key: getattr(old, key) for key in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    new = nn.Conv2d(in_channels, old.out_channels, bias=old.bias is not None, **settings)
    spread = float(old.weight.detach().std()) * math.sqrt(old.in_channels / in_channels)
    nn.init.normal_(new.weight, std=spread)
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    network.set_submodule(path, new)


def _import(
    name: str,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int] | None,
    options: dict[str, Any],
) -> nn.Module:
    module, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")]):
        raise UnknownModel(f"{name!r} is not a network; {', '.join(MODELS)} or {_OTHERS}")
    try:
        make = imports.load(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module exists, but one of its own imports does not
        raise UnknownModel(f"{name!r} is not a network: no module {error.name!r}; {_OTHERS}") from None
    except AttributeError:
        if (found := sys.modules.get(module)) is None:
            raise  # raised by the module itself
        raise UnknownModel(f"{name!r} is not a network; {module!r} has {_near(attribute, dir(found))}") from None
    arguments = {"num_classes": num_classes, "in_channels": in_channels, **options}
    parameters = inspect.signature(make).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if "in_channels" not in parameters and not takes_any:
        if in_channels != 3:
            raise UnknownModel(
                f"{name!r} has no parameter 'in_channels', and the images have {in_channels} channels; add one"
            )
        del arguments["in_channels"]
    if "image_size" in parameters and image_size is not None:
        arguments["image_size"] = image_size
    network = make(**arguments)
    if not isinstance(network, nn.Module):
        raise UnknownModel(f"{name!r} made a {type(network).__name__}; a torch.nn.Module is needed")
    return network


def _near(name: str, known: Iterable[str]) -> str:
    """The similar known names, or the first few if there are none."""
    known = [each for each in known if not each.startswith("_")]
    near = get_close_matches(name, known, n=4) or known[:20]
    return ", ".join(near) + (", ..." if len(near) < len(known) else "")
