"""A classifier as a model of the Hugging Face Hub: ``save_pretrained``, ``from_pretrained``, ``push_to_hub``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metamixer.core.types import logits_of
from metamixer.data import normalise
from metamixer.data.files.image_file import WHITE, Fit
from metamixer.export.model_card import for_classifier
from metamixer.models.factory import build
from metamixer.runs.classifier import Classifier

try:
    from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
except ImportError as error:
    raise ImportError("metamixer.export.hub needs huggingface_hub: pip install 'metamixer[hub]'") from error

_WEIGHTS = "model.safetensors"


class HubClassifier(nn.Module, PyTorchModelHubMixin, library_name="metamixer"):  # type: ignore[misc,call-arg]
    """``(B, C, H, W)`` uint8 images of ``size`` -> ``(B, classes)`` float32 logits.

    The folder of a model contains ``model.safetensors``, which is the file of a classifier (``Classifier.load`` and
    ``metamixer predict`` read it), ``config.json`` and the model card. Your own network is named by its import path,
    and is imported when the model is loaded if ``metamixer.core.trusted_imports.allow("module:Name")`` was called.

    Args:
        name: name of the network for :func:`metamixer.models.build`.
        classes: names of the classes, in the order of the logits.
        channels, size: number of channels, and height and width in pixels, of the images.
        mean, std: mean and standard deviation of each channel, 255 = 1.
        options: options of the network.
        facts: origin of the network.
        network: the network; None: build it with random weights.
    """

    def __init__(
        self,
        name: str,
        classes: list[str],
        channels: int,
        size: list[int],
        mean: list[float],
        std: list[float],
        options: dict[str, Any] | None = None,
        facts: dict[str, Any] | None = None,
        network: nn.Module | None = None,
        fit: Fit = "crop",
        white: int = WHITE,
        bits: int = 8,
    ) -> None:
        super().__init__()
        if network is None:
            sizes = (size[0], size[1])
            network = build(name, num_classes=len(classes), in_channels=channels, image_size=sizes, **(options or {}))
        self.network = network
        self.name, self.options, self.facts = name, options or {}, facts or {}
        self.classes, self.channels, self.size = tuple(classes), channels, (size[0], size[1])
        self.mean, self.std = tuple(mean), tuple(std)
        self.fit, self.white, self.bits = fit, white, bits
        self.card: str | None = None

    @classmethod
    def of(cls, classifier: Classifier, card: str | None = None) -> HubClassifier:
        """Create a model that shares the network of a classifier, with the text of its model card."""
        made = cls(
            name=classifier.name,
            classes=list(classifier.classes),
            channels=classifier.channels,
            size=list(classifier.size),
            mean=list(classifier.mean),
            std=list(classifier.std),
            options=classifier.options,
            facts=classifier.facts,
            network=classifier.network,
            fit=classifier.fit,
            white=classifier.white,
            bits=classifier.bits,
        )
        made.card = card
        return made.eval()

    @property
    def classifier(self) -> Classifier:
        """The network as a classifier, which also reads image files."""
        return Classifier(
            self.network, self.name, self.options, self.classes, self.channels, self.size, self.mean, self.std,
            self.facts, self.fit, self.white, self.bits,
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` uint8 -> ``(B, classes)`` float32 logits."""
        logits: Tensor = logits_of(self.network(normalise(images, self.mean, self.std)))
        return logits.float()

    def generate_model_card(self, *args: Any, **kwargs: Any) -> Any:
        """The given model card, or one generated from the classifier."""
        return ModelCard(self.card or for_classifier(self.classifier))

    def _save_pretrained(self, save_directory: Path) -> None:
        self.classifier.save(save_directory / _WEIGHTS)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str = "cpu",
        strict: bool = True,
        **config: Any,
    ) -> HubClassifier:
        """Load weights and metadata from the same file, so that they always match."""
        path = Path(model_id) / _WEIGHTS
        if not Path(model_id).is_dir():
            path = Path(
                hf_hub_download(
                    repo_id=model_id,
                    filename=_WEIGHTS,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    token=token,
                    local_files_only=local_files_only,
                )
            )
        return cls.of(Classifier.load(path)).to(torch.device(map_location))
