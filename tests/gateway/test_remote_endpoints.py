"""Endpoints of other servers in the settings."""

from pathlib import Path

import pytest

from gateway.settings import InvalidSettings, read_settings
from handlers.outgoing_calls import RemoteEndpoint
from tests.gateway.commands import run_here

FILE = """
public_url: https://me.example/
endpoints:
  shop: {targets: [examples.orders:services]}
  shipping: {url: 'https://gw.example/nexus/endpoints/shipping/services', api_key: nxk_1}
  legacy: {url: 'http://10.0.0.7:7243/services', callbacks: never}
"""


def config(folder: Path, text: str) -> Path:
    path = folder / "gateway.yaml"
    path.write_text(text)
    return path


def test_an_endpoint_with_a_url_is_called_and_not_served(folder: Path) -> None:
    settings = read_settings({}, config(folder, FILE))
    assert settings.remote_endpoints == {
        "shipping": RemoteEndpoint(
            url="https://gw.example/nexus/endpoints/shipping/services", api_key="nxk_1"
        ),
        "legacy": RemoteEndpoint(url="http://10.0.0.7:7243/services", callbacks=False),
    }
    assert "nxk_1" not in repr(settings)


def test_an_endpoint_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUS_GATEWAY_ENDPOINTS__SHIPPING__URL", "http://ship.example/services")
    monkeypatch.setenv("NEXUS_GATEWAY_ENDPOINTS__SHIPPING__API_KEY", "nxk_2")
    assert read_settings({}).remote_endpoints == {
        "shipping": RemoteEndpoint(url="http://ship.example/services", api_key="nxk_2")
    }


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("{url: ftp://x}", "a.url: an endpoint is an http or https URL"),
        ("{url: 'http://u:secret@x'}", "a.url: an endpoint's URL holds no user or password"),
        ("{url: 'http://x?a=1'}", "a.url: an endpoint's URL has no query"),
        ("{url: 'http://x', api_key: ''}", "a.api_key: holds characters that a header cannot"),
        ('{url: "http://x", api_key: "a\\nb"}', "a.api_key: holds characters that a header cannot"),
        ("{url: 'http://x', callbacks: maybe}", "a.callbacks: Input should be 'auto' or 'never'"),
        ("{url: 'http://x', targets: [a:b]}", "a: has targets, which are served here, and the url"),
        ("{api_key: nxk_1}", "a: api_key and callbacks are for an endpoint with a url"),
    ],
)
def test_a_mistake_is_named_and_no_secret_told(endpoint: str, said: str, folder: Path) -> None:
    path = config(folder, f"endpoints: {{a: {endpoint}}}\n")
    with pytest.raises(InvalidSettings) as refused:
        read_settings({}, path)
    assert str(refused.value).startswith(f"{path}: endpoints.{said}")
    assert "secret" not in str(refused.value)


def test_check_config_lists_what_handlers_may_call(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config(folder, FILE)
    done = run_here(capfd, "check-config", "--config", "gateway.yaml")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "shop: orders/place (durable)",
        "shop: orders/quote (inline)",
        "legacy: for handlers to call, at http://10.0.0.7:7243/services (is asked for results)",
        (
            "shipping: for handlers to call, at "
            "https://gw.example/nexus/endpoints/shipping/services (calls back)"
        ),
        "the configuration is good",
    ]
