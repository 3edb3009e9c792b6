import importlib
import pkgutil

import pytest

import clients
from clients import ClientError
from nexus_spec import NexusError

MODULES = [module.name for module in pkgutil.iter_modules(clients.__path__, "clients.")]


@pytest.mark.parametrize("name", ["clients", *MODULES])
def test_all_is_sorted_and_true(name: str) -> None:
    module = importlib.import_module(name)
    exported = list(module.__all__)
    assert len(set(exported)) == len(exported)
    assert [entry for entry in exported if not hasattr(module, entry)] == []


def test_every_error_of_the_tree_is_exported_and_in_it() -> None:
    errors = importlib.import_module("clients.errors")
    for name in errors.__all__:
        assert getattr(clients, name) is getattr(errors, name)
        assert issubclass(getattr(errors, name), ClientError)
        assert name in (errors.__doc__ or "")
    assert issubclass(ClientError, NexusError)
