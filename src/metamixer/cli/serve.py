"""``metamixer serve``: serve a web page and a JSON endpoint that classify images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metamixer.cli.console import say
from metamixer.cli.options import AllowImports, Device, resolved


def serve(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL_OR_RUN", help="A run's folder, or a .safetensors or .onnx file.")
    ],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8000,
    max_megabytes: Annotated[
        float, typer.Option("--max-megabytes", min=0.001, help="Largest image that is accepted.")
    ] = 20.0,
    device: Device = "auto",
    allow_imports: AllowImports = False,
) -> int:
    """Serve a web page and a JSON endpoint that classify images."""
    from metamixer.export.errors import need

    need("serve", "starlette", "uvicorn")
    from metamixer.serving.networks import Served
    from metamixer.serving.server import is_loopback
    from metamixer.serving.server import serve as listen

    served = Served.open(model, resolved(device))

    def ready(address: str) -> None:
        say(f"{', '.join(served.networks)} at {address} (Ctrl-C stops)")
        if not is_loopback(host):
            warning = "warning: anyone who can reach this address can use the server; there is no password"
            say(warning, style="yellow", stderr=True)

    listen(served, host, port, max_bytes=int(max_megabytes * 1_000_000), ready=ready)
    return 0
