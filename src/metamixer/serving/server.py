"""The server: a socket, and uvicorn behind it."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

import uvicorn

from metamixer.config.yaml_file import RecipeError
from metamixer.serving.app import make_app
from metamixer.serving.networks import Served


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches it."""
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
    """Answer requests until a signal comes.

    Args:
        served: the networks.
        host: the address to listen at. Loopback answers to its own names alone.
        port: 0: any that is free.
        max_bytes: of an image.
        ready: is called with the address of the page once requests are answered.

    Raises:
        RecipeError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise RecipeError(f"{host} port {port} cannot be listened at: {error}; --port 0 takes a free one") from error
    shown = f"[{host}]" if family == socket.AF_INET6 else host
    hosts = ("localhost", "127.0.0.1", "[::1]", shown) if is_loopback(host) else ("*",)
    app = make_app(served, max_bytes=max_bytes, hosts=hosts)
    address = f"http://{shown}:{listening.getsockname()[1]}/"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready(address)  # requests are answered from here on, and signals end it in order

    with listening:
        settings = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", server_header=False)
        Server(settings).run([listening])
