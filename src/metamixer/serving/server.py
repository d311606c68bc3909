"""The server: a socket served by uvicorn."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

import uvicorn

from metamixer.config.yaml_file import RecipeError
from metamixer.serving.app import make_app
from metamixer.serving.networks import Served


def is_loopback(host: str) -> bool:
    """Whether an address can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(
    served: Served,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    max_bytes: int = 20_000_000,
    ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve requests until a signal is received.

    Args:
        served: the networks.
        host: address to listen on. A loopback address only accepts its own host names.
        port: port; 0: any free port.
        max_bytes: largest size of an image.
        ready: called with the address of the page when the server is ready.

    Raises:
        RecipeError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise RecipeError(f"cannot listen on {host} port {port}: {error}; --port 0 takes a free one") from error
    shown = f"[{host}]" if family == socket.AF_INET6 else host
    hosts = ("localhost", "127.0.0.1", "[::1]", shown) if is_loopback(host) else ("*",)
    app = make_app(served, max_bytes=max_bytes, hosts=hosts)
    address = f"http://{shown}:{listening.getsockname()[1]}/"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready(address)  # the server now answers requests and handles signals

    with listening:
        settings = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", server_header=False)
        Server(settings).run([listening])
