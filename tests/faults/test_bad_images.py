"""A folder as people have it at its worst: every damaged file is named with its cause, and the rest is trained on."""

import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from contextlib import contextmanager
from io import BytesIO
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metamixer.data import DataError, ImageError, check, load, read_header, read_image
from metamixer.data.files.folder_scan import scan
from metamixer.data.files.memory_budget import Room
from metamixer.data.files.picture import MAX_BYTES, MAX_PIXELS
from tests.command import metamixer

DAMAGED = 500
CLASSES = ("cat", "<b>dog</b>", "new\nline\x1b[31m")
TINY = ["--peers", "resnet8,resnet8", "--epochs", 1, "--batch-size", 16, "--device", "cpu", "--image-size", 12]
RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (12, 12, 3), np.uint8)
GREY = RNG.integers(0, 256, (12, 12), np.uint8)
# Pillow says on stderr what it makes of damaged entries that are no pixels.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.timeout(120),
]


def encoded(pixels, kind="PNG", **options):
    output = BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(output, kind, **options)
    return output.getvalue()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, more=b""):
    """A PNG of a hundred bytes that promises any number of pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def patched(content, start, new):
    return content[:start] + new + content[start + len(new) :]


def tagged(kind, count, value):
    """A JPEG whose EXIF says this of its orientation."""
    entry = struct.pack("<HHHI4s", 1, 0x0112, kind, count, value)
    block = b"Exif\0\0II*\0\x08\0\0\0" + entry + bytes(4)
    jpeg = encoded(COLOUR, "JPEG")
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]


def animation(kind):
    frames = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def frame_of(jpeg, side):
    """A JPEG that says of itself that it is larger."""
    at = jpeg.index(b"\xff\xc0\0\x11\x08") + 5
    return patched(jpeg, at, struct.pack(">HH", side, side))


WHOLE, JPEG = encoded(np.tile(COLOUR, (8, 8, 1))), encoded(np.tile(COLOUR, (8, 8, 1)), "JPEG")
FILES = {  # what it is: (ending, content, code)
    "cut PNG": (".png", WHOLE[: len(WHOLE) // 2], "broken"),
    "cut JPEG": (".jpg", JPEG[: len(JPEG) // 2], "broken"),
    "cut GIF": (".gif", encoded(np.tile(COLOUR, (8, 8, 1)), "GIF")[:-2000], "broken"),
    "cut BMP": (".bmp", encoded(COLOUR, "BMP")[:-40], "broken"),
    "cut TIFF": (".tif", encoded(COLOUR, "TIFF")[:100], "not-an-image"),
    "cut PPM": (".ppm", encoded(COLOUR, "PPM")[:-1], "broken"),
    "cut WebP": (".webp", encoded(COLOUR, "WEBP")[:-30], "broken"),
    "one byte changed": (".png", patched(WHOLE, len(WHOLE) // 2, bytes([WHOLE[len(WHOLE) // 2] ^ 255])), "broken"),
    "nothing": (".jpg", b"", "empty"),
    "zeros": (".jpg", bytes(3000), "not-an-image"),
    "words": (".jpeg", b"404 Not Found", "not-an-image"),
    "a page": (".png", b"<!DOCTYPE html><html><script>alert(1)</script>", "not-an-image"),
    "an archive": (".jpg", b"PK\x03\x04" + bytes(500), "not-an-image"),
    "a program for Ghostscript": (".jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not-an-image"),
    "another format": (".jpg", encoded(COLOUR, "ICO", sizes=[(12, 12)]), "not-an-image"),
    "no size": (".png", png(0, 5), "not-an-image"),
    "PNG bomb": (".png", png(20_000, 20_000), "too-large"),
    "PNG bomb that Pillow warns of": (".png", png(10_000, 10_000), "too-large"),
    "GIF bomb": (".gif", patched(encoded(COLOUR, "GIF"), 6, b"\xff" * 4), "too-large"),
    "BMP bomb": (".bmp", patched(encoded(COLOUR, "BMP"), 18, struct.pack("<ii", 20_000, 20_000)), "too-large"),
    "JPEG bomb": (".jpg", frame_of(JPEG, 65_500), "too-large"),
    "WebP bomb": (".webp", patched(animation("WEBP"), 24, (19_999).to_bytes(3, "little") * 2), "too-large"),
    "text bomb": (".png", png(9, 9, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000), 9))), "broken"),
    "float": (".tif", encoded(GREY.astype(np.float32), "TIFF"), "unsupported"),
    "32 bit": (".tif", encoded(GREY.astype(np.int32), "TIFF"), "unsupported"),
}
HEALTHY = {
    "JPEG": (".jpg", encoded(COLOUR, "JPEG")),
    "wrong ending": (".jpg", encoded(COLOUR)),
    "1x1": (".png", encoded(COLOUR[:1, :1])),
    "one line": (".png", encoded(np.zeros((1, 5000), np.uint8))),
    "CMYK": (".jpg", encoded(Image.fromarray(COLOUR).convert("CMYK"), "JPEG")),
    "palette": (".png", encoded(Image.fromarray(COLOUR).quantize(8), transparency=0)),
    "16 bit": (".png", encoded(GREY.astype(np.uint16) * 257)),
    "1 bit": (".png", encoded(GREY > 99)),
    "with alpha": (".png", encoded(np.dstack([COLOUR, GREY]))),
    "animated GIF": (".gif", animation("GIF")),
    "animated PNG": (".png", animation("PNG")),
    "animated WebP": (".webp", animation("WEBP")),
    "two pictures": (".jpg", animation("MPO")),
    "turned": (".jpg", tagged(3, 1, b"\6\0\0\0")),
    "turned, in words": (".jpg", tagged(2, 3, b"ab\0\0")),
    "turned by no number": (".jpg", tagged(11, 1, struct.pack("<f", float("nan")))),
    "turned by 99": (".jpg", tagged(3, 1, b"\x63\0\0\0")),
    "turned by two": (".jpg", tagged(3, 2, b"\6\0\6\0")),
    "no end of EXIF": (".jpg", tagged(3, 2**31 - 1, b"\6\0\0\0")),
}
SPLIT_LINE, PAINTED = "{}\nerror: nothing was lost", "\x1b[31m{}"
NAMES = cycle(
    [
        "{}",
        "a {}",
        "Grün 猫 {}",
        "<img src=x> {}",
        SPLIT_LINE,
        PAINTED,
        "=cmd() {}",
        "[red]{}",
        "$({})",
        "\u202e{}",
        "-{}",
    ]
)


def specials(folder):
    """What is no file at all, by the code that is expected."""
    (folder / "dangling.jpg").symlink_to("nothing")
    (folder / "itself.jpg").symlink_to("itself.jpg")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as made:
        before = os.getcwd()
        os.chdir(folder)  # a socket's path may have a hundred characters
        try:
            made.bind("socket.jpg")
        finally:
            os.chdir(before)
    with (folder / "sparse.png").open("wb") as file:  # takes no room on the disk, and names a block of 2 GB
        file.write(png(9, 9)[:33] + struct.pack(">I", 2**31 - 1) + b"eXIf")
        file.truncate(2**31 + 100)
    codes = {"dangling.jpg": "missing", "itself.jpg": "unreadable", "folder.jpg": "folder", "sparse.png": "too-large"}
    return codes | dict.fromkeys(("pipe.jpg", "zero.png", "socket.jpg"), "special")


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    """A folder of three classes, and the code of each of its 500 damaged files."""
    root = tmp_path_factory.mktemp("messy") / "photos"
    codes, kinds = {}, cycle(FILES.values())
    for name in CLASSES:
        folder = root / name
        folder.mkdir(parents=True)
        for number, (ending, content) in enumerate(HEALTHY.values()):
            (folder / f"good {number}{ending}").write_bytes(content)
        codes |= {folder / name: code for name, code in specials(folder).items()}
        (folder / "again").symlink_to("..")
        (folder / "loop").symlink_to("loop")
    (root / "loop").symlink_to("loop")
    for number in range(DAMAGED - len(codes)):
        ending, content, code = next(kinds)
        path = root / CLASSES[number % len(CLASSES)] / f"{next(NAMES).format(number)}{ending}"
        path.write_bytes(content)
        codes[path] = code
    return root, codes


def shown(path):
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(path))


def test_every_kind_of_damage_has_its_code():
    for what, (_, content, code) in FILES.items():
        with pytest.raises(ImageError) as caught:
            read_image(content)
        assert caught.value.code == code, (what, str(caught.value))
    for what, (_, content) in HEALTHY.items():
        pixels = read_image(content, 3, (12, 12))
        assert pixels.shape == (3, 12, 12), what
        read_header(content)


def test_check_lists_each_damaged_file_on_one_line(messy):
    root, codes = messy
    result = metamixer("check", root, code=65)
    assert "\x1b" not in result.output
    assert "\u202e" not in result.output
    lines = result.stdout.splitlines()
    for path, code in codes.items():
        assert len([line for line in lines if line.startswith(f"{code}: {shown(path)}: ")]) == 1, path
    assert len([line for line in lines if line.startswith(tuple(f"{code}: " for code in codes.values()))]) == DAMAGED
    assert not [line for line in lines if line.startswith("error")]
    total = DAMAGED + len(HEALTHY) * len(CLASSES)
    assert f"{DAMAGED} of {total} cannot be read; data.on_error=skip trains without them" in lines


def test_it_takes_little_time_and_memory(messy):
    root, _ = messy
    child = f"""
