"""Fail at once if pretrained weights cannot be downloaded, instead of after a minute of retries."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

_PATIENCE = 3.0
_PROXIES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "http_proxy", "HTTP_PROXY")


def hub_is_reachable() -> bool:
    """Whether the server of the hub accepts a connection within three seconds. With a proxy it is assumed to."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in _PROXIES):
        return True
    address = urlsplit(constants.ENDPOINT)
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        with socket.create_connection((address.hostname or "", port), timeout=_PATIENCE):
            return True
    except (OSError, ValueError):  # no port can be 99999
        return False


@contextmanager
def cached_weights_only() -> Iterator[None]:
    """Use only the cache of the hub inside the block; files that are not in it raise an error at once."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
