import importlib
import os
from pathlib import Path

import pytest

from gateway.loading import TargetNotLoaded, load_target
from gateway.runtime import registry
from handlers.services import InvalidService
from nexus_spec import NexusError
from tests.gateway.commands import run, run_here
from tests.gateway.conftest import GREETING

CLASSES = (
    GREETING
    + """
one = GreetingHandler()
a_class = GreetingHandler
undecorated = object()
classes = [GreetingHandler]
nothing = []
text = "services"
twice = [GreetingHandler(), GreetingHandler()]


class Namespace:
    services = (GreetingHandler(),)
"""
)


@pytest.fixture
def shop(folder: Path) -> Path:
    """A folder with services under many names, ours among them."""
    for name in (
        "shop.py",
        "handlers.py",
        "gateway.py",
        "json.py",
        "pack/services.py",
        "clients/billing.py",
        "my-shop.py",
        "other/shop.py",
    ):
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(CLASSES)
    (folder / "pack/__init__.py").touch()
    (folder / "services.txt").touch()
    importlib.invalidate_caches()
    return folder


@pytest.mark.parametrize(
    "target",
    [
        "shop:services",
        "shop:one",
        "shop:Namespace.services",
        "pack.services:services",
        "other.shop:services",
        "shop.py:services",
        "./shop.py:services",
        "./my-shop.py:services",
        "other/shop.py:one",
        "handlers.py:services",
        "./gateway.py:services",
        "clients/billing.py:services",
    ],
)
def test_a_target_is_a_module_or_a_file(target: str, shop: Path) -> None:
    [handler] = load_target(target)
    [hosted] = registry([handler], None)
    assert (hosted.service, hosted.operation) == ("greeting", "hello")


def test_a_file_is_named_by_its_absolute_path_too(shop: Path) -> None:
    assert len(load_target(f"{shop}/shop.py:services")) == 1


def test_a_file_is_run_once_however_often_it_is_named(shop: Path) -> None:
    assert load_target("./shop.py:one")[0] is load_target(f"{shop}/shop.py:one")[0]


def test_files_of_one_name_in_two_folders_are_two_modules(shop: Path) -> None:
    first, second = load_target("./shop.py:one")[0], load_target("other/shop.py:one")[0]
    assert type(first) is not type(second)
    assert type(first).__module__ != type(second).__module__


def test_a_file_imports_from_its_own_folder(shop: Path) -> None:
    (shop / "other/prices.py").write_text("TEAPOT = 34")
    (shop / "other/uses.py").write_text(CLASSES + "\nimport prices\nassert prices.TEAPOT == 34\n")
    importlib.invalidate_caches()
    assert load_target("other/uses.py:one")


# a target, what hides it, and the file that it should have been
HIDDEN = [
    ("handlers:services", "the gateway's package 'handlers'", "handlers.py"),
    ("gateway:services", "the gateway's package 'gateway'", "gateway.py"),
    ("clients.billing:services", "the gateway's package 'clients'", "clients/billing.py"),
    ("json:services", "an imported module 'json'", "json.py"),
]


@pytest.mark.parametrize(("target", "by", "file"), HIDDEN)
def test_a_module_that_another_hides_is_said_to_be(
    target: str, by: str, file: str, shop: Path
) -> None:
    with pytest.raises(TargetNotLoaded) as refused:
        load_target(target)
    assert str(refused.value) == (
        f"{target}: your {file} is hidden by {by}, so name the file: ./{file}:services"
    )


# a target, and how what is said of it goes on after its name
REFUSED = [
    ("nosuch:services", ": there is no module 'nosuch' in {here} or on the path"),
    ("pack.nosuch:services", ": there is no module 'pack.nosuch' in {here} or on the path"),
    ("nosuch.pack:services", ": there is no module 'nosuch' in {here} or on the path"),
    ("nosuch.py:services", ": there is no file {here}/nosuch.py"),
    ("other/:services", ": there is no file {here}/other"),
    ("./services.txt:services", ": {here}/services.txt is not a Python file"),
    ("shop:nosuch", ": shop has no attribute 'nosuch'"),
    ("shop:services.nosuch", ": shop has no attribute 'services.nosuch'"),
    ("./shop.py:nosuch", ": ./shop.py has no attribute 'nosuch'"),
    ("shop:nothing", ": the list is empty; put service handler instances into it"),
    ("my-shop:services", ": 'my-shop' cannot be a module's name"),
    (".:services", ": '.' cannot be a module's name"),
    ("..:services", ": '..' cannot be a module's name"),
    (".shop:services", ": '.shop' cannot be a module's name"),
]
NO_TARGETS = ["shop", "shop.py", ".", "..", ":", ":services", "shop:", " :services", ""]


