from pathlib import Path

import pytest
from PIL import Image

from metamixer.data.errors import DataError
from metamixer.data.files.folder_check import check


@pytest.fixture
def damaged(class_folders):
    """Two classes of three images; one is empty, one cut off, one text; and a grey one of another size."""
    root = class_folders(count=3)
    (root / "cat" / "1.png").write_bytes(b"")
    path = root / "dog" / "0.png"
    path.write_bytes(path.read_bytes()[:-30])
    (root / "dog" / "3.jpg").write_text("no image")
    Image.new("L", (5, 7)).save(root / "dog" / "4.png")
    (root / "dog" / "note.txt").touch()
    return root


def test_every_file_is_looked_at(damaged):
    found = check(damaged)
    assert found.classes == ("cat", "dog")
    assert [(file.label, file.path.name, file.code, file.shape) for file in found.files] == [
        ("cat", "0.png", "ok", (3, 8, 8)),
        ("cat", "1.png", "empty", None),
        ("cat", "2.png", "ok", (3, 8, 8)),
        ("dog", "0.png", "broken", None),
        ("dog", "1.png", "ok", (3, 8, 8)),
        ("dog", "2.png", "ok", (3, 8, 8)),
        ("dog", "3.jpg", "not-an-image", None),
        ("dog", "4.png", "ok", (1, 7, 5)),
    ]
    assert {file.split for file in found.files} == {"all"}
    assert [file.path.name for file in found.bad] == ["1.png", "0.png", "3.jpg"]
    assert all(file.cause and str(file.path) not in file.cause for file in found.bad)
    assert found.counts == {("all", "cat"): 2, ("all", "dog"): 3}
    assert [path.name for path in found.ignored] == ["note.txt"]


def test_splits(class_folders):
    class_folders(count=2, part="train")
    root = class_folders(count=1, part="test")
    assert check(str(root)).counts == {
        ("train", "cat"): 2, ("train", "dog"): 2, ("test", "cat"): 1, ("test", "dog"): 1,
    }  # fmt: skip
    as_classes = check(root, "classes")
    assert as_classes.classes == ("test", "train")
    assert as_classes.counts == {("all", "train"): 4, ("all", "test"): 2}


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match="nothing"):
        check(Path(tmp_path / "nothing"))
