import subprocess
import sys

import nexus_spec


def test_public_names_exist_and_are_sorted() -> None:
    constants = [name for name in nexus_spec.__all__ if name.isupper()]
    classes = [n for n in nexus_spec.__all__ if not n.isupper() and n[0].isupper()]
    functions = [name for name in nexus_spec.__all__ if name[0].islower()]
    assert nexus_spec.__all__ == sorted(constants) + sorted(classes) + sorted(functions)
    assert all(hasattr(nexus_spec, name) for name in nexus_spec.__all__)


def test_package_brings_no_network_and_no_database() -> None:
    code = "import sys, nexus_spec; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"aiohttp", "httpx", "sqlalchemy", "starlette"} & set(loaded)
