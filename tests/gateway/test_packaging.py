import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import httpx
import pytest
import yaml

from tests.gateway.commands import environment
from tests.gateway.conftest import GREETING
from tests.support.gateway_process import REPOSITORY

PACKAGES = ("nexus_spec", "clients", "callbacks", "handlers", "gateway", "examples")


def git(*arguments: str, cwd: Path) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clean clone would hold: the files that git has or would take, and nothing else."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git repository")
    folder = tmp_path_factory.mktemp("checkout")
    names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=REPOSITORY)
    for name in filter(None, names.decode().split("\0")):
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(checkout / "dist")],
        cwd=checkout,
        capture_output=True,
        check=True,
    )
    [built] = (checkout / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of a fresh environment with the wheel in it.

    What the gateway depends on comes from the environment that runs this test.
    """
    home = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    subprocess.run(
        [
            *(sys.executable, "-m", "uv", "pip", "install", "--offline", "--no-deps"),
            *("--python", str(python), str(wheel)),
        ],
        capture_output=True,
        check=True,
        env={**os.environ, "UV_NO_CONFIG": "1"},
    )
    [packages] = home.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def test_everything_that_runs_is_in_the_wheel(wheel: Path, checkout: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {
        str(file.relative_to(checkout))
        for package in PACKAGES
        for file in (checkout / package).rglob("*")
        if file.is_file()
    }
    assert shipped <= names
    rest = {name for name in names - shipped if ".dist-info/" not in name}
    assert rest == {"gateway/openapi.yaml"}
    assert all(f"{package}/py.typed" in names for package in PACKAGES)


def test_the_wheel_names_what_it_needs(wheel: Path, checkout: Path) -> None:
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    archive = zipfile.ZipFile(wheel)
    [metadata] = [name for name in archive.namelist() if name.endswith("/METADATA")]
    text = archive.read(metadata).decode()
    for requirement in project["dependencies"]:
        assert f"Requires-Dist: {requirement.split('>')[0].split('[')[0]}" in text


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    (tmp_path / "greetings.py").write_text(GREETING)
    return tmp_path


def test_the_installed_command_serves_a_module_of_ones_own(
    installed: Path, elsewhere: Path
) -> None:
    process = subprocess.Popen(
        [
            *(str(installed / "nexus-gateway"), "serve", "--port", "0"),
            *("greetings:services", "examples.orders:services"),
        ],
        cwd=elsewhere,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        assert line.startswith("listening on "), line + process.stderr.read()
        with httpx.Client(base_url=line.split()[-1]) as http:
            assert http.post("/services/greeting/hello", json="you").json() == "hello you"
            placed = http.post(
                "/services/orders/place",
                json={"item": "mug", "ship_after_seconds": 0},
                headers={"prefer": "wait=20"},
            )
            assert placed.json()["item"] == "mug"
            contract = http.get("/openapi.yaml").content
            assert contract == (REPOSITORY / "openapi.yaml").read_bytes()
            assert "/services/greeting/hello" in http.get("/openapi.json").json()["paths"]
        assert (elsewhere / "data/nexus.db").is_file()
    finally:
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in said


def test_the_installed_packages_are_those_of_the_wheel(installed: Path, elsewhere: Path) -> None:
    done = subprocess.run(
        [installed / "python", "-c", "import gateway, handlers; print(gateway.__file__)"],
        cwd=elsewhere,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).is_relative_to(installed.parent)


def test_the_contract_at_the_root_is_the_one_in_the_wheel(wheel: Path) -> None:
    packaged = zipfile.ZipFile(wheel).read("gateway/openapi.yaml")
    assert yaml.safe_load(packaged)["info"]["title"] == "Nexus RPC gateway"
    assert packaged == (REPOSITORY / "openapi.yaml").read_bytes()
