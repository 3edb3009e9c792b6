import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from callbacks.breaker import BreakerPolicy
from callbacks.dead_letters import Notice
from callbacks.delivery import DeliverySettings
from callbacks.delivery_rules import DeliveryRule
from callbacks.retry_schedule import RetryPolicy
from gateway.settings import InvalidSettings, Settings, read_settings, unknown_variables
from tests.gateway.commands import run_here


def config(folder: Path, text: str) -> Path:
    path = folder / "gateway.yaml"
    path.write_text(text)
    return path


def refusal(folder: Path, text: str) -> list[str]:
    with pytest.raises(InvalidSettings) as refused:
        read_settings({}, config(folder, text))
    return str(refused.value).splitlines()


# name, option, environment, what the environment's text means, file, default
KINDS = [
    ("host", "1.1.1.1", "2.2.2.2", "2.2.2.2", "3.3.3.3", "127.0.0.1"),
    ("port", 1, "2", 2, 3, 8080),
    (
        "database",
        "sqlite:///a",
        "sqlite:///b",
        "sqlite:///b",
        "sqlite:///c",
        "sqlite:///data/nexus.db",
    ),
    ("log_format", "json", "json", "json", "json", "text"),
    ("allow_private_callbacks", True, "true", True, True, False),
    ("public_url", "http://a", "http://b", "http://b", "http://c", None),
    ("drain_seconds", 1.5, "2.5", 2.5, 3.5, 10.0),
    ("targets", ["a:a"], '["b:b", "c:c"]', ["b:b", "c:c"], ["d:d"], []),
]


