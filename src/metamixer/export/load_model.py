"""Load trained networks from runs or exported files, and predict images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from metamixer.config.yaml_file import RecipeError
from metamixer.core import trusted_imports
from metamixer.data import DataError
from metamixer.data.files.preparation import ImageInput, is_one
from metamixer.export.onnx_file import OnnxClassifier
from metamixer.runs.classifier import Classifier, model_file, predict


@dataclass(frozen=True)
class Prediction:
    """The predicted class of an image, its probability, and the probabilities of all classes, the largest first."""

    label: str
    probability: float
    probabilities: dict[str, float]


@dataclass(frozen=True, eq=False)
class Model:
    """A trained network. ``classifier`` returns tensors instead of class names."""

    classifier: Classifier | OnnxClassifier

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the outputs of the network."""
        return self.classifier.classes

    @overload
    def predict(self, images: ImageInput, batch_size: int = 64) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, images: Sequence[ImageInput], batch_size: int = 64) -> list[Prediction]: ...
    def predict(self, images: ImageInput | Sequence[ImageInput], batch_size: int = 64) -> Prediction | list[Prediction]:
        """Predict classes and probabilities.

        Args:
            images: one or several images of any size: paths, contents of files, Pillow images, uint8 arrays ``(H, W)``
                or ``(H, W, C)``, uint8 tensors ``(C, H, W)``, or batches of arrays or tensors.
            batch_size: number of images per batch.

        Returns:
            One prediction for one image, a list for several.

        Raises:
            ImageError: an image cannot be read.
        """
        found = []
        for row in predict(self.classifier, images, batch_size):
            order = row.argsort(descending=True, stable=True).tolist()
            shares = {self.classes[label]: float(row[label]) for label in order}
            found.append(Prediction(self.classes[order[0]], float(row[order[0]]), shares))
        return found[0] if is_one(images) else found


def load(path: str | Path, *, allow_imports: bool = False) -> Model:
    """Load the network of a finished run, or a ``.safetensors`` or ``.onnx`` file that metamixer wrote.

    Args:
        path: the run folder or the file.
        allow_imports: import code that the file names by ``package.module:Name``. Only for files you trust: the code is
            run.

    Raises:
        DataError: the file does not exist or has no such network.
        RecipeError: a required package is not installed.

    Example::

        model = metamixer.load("runs/photos")
        model.predict("cat.jpg").label
    """
    file = model_file(Path(path))
    try:
        if file.suffix == ".onnx":
            return Model(OnnxClassifier.load(file))
        return Model(Classifier.load(file, allow_imports=allow_imports))
    except (RecipeError, DataError, trusted_imports.ImportRefused):
        raise
    except (ValueError, KeyError, RuntimeError) as error:
        raise DataError(str(error)) from error
