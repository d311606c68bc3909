"""One image in every form that it may come in: the same pixels."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from metamixer.data.errors import ImageError
from metamixer.data.files.image_file import read_image
from metamixer.data.files.preparation import Preparation, each, is_one

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)


def forms(path):
    """A file, its name and content, Pillow's image, an array and a tensor of the same pixels."""
    image, file = Image.fromarray(PIXELS), BytesIO()
    image.save(file, "PNG")
    path.write_bytes(file.getvalue())
    return [path, str(path), file.getvalue(), image, PIXELS, torch.from_numpy(PIXELS).permute(2, 0, 1)]


@pytest.mark.parametrize("size", [(9, 7), (5, 6)])
@pytest.mark.parametrize("channels", [1, 3])
def test_all_forms_are_the_same_image(size, channels, tmp_path):
    found = [Preparation(channels, size)(form) for form in forms(tmp_path / "x.png")]
    wanted = torch.from_numpy(read_image(tmp_path / "x.png", channels, size))
    assert wanted.shape == (channels, *size)
    for one in found:
        assert torch.equal(one, wanted)
    if (channels, size) == (3, (9, 7)):
        assert np.array_equal(wanted.permute(1, 2, 0).numpy(), PIXELS)


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1)])
def test_grey_arrays(shape):
    grey = PIXELS[..., 0].reshape(shape)
    for form in (
        grey,
        torch.from_numpy(grey.copy()).permute(2, 0, 1) if grey.ndim == 3 else torch.from_numpy(grey.copy()),
    ):
        assert np.array_equal(Preparation(1, (9, 7))(form)[0].numpy(), PIXELS[..., 0])


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (PIXELS.astype(np.float32), r"cat is an array of float32 \(9, 7, 3\); uint8"),
        (torch.zeros(3, 9, 7), r"cat is a tensor of float32 \(3, 9, 7\)"),
        (np.zeros((9, 7, 2), np.uint8), "with 1, 3, 4 channels is accepted"),
        (np.zeros((0, 7, 3), np.uint8), "is accepted"),
        (None, "cat is of NoneType; a path, bytes"),
        (b"no image", "cat"),
    ],
    ids=["float array", "float tensor", "two channels", "empty", "nothing", "text"],
)
def test_what_is_no_image(form, message):
    with pytest.raises(ImageError, match=message):
        Preparation(3, (9, 7))(form, "cat")


def test_one_image_or_several(tmp_path):
    made = forms(tmp_path / "x.png")
    for form in made:
        assert is_one(form)
        assert len(each(form)) == 1
        assert each(form)[0] is form
    batch = torch.zeros(4, 3, 9, 7, dtype=torch.uint8)
    for several, count in ((made, len(made)), (iter(made), len(made)), (batch, 4), (batch.numpy(), 4), ([], 0)):
        assert not is_one(several)
        assert len(each(several)) == count