@pytest.mark.parametrize(("name", "option", "text", "meant", "in_file", "default"), KINDS)
def test_an_option_beats_the_environment_beats_the_file_beats_the_default(
    name: str,
    option: object,
    text: str,
    meant: object,
    in_file: object,
    default: object,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = config(folder, f"{name}: {in_file!r}".replace("'", '"').replace("True", "true"))
    variable = f"NEXUS_GATEWAY_{name.upper()}"
    assert getattr(read_settings({}), name) == default
    assert getattr(read_settings({}, file), name) == in_file
    monkeypatch.setenv(variable, text)
    assert getattr(read_settings({}, file), name) == meant
    assert getattr(read_settings({name: None}, file), name) == meant
    assert getattr(read_settings({name: option}, file), name) == option
    assert getattr(read_settings({}, file, environment=False), name) == in_file


def test_a_false_of_a_stronger_source_beats_a_true_of_a_weaker(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUS_GATEWAY_ALLOW_PRIVATE_CALLBACKS", "false")
    settings = read_settings({}, config(folder, "allow_private_callbacks: true"))
    assert settings.allow_private_callbacks is False


def test_sections_are_merged_setting_by_setting(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUS_GATEWAY_CALLBACKS__MAX_AGE_SECONDS", "60")
    monkeypatch.setenv("NEXUS_GATEWAY_ENDPOINTS__OTHER__TARGETS", '["b:b"]')
    settings = read_settings(
        {}, config(folder, "callbacks: {max_age_seconds: 5, per_destination: 7}")
    )
    assert settings.callbacks.max_age_seconds == 60
    assert settings.callbacks.per_destination == 7
    assert settings.callbacks.attempt_timeout_seconds == 10
    assert settings.endpoints["other"].targets == ["b:b"]


@pytest.mark.parametrize("text", ["a:b c:d", "a:b,c:d", " a:b, c:d ", '["a:b", "c:d"]'])
def test_targets_may_be_words(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_settings({}, config(folder, f"targets: '{text}'")).targets == ["a:b", "c:d"]
    monkeypatch.setenv("NEXUS_GATEWAY_TARGETS", text)
    assert read_settings({}).targets == ["a:b", "c:d"]


def test_an_empty_variable_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOST", "PORT", "PUBLIC_URL", "TARGETS", "ALLOW_UNAUTHENTICATED"):
        monkeypatch.setenv(f"NEXUS_GATEWAY_{name}", "")
    assert read_settings({}).model_dump() == Settings().model_dump()


def test_what_kubernetes_sets_beside_a_service_of_our_name_is_no_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_kubernetes = {
        "NEXUS_GATEWAY_PORT": "tcp://10.0.0.1:80",
        "NEXUS_GATEWAY_PORT_80_TCP_ADDR": "10.0.0.1",
        "NEXUS_GATEWAY_SERVICE_HOST": "10.0.0.1",
        "NEXUS_GATEWAY_SERVICE_PORT": "80",
    }
    for name, value in of_kubernetes.items():
        monkeypatch.setenv(name, value)
    assert read_settings({}).port == 8080
    assert unknown_variables(of_kubernetes) == []


def test_misspelt_variables_are_found() -> None:
    names = [
        "PROT",
        "CALLBACKS__MAX_AGE_SECONDS",
        "URL",
        "API_KEY",
        "ENDPOINT",
        "PORT",
        "CALBACKS__X",
    ]
    environment = {f"NEXUS_GATEWAY_{name}": "1" for name in names} | {"PATH": "/bin"}
    assert unknown_variables(environment) == ["NEXUS_GATEWAY_CALBACKS__X", "NEXUS_GATEWAY_PROT"]


# what is in the file, and the line that is said of it after the file's name
MISTAKES = [
    ("hots: x", "hots: there is no such setting"),
    ("callbacks: {max_age: 1}", "callbacks.max_age: there is no such setting"),
    ("endpoints: {a: {targetz: []}}", "endpoints.a.targetz: there is no such setting"),
    ("port: http", "port: Input should be a valid integer"),
    ("port: 65536", "port: Input should be less than or equal to 65535"),
    ("host: ''", "host: String should have at least 1 character"),
    ("log_format: xml", "log_format: Input should be 'text' or 'json'"),
    ("allow_unauthenticated: 7", "allow_unauthenticated: Input should be a valid boolean"),
    ("targets: 7", "targets: Input should be a valid list"),
    ("targets: '[\"a'", "targets: is not valid JSON"),
    ("endpoints: [a]", "endpoints: Input should be a valid dictionary"),
    ("public_url: example.com", "public_url: must start with http:// or https://"),
    (
        "callbacks: {max_age_seconds: 0}",
        "callbacks.max_age_seconds: Input should be greater than 0",
    ),
    ("callbacks: {allow: [{host: 'http://x'}]}", "callbacks.allow.0.host: allow rule for"),
    (
        "callbacks: {breaker_failures: 0}",
        "callbacks.breaker_failures: Input should be greater than or equal to 1",
    ),
    (
        "callbacks: {per_second: 0}",
        "callbacks.per_second: Input should be greater than 0",
    ),
    (
        "callbacks: {longest_retry_seconds: 1000000}",
        "callbacks.longest_retry_seconds: Input should be less than or equal to 86400",
    ),
    (
        "callbacks: {permanent_statuses: [400, 200]}",
        "callbacks.permanent_statuses.1: Input should be greater than or equal to 300",
    ),
    (
        "callbacks: {dead_letter_webhook: ftp://x}",
        "callbacks.dead_letter_webhook: must begin with http:// or https://",
    ),
    (
        "callbacks: {dead_letter_webhook: 'http://169.254.169.254/'}",
        "callbacks.dead_letter_webhook: address 169.254.169.254 may not be called",
    ),
    (
        "callbacks: {destinations: [{host: a.example}, {host: 'a b'}]}",
        "callbacks.destinations.1.host: allow rule for 'a b': callback URL: the host is neither",
    ),
    ("callbacks: {destinations: [{}]}", "callbacks.destinations.0.host: Field required"),
    (
        "callbacks: {destinations: [{host: a.example, port: 0}]}",
        "callbacks.destinations.0.port: Input should be greater than or equal to 1",
    ),
    (
        "callbacks: {destinations: [{host: a.example, allow: []}]}",
        "callbacks.destinations.0.allow: there is no such setting",
    ),
    (
        "callbacks: {destinations: [{host: a.example, attempt_timeout_seconds: 601}]}",
        "callbacks.destinations.0.attempt_timeout_seconds: Input should be less than or equal",
    ),
]


@pytest.mark.parametrize(("text", "said"), MISTAKES)
def test_a_mistake_in_the_file_is_one_line_with_its_name(
    text: str, said: str, folder: Path
) -> None:
    [line] = refusal(folder, text)
    assert line.startswith(f"{folder / 'gateway.yaml'}: {said}")
    assert "pydantic" not in line


def test_every_mistake_has_its_line(folder: Path) -> None:
    lines = refusal(folder, "port: x\nhots: 1\ncallbacks: {per_destination: 0}\n")
    assert len(lines) == 3


def test_a_mistake_in_the_environment_names_the_variable(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUS_GATEWAY_PORT", "http")
    assert refusal(folder, "port: 1") == [
        "NEXUS_GATEWAY_PORT: Input should be a valid integer, unable to parse string as an integer"
    ]
    monkeypatch.delenv("NEXUS_GATEWAY_PORT")
    monkeypatch.setenv("NEXUS_GATEWAY_CALLBACKS__PER_DESTINATION", "0")
    assert refusal(folder, "") == [
        "NEXUS_GATEWAY_CALLBACKS__PER_DESTINATION: Input should be greater than or equal to 1"
    ]
    monkeypatch.delenv("NEXUS_GATEWAY_CALLBACKS__PER_DESTINATION")
    monkeypatch.setenv("NEXUS_GATEWAY_ENDPOINTS", "{x")
    assert refusal(folder, "") == ["NEXUS_GATEWAY_ENDPOINTS: is not valid JSON"]


def test_a_mistake_in_an_option_is_not_blamed_on_the_file(folder: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"^port: Input should be less"):
        read_settings({"port": 70000}, config(folder, "port: 1"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"port: [1\n  x", r", line 2, column 4: is not valid YAML: expected ',' or ']'"),
        (b"a: 1\n\tb: 2", r", line 2, column 1: is not valid YAML: "),
        (b"port: \x07", r": is not valid YAML: "),
        (b"\xff\xfe\x00", r": is not text in UTF-8$"),
        (b"- port: 1", r": has to hold names and values, such as `port: 8080`$"),
        (b"port", r": has to hold names and values, such as `port: 8080`$"),
        (b"1: 2", r": has to hold names and values, such as `port: 8080`$"),
    ],
)
def test_a_file_that_is_no_settings_file_is_one_line(data: bytes, said: str, folder: Path) -> None:
    path = folder / "gateway.yaml"
    path.write_bytes(data)
    with pytest.raises(InvalidSettings) as refused:
        read_settings({}, path)
    assert re.match(re.escape(str(path)) + said, str(refused.value))
    assert "\n" not in str(refused.value)


# ---------------------------------------------------------------- deliveries


def test_deliveries_go_by_default_as_the_code_says() -> None:
    delivery = read_settings({}).delivery
    assert delivery == DeliverySettings(rules=delivery.rules)
    assert delivery.rules.all == [DeliveryRule()]


def test_a_destination_goes_by_the_first_pattern_that_matches(folder: Path) -> None:
    rules = read_settings(
        {},
        config(
            folder,
            """
            callbacks:
              first_retry_seconds: 2
              per_destination: 7
              destinations:
                - {host: slow.example.com, port: 8443, attempt_timeout_seconds: 60}
                - {host: "*.example.com", per_second: 0.5, breaker_failures: 2, breaker_seconds: 9}
                - {host: slow.example.com, per_destination: 1}
                - {host: "::1", permanent_statuses: [410], max_age_seconds: 60}
                - {host: "*.example.com", port: 8443, per_destination: 1}
            """,
        ),
    ).delivery.rules
    general = DeliveryRule(retry=RetryPolicy(first=timedelta(seconds=2)), concurrency=7)
    breaker = BreakerPolicy(failures=2, first=timedelta(seconds=9))
    gentle = replace(general, per_second=0.5, breaker=breaker)
    assert rules.of("https://other.example:443") == general
    assert rules.of("https://slow.example.com:8443") == replace(
        general, attempt_timeout_seconds=60.0
    )
    for name in ("https://slow.example.com:443", "http://a.b.example.com:80"):
        assert rules.of(name) == gentle
    assert rules.of("https://example.com:443") == general
    assert rules.of("http://[::1]:9000") == replace(
        general,
        permanent_statuses=frozenset({410}),
        retry=replace(general.retry, max_age=timedelta(seconds=60)),
    )


def test_the_operators_webhook_may_be_on_a_private_address(folder: Path) -> None:
    settings = read_settings(
        {},
        config(
            folder,
            """
            callbacks:
              max_age_seconds: 100
              dead_letter_webhook: http://10.0.0.7/hooks?key=x
              destinations: [{host: 10.0.0.7, max_age_seconds: 50}]
            """,
        ),
    )
    assert settings.delivery.notice == Notice(
        "http://10.0.0.7/hooks?key=x", "http://10.0.0.7:80", 50_000
    )
    assert not settings.egress.allow_private


def test_deliveries_are_set_by_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "BREAKER_FAILURES": "9",
        "PERMANENT_STATUSES": "[410, 501]",
        "DEAD_LETTER_WEBHOOK": "https://ops.example/hook",
        "DESTINATIONS": '[{"host": "a.example", "per_second": 3}]',
    }.items():
        monkeypatch.setenv(f"NEXUS_GATEWAY_CALLBACKS__{name}", value)
    text = "callbacks: {breaker_failures: 2, per_destination: 8, destinations: [{host: b.example}]}"
    settings = read_settings({}, config(folder, text))
    rules = settings.delivery.rules
    assert (rules.default.breaker.failures, rules.default.concurrency) == (9, 8)
    assert rules.default.permanent_statuses == {410, 501}
    assert rules.of("https://a.example:443").per_second == 3
    assert len(rules.all) == 2
    assert settings.callbacks.dead_letter_webhook == "https://ops.example/hook"
    monkeypatch.setenv("NEXUS_GATEWAY_CALLBACKS__BREAKER_FAILURES", "0")
    assert refusal(folder, "") == [
        "NEXUS_GATEWAY_CALLBACKS__BREAKER_FAILURES: Input should be greater than or equal to 1"
    ]


def test_an_empty_file_says_nothing(folder: Path) -> None:
    settings = read_settings({}, config(folder, "# nothing yet\n"))
    assert settings.model_dump() == Settings().model_dump()


def test_a_file_that_cannot_be_read_is_one_line(folder: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"^there is no configuration file .*nosuch\.yaml$"):
        read_settings({}, folder / "nosuch.yaml")
    with pytest.raises(InvalidSettings, match=r"^cannot read .*: Is a directory$"):
        read_settings({}, folder)


def test_check_config_says_what_would_be_served(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUS_GATEWAY_PROT", "80")
    config(
        folder,
        "targets: [examples.orders:services]\n"
        "endpoints: {shop: {targets: examples.orders:services}}\n",
    )
    done = run_here(capfd, "check-config", "--config", "gateway.yaml")
    assert done.code == 0
    assert done.out.splitlines() == [
        "default: orders/place (durable)",
        "default: orders/quote (inline)",
        "shop: orders/place (durable)",
        "shop: orders/quote (inline)",
        "the configuration is good",
    ]
    assert done.err == ("warning: there is no such setting, so it is ignored: NEXUS_GATEWAY_PROT\n")


def test_check_config_gives_every_mistake_a_line(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config(folder, "log_level: x\nhots: 1\n")
    done = run_here(capfd, "check-config", "--config", "gateway.yaml")
    assert done.code == 1
    assert done.err.splitlines() == [
        "error: gateway.yaml: log_level: Input should be 'debug', 'info', 'warning' or 'error'",
        "error: gateway.yaml: hots: there is no such setting",
    ]


def test_check_config_looks_at_the_database_url(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config(folder, "database: postgresql://nexus:secret@db:port/nexus")
    said = run_here(capfd, "check-config", "--config", "gateway.yaml").one_error()
    assert said.startswith("gateway.yaml: database: postgresql://nexus@db:port/nexus is not a ")
    assert "secret" not in said


def test_the_worked_example_is_good(capfd: pytest.CaptureFixture[str]) -> None:
    file = Path(__file__).parents[2] / "examples" / "gateway.yaml"
    assert run_here(capfd, "check-config", "--config", file).code == 0


PROXIES = {
    "HTTPS_PROXY": "http://agent:s3cret@proxy.example:3128",
    "ALL_PROXY": "",
    "NO_PROXY": "inside.example",
}


@pytest.fixture
def proxies_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PROXIES.items():
        monkeypatch.setenv(name, value)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.usefixtures("proxies_of_the_environment")
def test_proxies_of_the_environment_are_for_those_who_ask(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_settings({}).callbacks.proxies.urls == []
    asked = config(folder, "callbacks: {proxy_from_environment: true}")
    settings = read_settings({}, asked)
    monkeypatch.setenv("HTTPS_PROXY", "http://later.example")  # what counts is how it was at start
    assert settings.callbacks.proxies.urls == ["http://proxy.example:3128"]
    assert "s3cret" not in repr(settings)


@pytest.mark.usefixtures("proxies_of_the_environment")
def test_a_proxy_that_cannot_be_used_is_a_mistake_in_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://agent:s3cret@proxy.example")
    (line,) = refusal(folder, "callbacks: {proxy_from_environment: true}")
    assert "HTTPS_PROXY: a proxy is reached over http or https" in line
    assert "s3cret" not in line
