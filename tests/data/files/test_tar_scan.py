"""Samples of tar shards, compared with tarfile."""

import gzip
import tarfile

import pytest

from metamixer.data.files.tar_scan import scan_tar
from tests.shards import pack, picture, samples


def scanned(path, **columns):
    with path.open("rb") as file:
        return scan_tar(file, path.stat().st_size, **columns)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_places_are_those_of_tarfile(tmp_path, form):
    """With folders, long and foreign names, and members of many lengths."""
    path, content = tmp_path / "0.tar", {}
    with tarfile.open(path, "w", format=form, encoding="utf-8") as tar:
        folder = tarfile.TarInfo("part")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number in range(20):
            stem = f"part/{'long' * (24 if form != tarfile.USTAR_FORMAT else 5)}ü{number}"
            for ending, data in (("png", picture(number, (number + 1, 7))), ("cls", f" {number}\n".encode())):
                (tmp_path / "member").write_bytes(data)
                tar.add(tmp_path / "member", f"{stem}.{ending}")
            content[stem] = (tmp_path / "member").read_bytes()
    found = scanned(path)
    assert not found.bad
    assert found.labels == list(range(20))
    raw = path.read_bytes()
    with tarfile.open(path) as tar:
        for key, start, length in zip(found.keys, found.starts, found.lengths, strict=True):
            assert raw[start : start + length] == tar.extractfile(f"{key}.png").read()
    assert found.keys == list(content)


def test_labels_are_names_or_numbers_or_a_field(tmp_path):
    image = picture(0)
    rows = [("a", "cls", "cat\n"), ("b", "cls", "017"), ("c", "CLS", "3 wings"), ("d", "target.cls", "2")]
    path = pack(
        tmp_path / "0.tar",
        [each for key, ending, text in rows for each in ((f"{key}.jpg", image), (f"{key}.{ending}", text))],
    )
    assert scanned(path).labels == ["cat", 17, "3 wings", 2]
    fields = ['{"id": 5, "kind": "wren"}', '{"id": "6", "kind": "owl"}', '{"id": null}', "{", "[1]", '{"id": 0.5}']
    path = pack(
        tmp_path / "1.tar",
        [each for n, text in enumerate(fields) for each in ((f"{n}.jpg", image), (f"{n}.json", text))],
    )
    found = scanned(path, label="id")
    assert found.labels == [5, 6]
    assert [key for key, _ in found.bad] == ["2", "3", "4", "5"]
    assert [cause for _, cause in found.bad] == [
        "no label: no 'id' in .json; there are id", "no label: .json is damaged",
        "no label: no 'id' in .json; there are no fields", "no label: .json has '0.5'",
    ]  # fmt: skip
    assert scanned(path, label="kind").labels == ["wren", "owl"]


def test_samples_without_image_or_label(tmp_path):
    path = pack(tmp_path / "0.tar", [
        ("a.png", picture(0)), ("a.cls", 1), ("b.png", picture(1)), ("c.cls", 1), ("d.png", picture(2)), ("d.cls", ""),
        ("e.png", picture(3)), ("e.jpg", picture(4)), ("e.cls", 1), (".hidden", "x"), ("README", "x"),
    ])  # fmt: skip
    found = scanned(path)
    assert found.keys == ["a"]
    assert dict(found.bad) == {
        "b": "no label: no member .cls among .png; data.label_column=FIELD takes a field of .json",
        "c": "no image among .cls",
        "d": "no label: .cls has ''",
        "e": "2 images among .png, .jpg, .cls; choose one by data.image_column=ENDING",
    }


def test_one_of_several_images(tmp_path):
    path = pack(tmp_path / "0.tar", [("a.input.png", b"one"), ("a.mask.png", b"other"), ("a.cls", 1)])
    assert scanned(path, image="mask.png").lengths == [5]
    assert scanned(path, image="jpg").bad == [("a", "no member .jpg; there are .input.png, .mask.png, .cls")]
    path = pack(tmp_path / "1.tar", [("a.png", b"one"), ("a.mask.png", b"other"), ("a.cls", 1)])
    assert scanned(path).lengths == [3]  # the one with the plain ending


def test_a_size_that_leads_backwards(tmp_path):
    path = pack(tmp_path / "0.tar", samples(0, 3))
    raw = bytearray(path.read_bytes())
    header = next(at for at in range(0, len(raw), 512) if raw[at : at + 9] == b"00002.png")
    raw[header + 124 : header + 136] = tarfile.itn(-2048, 12, tarfile.GNU_FORMAT)
    raw[header + 148 : header + 156] = b" " * 8
    raw[header + 148 : header + 156] = b"%06o\0 " % sum(raw[header : header + 512])
    path.write_bytes(raw)
    found = scanned(path)
    assert found.keys == ["00000", "00001"]
    assert found.bad[0][0] == ""
    assert "is damaged or cut off" in found.bad[0][1]


def test_a_name_twice(tmp_path):
    path = pack(tmp_path / "0.tar", [*samples(0, 2), *samples(1, 1)])
    assert ("00001", "has two members .png") in scanned(path).bad


@pytest.mark.parametrize("end", range(1, 40, 3))
def test_a_shard_that_is_cut_off_says_so_and_keeps_what_is_whole(tmp_path, end):
    whole = pack(tmp_path / "0.tar", samples(0, 12))
    full = scanned(whole)
    content = whole.read_bytes().rstrip(b"\0")
    cut = tmp_path / "1.tar"
    cut.write_bytes(content[: len(content) * end // 40])
    found = scanned(cut)
    assert tuple(key for key, _ in found.bad) == ("",)
    for key, start, length in zip(found.keys, found.starts, found.lengths, strict=True):
        place = full.keys.index(key)
        assert (start, length) == (full.starts[place], full.lengths[place])
        assert start + length <= cut.stat().st_size


@pytest.mark.parametrize("make", [lambda raw: b"", lambda raw: b"no tar" * 500, gzip.compress])
def test_what_is_no_tar(tmp_path, make):
    raw = pack(tmp_path / "0.tar", samples(0, 3)).read_bytes()
    (tmp_path / "1.tar").write_bytes(make(raw))
    found = scanned(tmp_path / "1.tar")
    assert not found.keys
    ((key, cause),) = found.bad
    assert key == ""
    assert ("is compressed" in cause) == (make is gzip.compress)