import time
from metamixer.data import check, load
def peak():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
load("fashion-mini")  # what the first one imports
before, began = peak(), time.perf_counter()
bad, looked = len(check({str(root)!r}).bad), time.perf_counter()
data = load({str(root)!r}, on_error="skip", image_size=12)
print(bad, len(data.skipped), peak() - before, looked - began, time.perf_counter() - looked)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", child], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    bad, skipped, grown, looking, loading = map(float, done.stdout.split())
    print(f"memory +{grown:.0f} MB, check {looking:.2f} s, load {loading:.2f} s")
    assert (bad, skipped) == (DAMAGED, DAMAGED)
    assert grown < 100
    assert looking < 20
    assert loading < 20


def test_training_stops_before_it_begins(messy, tmp_path):
    root, _ = messy
    result = metamixer("train", "--data", root, *TINY, "--out", tmp_path / "run", code=65)
    first, *named, last = result.stderr.splitlines()
    assert "cannot be read; repair or remove them, or pass data.on_error=skip:" in first
    assert len(named) == 5
    assert last.startswith("  and ")
    assert "\x1b" not in result.output
    assert not (tmp_path / "run").exists()


def test_the_healthy_rest_is_trained_on(messy, tmp_path):
    root, codes = messy
    result = metamixer("train", "--data", root, *TINY, "data.on_error=skip", "--out", tmp_path / "run")
    lines = result.stderr.splitlines()
    (warned,) = [at for at, line in enumerate(lines) if f"{DAMAGED} files skipped that cannot be read" in line]
    assert all(line.startswith("  ") for line in lines[warned + 1 : warned + 6]), "the files stand under it"
    assert "\x1b" not in result.output
    assert not [line for line in result.output.splitlines() if line.startswith("error")]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    skipped = [note for note in report["notes"] if note.startswith("skipped ")]
    assert {note.removeprefix("skipped ").rpartition(path)[1] for path, note in pairs(codes, skipped)} == {
        shown(path) for path in codes
    }
    assert (tmp_path / "run" / "model.safetensors").is_file()
    data = load(root, on_error="skip", image_size=12)
    assert sum(map(len, (data.train, data.val, data.test))) == len(HEALTHY) * len(CLASSES)
    predicted = metamixer("predict", tmp_path / "run", root / "cat", "--out", tmp_path / "found.csv").output
    assert "could not be read" in predicted
    assert "\x1b" not in predicted


