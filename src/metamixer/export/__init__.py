"""Export a run for other systems: safetensors, ONNX, torch.export, and the Hugging Face Hub.

>>> from metamixer.export import export  # doctest: +SKIP
>>> export("runs/photos", peer="ensemble", to="onnx").path  # doctest: +SKIP
PosixPath('runs/photos/export/ensemble/model.onnx')
"""

from metamixer.export.errors import ExportError
from metamixer.export.export import Exported, export
from metamixer.export.onnx_file import OnnxClassifier
from metamixer.export.select_network import Chosen, choose

__all__ = ["Chosen", "ExportError", "Exported", "OnnxClassifier", "choose", "export"]
