"""The web page and the JSON endpoint: the image is the body of a request, and all input is untrusted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from metamixer.core.text import quoted
from metamixer.data import ImageError
from metamixer.serving.networks import Served

BODIES = 8
"""The largest number of request bodies in memory; other requests wait before theirs is read."""
SECONDS = 30
"""Time limit for the body of a request, so that stalled clients do not block others."""
_HERE = Path(__file__).parent
_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_STATUS = {"too-large": 413, "not-an-image": 415, "unsupported": 415}


class _Refused(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def make_app(served: Served, *, max_bytes: int = 20_000_000, hosts: tuple[str, ...] = ("*",)) -> Starlette:
    """``GET /`` is the page, ``GET /model`` describes the networks, and ``POST /predict`` returns predictions as JSON.

    Args:
        served: the networks.
        max_bytes: largest body of a request; larger ones are refused with 413 before they are read completely.
        hosts: accepted host names of requests, to prevent DNS rebinding; ``*``: any.
    """
    bodies, one = anyio.CapacityLimiter(BODIES), anyio.CapacityLimiter(1)

    async def file(request: Request) -> Response:
        name, kind = _FILES[request.url.path]
        return Response((_HERE / name).read_bytes(), media_type=kind, headers=_HEADERS)

    async def model(_: Request) -> Response:
        return _json(served.about() | {"max_bytes": max_bytes})

    async def predict(request: Request) -> Response:
        try:
            _check_type(request.headers.get("content-type", ""))
            asked = _asked(request.query_params, served.first.classes)
            async with bodies:
                content = await _body(request, max_bytes)
                # One at a time, because maps are recorded by hooks in the shared networks.
                return await run_sync(partial(_answer, served, content, asked), limiter=one)
        except _Refused as refused:
            return _json({"error": str(refused)}, refused.status)

    routes = [
        *(Route(path, file) for path in _FILES),
        Route("/model", model),
        Route("/predict", predict, methods=["POST"]),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)],
        exception_handlers={500: lambda *_: _json({"error": "internal error; see the terminal of the server"}, 500)},
    )


def _json(content: Mapping[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(content), status, _HEADERS, "application/json")


def _answer(served: Served, content: bytes, asked: dict[str, Any]) -> Response:
    # An exception that leaves the thread would keep the image alive in its traceback.
    try:
        return _json(served.look(content, **asked))
    except ImageError as error:
        return _json({"error": str(error)}, _STATUS.get(error.code, 422))


def _check_type(header: str) -> None:
    """Refuse content types that other origins can send without a CORS preflight, which this server never accepts."""
    kind = header.partition(";")[0].strip().lower()
    if not (kind.startswith("image/") or kind == "application/octet-stream"):
        accepted = "the bytes of an image as image/* or application/octet-stream are accepted"
        raise _Refused(415, f"Content-Type {kind or 'missing'}; {accepted}")


def _asked(given: Mapping[str, str], classes: tuple[str, ...]) -> dict[str, Any]:
    if unknown := sorted(given.keys() - {"top", "maps", "class"}):
        raise _Refused(400, f"{unknown[0]}: no such parameter; top, maps and class are accepted")
    top, maps, of = given.get("top"), given.get("maps", "false"), given.get("class")
    if top is not None and not (top.isdecimal() and len(top) < 10 and int(top)):
        raise _Refused(400, f"top={top}; a number from 1 is accepted")
    if maps not in ("true", "false"):
        raise _Refused(400, f"maps={maps}; true and false are accepted")
    if of is not None and of not in classes:
        raise _Refused(400, f"class={of}; one of {quoted(classes)} is accepted")
    return {"top": None if top is None else int(top), "maps": maps == "true", "of": of}


async def _body(request: Request, most: int) -> bytes:
    reason = f"the image has more than {most:,} bytes, which are the most that is accepted"
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 15 or int(length) > most):
        raise _Refused(413, reason)
    content = bytearray()
    try:
        with anyio.fail_after(SECONDS):
            async for part in request.stream():
                content += part
                if len(content) > most:
                    raise _Refused(413, reason)
    except TimeoutError:
        raise _Refused(408, f"the body did not arrive in {SECONDS} seconds") from None
    except ClientDisconnect:
        raise _Refused(400, "the body did not arrive") from None
    return bytes(content)
