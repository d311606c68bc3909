import pytest

from metamixer.core.files import read_mapping, write_whole


def test_a_file_is_replaced_and_nothing_stays_beside_it(tmp_path):
    path = tmp_path / "scores.csv"
    for text in ("first, and longer\n", "größer\n"):
        write_whole(path, text)
        assert path.read_bytes() == text.encode("utf-8")
    assert list(tmp_path.iterdir()) == [path]


def test_line_ends_are_those_of_open(tmp_path):
    path = tmp_path / "scores.csv"
    write_whole(path, "a\r\nb\n", newline="")
    assert path.read_bytes() == b"a\r\nb\n"
    write_whole(path, "a\nb\n", newline="\r\n")
    assert path.read_bytes() == b"a\r\nb\r\n"


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    """A name with bytes that are no UTF-8 comes from Linux as a lone surrogate."""
    path = tmp_path / "report.html"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "x" * 100_000 + "\udcff")
    assert path.read_text() == "old"
    write_whole(path, "cat\udcff", errors="backslashreplace")
    assert path.read_text() == r"cat\udcff"


def test_no_folder_is_made(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "missing" / "report.html", "text")


@pytest.mark.parametrize(
    ("text", "found"), [('{"a": 1}', {"a": 1}), ("[1]", {}), ('{"a"', {}), ("", {}), (None, {})], ids=str
)
def test_a_mapping_is_read_leniently(text, found, tmp_path):
    path = tmp_path / "found.json"
    if text is not None:
        path.write_text(text)
    assert read_mapping(path) == found
