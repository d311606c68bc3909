"""Tar shards, and a server of parts of files that can be made to fail."""

import io
import re
import socket
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def picture(seed, size=(8, 8), ending="PNG"):
    """An encoded image of noise."""
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, ending)
    return content.getvalue()


def pack(path, members):
    """A tar of (name, content) pairs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            content = content if isinstance(content, bytes) else str(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(first, count, label=lambda number: ("cat", "dog", "emu")[number % 3], size=(8, 8)):
    """Images with labels, as members of a shard."""
    for number in range(first, first + count):
        yield f"{number:05d}.png", picture(number, size)
        yield f"{number:05d}.cls", label(number)


def shards(folder, counts=(30, 25, 40), part="train", first=0, **how):
    """So many samples in each of several shards."""
    for number, count in enumerate(counts):
        pack(folder / f"{part}-{number:02d}.tar", samples(first, count, **how))
        first += count
    return folder


def same(first, second):
    """Batches are equal, to the last bit."""
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.companions, other.companions)
        assert torch.equal(one.labels, other.labels)


class RangeServer:
    """Serves a folder; after ``good`` answers ``failures`` are errors or cut off; with ``whole`` ranges are ignored.

    ``requests`` holds (path, first byte, bytes) of each answer with content.
    """

    def __init__(self, folder):
        self.good, self.failures, self.fault, self.whole, self.requests = 0, 0, "error", False, []
        handler = partial(_Handler, self, directory=str(folder))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, server, *args, **kwargs):
        self.of = server
        super().__init__(*args, **kwargs)

    def log_message(self, *args): ...

    def end_headers(self):
        path = Path(self.translate_path(self.path))
        if path.is_file():
            self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        super().end_headers()

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        size, found = path.stat().st_size, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        begin, end = 0, size
        if found and not self.of.whole:
            begin, end = int(found[1]), min(int(found[2] or size) + 1, size)
        fault = None
        if self.of.good > 0:
            self.of.good -= 1
        elif self.of.failures > 0:
            self.of.failures -= 1
            fault = self.of.fault
        if fault == "error":
            self.send_error(503)
            return
        self.of.requests.append((path.name, begin, end - begin))
        self.send_response(206 if found and not self.of.whole else 200)
        self.send_header("Content-Length", str(end - begin))
        self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
        self.end_headers()
        with path.open("rb") as file:
            file.seek(begin)
            self.wfile.write(file.read((end - begin) // 2 if fault == "cut" else end - begin))
        if fault == "cut":  # also for workers that were forked, and hold the connection
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)


def parquet(path, numbers, group=5, labels=None, names=("x", "y")):
    """A parquet file as ``datasets`` writes it, of images with numbers for seeds."""
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "img": datasets.Image(),
        "kind": datasets.ClassLabel(names=list(names)),
        "text": datasets.Value("string"),
    }
    content = {
        "img": [{"bytes": picture(number), "path": None} for number in numbers],
        "kind": [number % 2 for number in numbers] if labels is None else labels,
        "text": ["more"] * len(numbers),
    }
    made = datasets.Dataset.from_dict(content, features=datasets.Features(columns))
    datasets.disable_progress_bars()
    made.to_parquet(str(path), batch_size=group)
    return path


def parquets(folder):
    """Two training files of 25 images and one of 12 to test on, with the classes y and x."""
    for number in range(2):
        parquet(folder / f"train-{number}.parquet", range(25 * number, 25 * number + 25), names=("y", "x"))
    parquet(folder / "test-0.parquet", range(100, 112), names=("y", "x"))
    return folder
