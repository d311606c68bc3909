import socket

import pytest
from huggingface_hub import constants

from metamixer.models.offline import _PROXIES, cached_weights_only, hub_is_reachable


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in _PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_a_server_that_takes_connections_and_one_that_is_gone(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub_is_reachable()
    assert not hub_is_reachable()


def test_an_invalid_address_is_no_reason_to_stop(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:99999")
    assert not hub_is_reachable()


def test_a_proxy_is_trusted_and_offline_comes_first(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    assert hub_is_reachable()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub_is_reachable()


@pytest.mark.parametrize("before", [False, True])
def test_the_hub_s_setting_is_as_it_was_afterwards(before, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", before)
    with cached_weights_only():
        assert constants.HF_HUB_OFFLINE
    with pytest.raises(OSError, match="not in the cache"), cached_weights_only():
        raise OSError("not in the cache")
    assert constants.HF_HUB_OFFLINE is before
