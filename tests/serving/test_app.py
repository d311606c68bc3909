"""The server over real sockets: answers, refusals, and many requests at once."""

import csv
import http.client
import io
import json
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import pytest

from metamixer.serving import app as module
from metamixer.serving.networks import Served
from metamixer.serving.server import is_loopback
from tests.command import metamixer
from tests.serving.conftest import CLASSES, serving

PNG = {"Content-Type": "image/png"}


def ask(server, path, body=None, headers=PNG, method=None, **more):
    connection = http.client.HTTPConnection(server.address.split("/")[2], timeout=120)
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, headers, **more)
        reply = connection.getresponse()
        return reply.status, reply.read(), reply.headers
    finally:
        connection.close()


def refused(server, *words, **more):
    status, content, _ = ask(server, *words, **more)
    return status, json.loads(content)["error"]


@pytest.fixture(scope="module")
def known(run, images):
    """The rows of ``metamixer predict``, by file."""
    rows = csv.reader(io.StringIO(metamixer("predict", run, *images, "--device", "cpu").stdout))
    header, *rows = rows
    return {Path(row[0]): dict(zip(header[3:], map(float, row[3:]), strict=True)) for row in rows}


def test_200_requests_at_once_get_the_probabilities_of_predict(server, images, known):
    asked = [(images[number % len(images)], "?maps=true" * (number % 2)) for number in range(200)]
    with ThreadPoolExecutor(200) as pool:
        found = list(pool.map(lambda one: ask(server, f"/predict{one[1]}", one[0].read_bytes()), asked))
    assert [status for status, _, _ in found] == 200 * [200]
    for (path, query), (_, content, _) in zip(asked, found, strict=True):
        deployed = json.loads(content)["networks"][0]
        assert deployed["probabilities"] == known[path]
        assert ("map" in deployed) == bool(query)


def test_bodies_wait_outside(server):
    """60 images of 2 MB at once: no more than a few are in memory."""

    def peak():
        status = Path(f"/proc/{server.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1000

    ask(server, "/predict", bytes(1_999_000))
    before = peak()
    with ThreadPoolExecutor(60) as pool:
        found = list(pool.map(lambda _: ask(server, "/predict", bytes(1_999_000))[0], range(60)))
    assert found == 60 * [415]
    assert peak() - before < 60


def test_the_page_and_what_there_is_to_ask(server):
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        status, content, headers = ask(server, path)
        assert status == 200
        assert content
        assert headers["content-type"].startswith(kind)
        assert "default-src 'none'" in headers["content-security-policy"]
    status, content, _ = ask(server, "/model")
    about = json.loads(content)
    assert status == 200
    assert about["classes"] == sorted(CLASSES)
    assert about["networks"] == ["deployed", "ensemble", "0 resnet8", "1 resnet14"]
    assert about["size"] == {"height": 24, "width": 32, "channels": 3}
    assert about["max_bytes"] == 2_000_000


def test_what_is_refused(server, images):
    image = images[1].read_bytes()
    assert refused(server, "/predict", image, {})[0] == 415
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"):
        status, reason = refused(server, "/predict", image, {"Content-Type": kind})
        assert (status, kind.partition(";")[0] in reason) == (415, True)
    for query in ("top=0", "top=-1", "top=x", "maps=1", "class=dog", "path=/etc/hostname"):
        status, reason = refused(server, f"/predict?{query}", image)
        assert status == 400
        assert "accepted" in reason
    assert refused(server, "/predict", b"/etc/hostname") == (415, refused(server, "/predict", b"no image")[1])
    assert refused(server, "/predict", b"")[0] == 422
    assert refused(server, "/predict", image[: len(image) // 2])[0] == 422
    assert refused(server, "/predict", bytes(2_000_001))[0] == 413
    parts = (bytes(100_000) for _ in range(30))
    assert refused(server, "/predict", parts, PNG | {"Transfer-Encoding": "chunked"}, encode_chunked=True)[0] == 413
    assert ask(server, "/predict")[0] == 405
    for path in ("/../../etc/passwd", "/page.html", "/%2e%2e/app.py", "/networks.py", "/etc/passwd"):
        assert ask(server, path)[0] == 404
    assert ask(server, "/predict", image)[0] == 200


def test_a_page_of_another_name_cannot_point_here(server, images):
    for host in ("evil.example", "evil.example:80", "localhost.evil.example"):
        assert ask(server, "/model", headers={"Host": host})[0] == 400
    port = server.address.rstrip("/").rpartition(":")[2]
    for host in ("localhost", "127.0.0.1", f"localhost:{port}", "[::1]"):
        assert ask(server, "/model", headers={"Host": host})[0] == 200


def test_a_stalled_sender_gives_its_place_back(run, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.2)
    made = module.make_app(Served.open(run))
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "query_string": b"",
        "headers": [(b"content-type", b"image/png")],
    }
    sent = []

    async def stalled():
        await anyio.sleep(60)

    async def send(message):
        sent.append(message)

    began = time.monotonic()
    anyio.run(made, scope, stalled, send)
    assert time.monotonic() - began < 20
    assert sent[0]["status"] == 408


def test_a_sender_that_leaves_is_no_error(server, images):
    host, port = server.address.split("/")[2].split(":")
    for _ in range(3 * module.BODIES):
        with socket.create_connection((host, int(port))) as one:
            one.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n")
            one.sendall(b"Content-Length: 1000\r\n\r\nxx")
    assert ask(server, "/predict", images[1].read_bytes())[0] == 200


def test_signals_end_it_and_the_address_is_free_again(run):
    with serving(run) as process:
        port = process.address.rstrip("/").rpartition(":")[2]
        result = metamixer("serve", run, "--port", port, code=2)
        assert f"127.0.0.1 port {port}" in result.stderr
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(60) == 130
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)
            pytest.fail(process.stderr.read())  # where its threads were
        assert "Traceback" not in process.stderr.read()
    with socket.create_server(("127.0.0.1", int(port))):
        pass


def test_refusals_of_the_command(run, tmp_path):
    assert "no such file" in metamixer("serve", tmp_path / "gone", code=65).stderr
    assert "cannot listen on" in metamixer("serve", run, "--host", "203.0.113.1", code=2).stderr


def test_loopback():
    assert all(map(is_loopback, ("127.0.0.1", "127.0.0.2", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.org")))  # noqa: S104