def pairs(codes, notes):
    """Each damaged file with its note, both as they are shown."""
    names = sorted(map(shown, codes))
    return zip(names, sorted(notes), strict=True)


def test_no_thread_of_a_large_image_waits_for_ever_or_comes_in_too_early():
    room, most = Room(10), []

    def work(size):
        with room.taken(size):
            most.append(room.held)
            time.sleep(0.002)

    threads = [threading.Thread(target=work, args=(size,)) for size in (3, 10, 25, 1, 9, 2) * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(most) == 30
    assert room.held == 0
    assert all(held <= 10 or held == 25 for held in most)


def test_a_process_that_is_copied_while_an_image_is_decoded_has_room_of_its_own():
    room = Room(10)
    with room.taken(10):
        child = os.fork()
        if not child:
            with room.taken(10):
                os._exit(7)
        until = time.monotonic() + 20
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < until:
            time.sleep(0.01)
    assert os.waitstatus_to_exitcode(ended[1]) == 7


def test_what_is_too_large_is_said_with_what_is_the_most(tmp_path):
    path = tmp_path / "sparse.png"
    path.write_bytes(encoded(COLOUR))
    os.truncate(path, MAX_BYTES + 1)
    for call in (read_image, read_header):
        with pytest.raises(ImageError, match=f"{MAX_BYTES + 1:,} bytes; {MAX_BYTES:,} are the most"):
            call(path)
    os.truncate(path, 100_000)  # bytes after the end are no damage
    assert read_image(path).shape == (3, 12, 12)
    assert read_header(png(8000, MAX_PIXELS // 8000)).size == (MAX_PIXELS // 8000, 8000)
    with pytest.raises(ImageError, match="8001 x 8000; 64,000,000 pixels are the most"):
        read_header(png(8001, 8000))


@pytest.fixture
def plain(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "data" / name / f"{number}.png").write_bytes(encoded(COLOUR))
    return tmp_path / "data"


def test_folders_nested_deeper_than_python_s_calls(plain):
    before = os.getcwd()
    os.chdir(plain / "cat")
    try:
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")
        Path("deep.png").write_bytes(encoded(COLOUR))
        os.chdir(plain / "cat")
        assert len(scan(plain).parts["all"][0]) == 9
        for _ in range(30):  # and deeper than a path may be long
            os.mkdir("e" * 200)
            os.chdir("e" * 200)
        with pytest.raises(DataError, match=r"e: cannot be listed: File name too long"):
            scan(plain)
    finally:
        os.chdir(before)
        subprocess.run(["rm", "-rf", str(plain)], check=True)  # shutil.rmtree calls itself


def test_links_in_circles_are_no_data(plain):
    for name in ("loop", "cat/loop", "cat/loop.png"):
        (plain / name).symlink_to(Path(name).name)
    (plain / "one").symlink_to("other")
    (plain / "other").symlink_to("one")
    found = check(plain)
    assert found.classes == ("cat", "dog")
    assert [(file.path.name, file.code) for file in found.bad] == [("loop.png", "unreadable")]
    assert sorted(path.name for path in found.ignored) == ["loop", "loop", "one", "other"]


@contextmanager
def another_user():
    """Root may read everything, so such tests are done as nobody."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_may_not_be_read_is_named():
    """Outside of pytest's folders, which are closed to others."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "data"
        for name in ("cat", "dog"):
            (root / name / "more").mkdir(parents=True)
            for number in range(4):
                (root / name / f"{number}.png").write_bytes(encoded(COLOUR))
        Path(place).chmod(0o755)
        if os.geteuid() and not os.access(root, os.R_OK):
            pytest.skip("this user cannot take rights away")
        (root / "cat" / "1.png").chmod(0)
        with another_user():
            assert [(file.path.name, file.code) for file in check(root).bad] == [("1.png", "unreadable")]
            data = load(root, on_error="skip")
            with pytest.raises(DataError, match=r"cat/1\.png: cannot be read: Permission denied"):
                load(root)
        assert data.skipped == ((f"{root}/cat/1.png", "cannot be read: Permission denied"),)
        (root / "dog" / "more").chmod(0)
        with another_user(), pytest.raises(DataError, match=r"dog/more: cannot be listed: Permission denied"):
            check(root)
        (root / "dog" / "more").chmod(0o755)
        (root / "dog" / "inside").symlink_to(root / "dog" / "more" / "x" / "y")
        (root / "dog" / "more").chmod(0)
        (root / "dog" / "more").rename(root / "dog" / ".more")
        with another_user():
            check(root)


def test_names_that_are_no_text(plain):
    os.rename(plain / "cat", os.fsencode(plain) + b"/caf\xe9")
    (Path(os.fsdecode(os.fsencode(plain) + b"/caf\xe9")) / os.fsdecode(b"\xff\xfe.jpg")).write_bytes(b"x")
    result = metamixer("check", plain, code=65)
    assert r"caf\udce9/\udcff\udcfe.jpg: not an image" in result.stdout
    with pytest.raises(DataError, match=r"caf\\udce9/\\udcff\\udcfe\.jpg: not an image"):
        load(plain)