@pytest.mark.parametrize(("target", "said"), REFUSED)
def test_what_cannot_be_loaded_is_one_line(target: str, said: str, shop: Path) -> None:
    with pytest.raises(TargetNotLoaded) as refused:
        load_target(target)
    assert str(refused.value).startswith(target + said.format(here=shop))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("target", NO_TARGETS)
def test_what_is_no_target_is_shown_one(target: str, shop: Path) -> None:
    with pytest.raises(TargetNotLoaded, match=r"is not MODULE:ATTRIBUTE or FILE\.py:ATTRIBUTE"):
        load_target(target)


# what a module holds, and what is said of it
BROKEN = [
    ("def x(:", "SyntaxError: invalid syntax (broken.py, line 1)"),
    ("\n\nraise ValueError('no\\n database')", "ValueError: no database ({file}, line 3)"),
    ("raise RuntimeError", "RuntimeError ({file}, line 1)"),
    (
        "import nosuch_library",
        "ModuleNotFoundError: No module named 'nosuch_library' ({file}, line 1)",
    ),
    ("import sys\nsys.exit(3)", "SystemExit: 3 ({file}, line 2)"),
    ("from handlers import Mine", "ImportError: cannot import name 'Mine' from 'handlers' ("),
]


@pytest.mark.parametrize("form", ["broken:x", "./broken.py:x"])
@pytest.mark.parametrize(("text", "said"), BROKEN)
def test_a_module_that_cannot_be_imported_says_what_and_where(
    form: str, text: str, said: str, folder: Path
) -> None:
    file = folder / "broken.py"
    file.write_text(text)
    importlib.invalidate_caches()
    with pytest.raises(TargetNotLoaded) as refused:
        load_target(form)
    line = str(refused.value)
    assert line.startswith(f"{form}: importing it failed: {said.format(file=file)}")
    assert "\n" not in line
    assert ("package of the gateway" in line) == ("handlers" in text)


@pytest.mark.parametrize(
    ("attribute", "said"),
    [
        ("a_class", r"GreetingHandler is a class; give an instance of it: GreetingHandler\(\)"),
        ("classes", r"GreetingHandler is a class; give an instance of it: GreetingHandler\(\)"),
        ("undecorated", r"is no service handler: decorate its class"),
        ("text", r"is no service handler: decorate its class"),
        ("twice", r"endpoint 'default' has two services named 'greeting'"),
    ],
)
def test_what_is_no_service_is_refused(attribute: str, said: str, shop: Path) -> None:
    with pytest.raises(InvalidService, match=said) as refused:
        registry(load_target(f"shop:{attribute}"), None)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", [".", "..", "", "a\0b", "x" * 1001])
def test_a_name_that_no_url_can_carry_is_refused(name: str, folder: Path) -> None:
    (folder / "named.py").write_text(GREETING.replace('"greeting"', repr(name)))
    importlib.invalidate_caches()
    with pytest.raises(NexusError) as refused:
        registry(load_target("named:services"), None)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", [".", "..", "", "x" * 1001])
def test_an_endpoint_that_no_url_can_carry_is_refused(name: str, shop: Path) -> None:
    with pytest.raises(InvalidService, match="cannot be served"):
        registry((), {name: load_target("shop:services")})


def test_an_endpoint_may_have_any_other_name(shop: Path) -> None:
    [hosted] = registry((), {"a/b c": load_target("shop:services")})
    assert hosted.endpoint == "a/b c"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("handlers:services", "is hidden by the gateway's package 'handlers'"),
        ("broken:services", "importing it failed: ZeroDivisionError: division by zero"),
    ],
)
def test_the_command_says_it_in_one_line(target: str, said: str, shop: Path) -> None:
    (shop / "broken.py").write_text("1 / 0")
    assert said in run("serve", target, "--port", "0", cwd=shop).one_error()


def test_the_command_finds_modules_in_the_current_folder(
    shop: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = run_here(capfd, "check-config", "pack.services:services", "./shop.py:nothing")
    assert "./shop.py:nothing: the list is empty" in done.one_error()
    assert os.fspath(shop) not in done.err
    done = run_here(capfd, "check-config", "pack.services:services")
    assert done.out.splitlines()[0] == "default: greeting/hello (inline)"
