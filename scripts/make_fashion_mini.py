"""Makes the bundled set from the four files of Fashion-MNIST, the same byte for byte every time.

    python scripts/make_fashion_mini.py FOLDER [OUTPUT.npz]

FOLDER holds the four idx .gz files. An image is chosen by the hash of its position, so the choice depends on
no library's random numbers. The SHA-256 that is printed belongs into src/metamixer/data/sources/fashion_mini.py.
"""

import sys
import zipfile
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np

from metamixer.core.seeding import derive
from metamixer.data.sources.fashion_mini import FILE
from metamixer.data.sources.idx import FILES, read_idx

PER_CLASS = {"train": 600, "test": 100}


def choose(labels, per_class, part):
    """The positions of the chosen images, ascending."""
    chosen = []
    for label in range(10):
        rows = np.flatnonzero(labels == label).tolist()
        chosen += sorted(rows, key=lambda row: derive(0, "fashion-mini", part, row))[:per_class]
    return np.array(sorted(chosen))


def pack(arrays):
    """A .npz file with fixed dates; numpy's own writer leaves date and compression level to the Python version."""
    output = BytesIO()
    with zipfile.ZipFile(output, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3
            content = BytesIO()
            np.lib.format.write_array(content, array, version=(1, 0), allow_pickle=False)
            archive.writestr(entry, content.getvalue(), compresslevel=9)
    return output.getvalue()


def make(folder: Path) -> bytes:
    """The content of the bundled file."""
    arrays = {}
    for part, per_class in PER_CLASS.items():
        images, labels = (read_idx(folder / name, d) for name, d in zip(FILES[part], (3, 1), strict=True))
        rows = choose(labels, per_class, part)
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = images[rows], labels[rows]
        arrays[f"{part}_rows"] = rows.astype(np.uint16)  # where each stood in the full set
    return pack(arrays)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    content = make(Path(sys.argv[1]))
    output = Path(sys.argv[2]) if len(sys.argv) == 3 else FILE
    output.write_bytes(content)
    print(f"{sha256(content).hexdigest()}  {output.name}  {len(content):,} bytes")
