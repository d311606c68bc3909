"""A trained classifier: a network, or an ensemble, with its classes and preprocessing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from metamixer.config.weights import FORMAT
from metamixer.core import trusted_imports
from metamixer.core.types import logits_of
from metamixer.data import DataError, normalise
from metamixer.data.files.image_file import WHITE, Fit
from metamixer.data.files.preparation import ImageInput, Preparation, each
from metamixer.models.factory import build

if TYPE_CHECKING:
    from metamixer.config.data_section import DataSection
    from metamixer.data import Data

_Count = Annotated[int, Field(ge=1, le=100_000)]


class _Architecture(BaseModel):
    name: str
    options: dict[str, Any]


class Preprocessing(BaseModel):
    """The preprocessing in the metadata of a file."""

    channels: Annotated[int, Field(ge=1, le=1000)]
    size: tuple[_Count, _Count]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: Fit = "crop"
    white: Annotated[int, Field(ge=1, le=WHITE)] = WHITE
    bits: Literal[8, 16] = 8

    @model_validator(mode="after")
    def _of_each_channel(self) -> Preprocessing:
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError("mean and std need a number for each channel")
        return self


class _Description(BaseModel):
    """The metadata of a file, validated because files are not trusted."""

    architecture: _Architecture
    classes: tuple[str, ...] = Field(min_length=1, max_length=1_000_000)
    preprocessing: Preprocessing
    facts: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Classifier:
    """A network for image classification, with its classes and preprocessing.

    It is saved as a plain safetensors file: ``safetensors.torch.load_file`` returns the state dict, and the metadata
    describe the network and the preprocessing as JSON.

    Args:
        network: network in evaluation mode; ``(B, C, H, W)`` normalised images -> ``(B, classes)`` logits.
        name, options: arguments of :func:`metamixer.models.build`; the name of several peers in one file is
            ``ensemble``.
        classes: names of the classes, in the order of the logits.
        channels, size: number of channels, and height and width in pixels, of the images.
        mean, std: mean and standard deviation of each channel, 255 = 1.
        facts: origin of the network: data, method, validation accuracy.
        fit, white, bits: see :class:`~metamixer.data.files.preparation.Preparation`.
    """

    network: nn.Module
    name: str
    options: dict[str, Any]
    classes: tuple[str, ...]
    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    facts: dict[str, Any]
    fit: Fit = "crop"
    white: int = WHITE
    bits: int = 8

    @property
    def preparation(self) -> Preparation:
        """The preparation of images for the network."""
        return Preparation(self.channels, self.size, self.fit, self.white, self.bits)

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the file, as strings: the format, and JSON."""
        described = {
            "architecture": {"name": self.name, "options": self.options},
            "classes": self.classes,
            "preprocessing": {
                "channels": self.channels,
                "size": self.size,
                "mean": self.mean,
                "std": self.std,
                **({"fit": self.fit} if self.fit != "crop" else {}),
                **({"white": self.white} if self.white != WHITE else {}),
                **({"bits": self.bits} if self.bits != 8 else {}),
            },
            "facts": self.facts,
        }
        return {"format": FORMAT, **{key: json.dumps(value) for key, value in described.items()}}

    def save(self, path: Path) -> None:
        """Write weights and metadata to a ``.safetensors`` file, atomically."""
        partial = path.with_name(path.name + ".tmp")
        safetensors.torch.save_model(self.network, str(partial), metadata=self.metadata)
        partial.replace(path)

    @classmethod
    def trained_on(
        cls,
        data: Data,
        section: DataSection,
        network: nn.Module,
        name: str,
        options: dict[str, Any],
        facts: dict[str, Any],
    ) -> Classifier:
        """A classifier with the classes and the preprocessing of its training data."""
        return cls(
            network=network,
            name=name,
            options=options,
            classes=data.classes,
            channels=data.channels,
            size=data.size,
            mean=tuple(data.mean),
            std=tuple(data.std),
            facts=facts,
            fit=section.fit,
            white=section.white,
            bits=section.bits,
        )

    @classmethod
    def load(cls, path: str | Path, *, allow_imports: bool = False) -> Classifier:
        """Load a file written by :meth:`save`.

        Args:
            path: the file, or a run folder with ``model.safetensors``.
            allow_imports: import code that the file names by ``package.module:Name``. Only for files you trust: the
                code is run.

        Raises:
            ValueError: it is not such a file, or its network cannot be built.
        """
        path = model_file(Path(path))
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
        except (OSError, safetensors.SafetensorError) as error:
            raise ValueError(
                f"{path} cannot be read as a safetensors file ({error}); expected the model.safetensors of a run"
            ) from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is not a classifier of metamixer: its metadata name no format {FORMAT!r}")
        try:
            said = _Description.model_validate({key: json.loads(metadata[key]) for key in _Description.model_fields})
        except (KeyError, ValueError, RecursionError) as error:
            raise ValueError(f"{path}: its metadata do not describe a network: {_short(error)}") from error
        name, options = said.architecture.name, said.architecture.options
        preprocessing = said.preprocessing
        if allow_imports:
            trusted_imports.allow(*trusted_imports.named_in([name, options]))
        try:
            network = build(
                name,
                num_classes=len(said.classes),
                in_channels=preprocessing.channels,
                image_size=preprocessing.size,
                **_unfetched(name, options),
            )
            safetensors.torch.load_model(network, path)
        except (TypeError, KeyError, AttributeError, RuntimeError, OSError, safetensors.SafetensorError) as error:
            raise ValueError(f"{path}: {name!r} cannot be built with its weights: {_short(error)}") from error
        return cls(
            network=network.eval(),
            name=name,
            options=options,
            classes=said.classes,
            channels=preprocessing.channels,
            size=preprocessing.size,
            mean=preprocessing.mean,
            std=preprocessing.std,
            facts=said.facts,
            fit=preprocessing.fit,
            white=preprocessing.white,
            bits=preprocessing.bits,
        )

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` uint8 images of :attr:`size` -> ``(B, classes)`` float32; rows sum to 1."""
        logits = self.network(normalise(images, self.mean, self.std))
        return logits_of(logits).float().softmax(-1)  # type: ignore[no-any-return]

    def read(self, image: ImageInput) -> Tensor:
        """Prepare an image as in training, ``(C, H, W)`` uint8; ``ImageError`` if it cannot be read."""
        return self.preparation(image)

    def predict(self, images: ImageInput | Sequence[ImageInput], batch_size: int = 64) -> Tensor:
        """Predict probabilities ``(images, classes)`` for one or several images.

        Images are paths, Pillow images, uint8 arrays ``(H, W)`` or ``(H, W, C)``, or uint8 tensors ``(C, H, W)``, of
        any size.
        """
        return predict(self, images, batch_size)


class Predictor(Protocol):
    """A network with the preparation of its images."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the probabilities."""

    def read(self, image: ImageInput) -> Tensor:
        """Prepare an image, ``(C, H, W)`` uint8."""

    def probabilities(self, images: Tensor) -> Tensor:
        """Probabilities: ``(B, C, H, W)`` uint8 -> ``(B, classes)`` float32."""


def predict(model: Predictor, images: ImageInput | Sequence[ImageInput], batch_size: int = 64) -> Tensor:
    """Probabilities ``(images, classes)`` float32; ``ImageError`` names an image that cannot be read."""
    inputs = each(images)
    parts = [
        model.probabilities(torch.stack([model.read(image) for image in inputs[start : start + batch_size]]))
        for start in range(0, len(inputs), batch_size)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, len(model.classes))


def model_file(path: Path) -> Path:
    """The file of a network: the path itself, or the file in the folder of a run or an export.

    Raises:
        DataError: there is no such file.
    """
    if path.is_dir():
        found = next((path / name for name in ("model.safetensors", "model.onnx") if (path / name).is_file()), None)
        if found is None:
            why = "its training has not ended" if (path / "recipe.yaml").is_file() else "it is not a run"
            raise DataError(f"{path} has no model.safetensors: {why}")
        return found
    accepted = "a run's folder, a .safetensors or an .onnx file is accepted"
    if not path.exists():
        raise DataError(f"{path}: no such file; {accepted}")
    if path.suffix in (".pt2", ".pt", ".pth", ".ckpt", ".bin", ".pkl"):
        how = ", torch.export.load is for them" if path.suffix == ".pt2" else ""
        raise DataError(f"{path}: {path.suffix} files are not read here{how}; {accepted}")
    return path


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _unfetched(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options without ``pretrained``, also for members of an ensemble, because the weights are in the file."""
    kept = {key: value for key, value in options.items() if key != "pretrained"}
    if name == "ensemble":
        kept["members"] = [
            {"name": one["name"], "options": _unfetched(one["name"], one.get("options", {}))} for one in kept["members"]
        ]
    return kept
