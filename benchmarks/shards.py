"""Epochs over photographs: of a folder, of tar shards here, and of the same shards on a server of this machine."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.data import MEAN, STD, WORKERS, drain, write_photos
from benchmarks.results import Section, ratios
from benchmarks.settings import Settings
from benchmarks.timing import Case, fixed, interleave
from metamixer.data import Augment, TrainLoader, load
from metamixer.data.splits import Split

_SERVER = """
import http.server, os, re
class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *args): ...
    def do_GET(self):
        path = self.translate_path(self.path)
        size = os.path.getsize(path)
        found = re.fullmatch(r"bytes=(\\d+)-(\\d+)", self.headers.get("Range", ""))
        begin, end = (int(found[1]), min(int(found[2]) + 1, size)) if found else (0, size)
        self.send_response(206 if found else 200)
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        with open(path, "rb") as file:
            file.seek(begin)
            self.wfile.write(file.read(end - begin))
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


def measure(settings: Settings) -> list[Section]:
    """One section: whole epochs at side 224 with shift and flip, by one process and by two workers."""
    count = 32 if settings.quick else 512
    with tempfile.TemporaryDirectory() as folder:
        photos, shards = Path(folder) / "photos", Path(folder) / "shards"
        for name in ("a", "b"):
            (photos / name).mkdir(parents=True)
            write_photos(photos / name, count // 2, (500, 375))
        shards.mkdir()
        files = sorted(photos.rglob("*.*"), key=lambda path: path.name)
        for number in range(4):
            _pack(shards / f"train-{number}.tar", files[number * count // 4 : (number + 1) * count // 4])
        server = subprocess.Popen([sys.executable, "-c", _SERVER], cwd=shards, stdout=subprocess.PIPE, text=True)  # noqa: S603
        assert server.stdout is not None  # noqa: S101
        try:
            url = f"http://127.0.0.1:{int(server.stdout.readline())}"
            return [_epochs({"folder": str(photos), "tars": f"wds:{shards}", "http": f"wds:{url}"}, folder, settings)]
        finally:
            server.terminate()
            server.wait()
            server.stdout.close()


def _pack(path: Path, files: list[Path]) -> None:
    with tarfile.open(path, "w") as tar:
        for file in files:
            label = file.parent.name
            for ending, content in ((file.suffix, file.read_bytes()), (".cls", label.encode())):
                member = tarfile.TarInfo(f"{label}{file.stem}{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _epochs(places: dict[str, str], folder: str, settings: Settings) -> Section:
    cases, notes = [], []
    one: tuple[Split, ...] = ("train",)
    for way, place in places.items():
        name = place if way == "folder" else f"{place}/train-{{0..3}}.tar"
        scale, cache = (MEAN, STD), f"{folder}/cache"
        began = time.perf_counter()
        data = load(
            name, image_size=224, channels=3, val_share=0, cache_limit_bytes=0, scale=scale, splits=one,
            cache="off" if way == "folder" else cache, cache_writes=False, buffer=128, layout="classes",
        )  # fmt: skip
        notes.append(f"{way}: loaded in {time.perf_counter() - began:.2f} s.")
        for workers in WORKERS:
            loader = TrainLoader(data.train, Augment(28), MEAN, STD, 16, seed=0, workers=workers)
            cases.append(
                Case(f"{way}, {workers} workers", fixed(partial(drain, loader)), units=len(data.train), items=1)
            )
    measured, missing = interleave(cases, settings.rounds, torch.device("cpu"))
    del cases, loader  # worker processes end with their loaders, before the files do
    pairs = [
        (f"{way}, {workers} workers", f"folder, {workers} workers", 1.0, "")
        for way in places
        if way != "folder"
        for workers in WORKERS
    ]
    notes.append("Times are those of one image, all of an epoch; of http its first buffer is waited for.")
    return Section(
        "photographs of 500x375 at side 224, in shards", measured, ratios(measured, pairs), missing, tuple(notes)
    )
