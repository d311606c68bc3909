"""Images with labels: standard sets, folders and Hugging Face data sets, and batches of them."""

from metamixer.data.augment import Augment, normalise
from metamixer.data.class_sampling import CompanionTable, limit_per_class, split
from metamixer.data.errors import DataError, ImageError, WorkerError
from metamixer.data.files.folder_check import FileCheck, FolderCheck, check
from metamixer.data.files.folder_images import FolderImages
from metamixer.data.files.image_file import read_header, read_image
from metamixer.data.image_set import ImageSet, TensorImages, statistics
from metamixer.data.label_noise import with_label_noise
from metamixer.data.load import DATASETS, load
from metamixer.data.loader import EvalLoader, TrainLoader
from metamixer.data.splits import Data

__all__ = [
    "load",
    "check",
    "read_image",
    "read_header",
    "DATASETS",
    "Data",
    "ImageSet",
    "TensorImages",
    "FolderImages",
    "TrainLoader",
    "EvalLoader",
    "Augment",
    "normalise",
    "statistics",
    "split",
    "limit_per_class",
    "with_label_noise",
    "CompanionTable",
    "FolderCheck",
    "FileCheck",
    "DataError",
    "ImageError",
    "WorkerError",
]
