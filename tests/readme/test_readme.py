"""The README's commands, run as a newcomer would, print what the README says."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients import NexusClient
from examples.orders import OrderIn, Orders, Receipt
from tests.support.gateway_process import REPOSITORY, GatewayProcess

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8080"

# What differs from run to run.
VARIABLE = [
    (re.compile(r"\b06[0-9a-v]{34}\b"), "TOKEN"),
    (re.compile(r"\b(pay|trk)-[0-9a-f]{10}\b"), r"\1-ID"),
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> Iterator[tuple[str, str]]:
    """Yield each command of the console blocks with the output below it."""
    for block in blocks("console"):
        for entry in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = entry.partition("\n")
            yield command, output


def normalised(text: str) -> str:
    for pattern, replacement in VARIABLE:
        text = pattern.sub(replacement, text)
    return text.strip()


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    with GatewayProcess.start(
        "examples.orders:services", tmp_path / "nexus.db", "--allow-private-callbacks"
    ) as process:
        yield process


def test_every_command_prints_what_the_readme_says(gateway: GatewayProcess) -> None:
    # One shell runs them all, as a reader's would, with a marker between the outputs. `TOKEN` is
    # "the token from above" after each start.
    script = [
        "set -u",
        f"export PATH={Path(sys.executable).parent}:$PATH",
        f"export NEXUS_GATEWAY_ENDPOINT={gateway.base_url}/services",
    ]
    expected = []
    for command, output in commands():
        here = command.replace(ADDRESS, gateway.base_url)
        script += [
            f"OUTPUT=$({here})" if not here.startswith("TOKEN=") else f"{here}; OUTPUT=",
            'printf "%s\\n" "$OUTPUT" "--- next ---"',
            'FOUND=$(printf "%s" "$OUTPUT" | sed -n \'s/.*"token":"\\([^"]*\\)".*/\\1/p\')',
            'TOKEN="${FOUND:-${TOKEN:-}}"',
        ]
        expected.append((command, normalised(output)))
    assert len(expected) >= 12
    ran = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=REPOSITORY,
    )
    outputs = ran.stdout.split("--- next ---\n")
    for (command, wanted), printed in zip(expected, outputs, strict=False):
        assert normalised(printed) == wanted, f"$ {command}\n{ran.stderr}"
    assert len(outputs) == len(expected) + 1


def test_the_service_of_the_readme_runs(tmp_path: Path) -> None:
    service = next(block for block in blocks("python") if block.startswith("# shipping.py"))
    (tmp_path / "shipping.py").write_text(service, encoding="utf-8")
    with GatewayProcess.start("shipping:services", tmp_path / "n.db", cwd=tmp_path) as gateway:
        answer = subprocess.run(
            [
                str(Path(sys.executable).with_name("nexus-gateway")),
                "call",
                "shipping",
                "ship",
                "--input",
                '"Main Street 1"',
                "--endpoint",
                f"{gateway.base_url}/services",
            ],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    assert answer.stdout == '"parcel to Main Street 1"\n'


@pytest.mark.anyio
async def test_the_client_of_the_readme_runs(gateway: GatewayProcess) -> None:
    client = next(block for block in blocks("python") if "NexusClient(" in block)
    body = client.partition("async with")[2]
    assert "nexus.start(Orders.place, OrderIn(" in body
    async with NexusClient(f"{gateway.base_url}/services") as nexus:
        handle = await nexus.start(Orders.place, OrderIn(item="teapot", ship_after_seconds=1))
        receipt = await handle.result()
    assert isinstance(receipt, Receipt)
    assert receipt.item == "teapot"
