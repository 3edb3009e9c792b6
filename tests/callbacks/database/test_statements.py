"""Every statement of the gateway is one that PostgreSQL understands, in both its forms."""

import importlib
import pkgutil
from types import ModuleType

import asyncpg
import pytest
import sqlalchemy as sa

import callbacks
import gateway
import handlers
from callbacks.database import Statement

pytestmark = pytest.mark.anyio


def _modules(package: ModuleType) -> list[ModuleType]:
    return [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not found.name.startswith("gateway.migrations")
    ]


def statements() -> dict[str, Statement]:
    found: dict[int, tuple[str, Statement]] = {}
    for package in (callbacks, handlers, gateway):
        for module in _modules(package):
            for name, value in vars(module).items():
                if isinstance(value, Statement):
                    found.setdefault(id(value), (f"{module.__name__}.{name}", value))
    return dict(found.values())


async def test_every_statement_can_be_prepared(postgres_url: str) -> None:
    collected = statements()
    assert len(collected) > 40
    connection = await asyncpg.connect(postgres_url)
    wrong = []
    for name, statement in collected.items():
        try:
            forms = statement.postgres
            await connection.prepare(forms.single.sql)
            if forms.batched is not None:
                await connection.prepare(forms.batched.sql)
        except (TypeError, asyncpg.PostgresError) as error:
            wrong.append(f"{name}: {error}")
    await connection.close()
    assert wrong == []


def test_the_statements_of_every_step_have_a_batched_form() -> None:
    of_every_step = (
        "handlers.store.journals._APPEND",
        "handlers.store.starting._INSERT",
        "handlers.store.starting._BY_REQUEST",
        "handlers.store.ending._END",
        "callbacks.outbox._REGISTER",
        "callbacks.outbox._REGISTERED",
        "callbacks.outbox._FREEZE",
    )
    collected = statements()
    assert [name for name in of_every_step if collected[name].postgres.batched is None] == []


def test_a_parameter_without_a_type_is_named() -> None:
    table = sa.table("t", sa.column("a"))
    statement = Statement(sa.select(table.c.a).where(table.c.a == sa.bindparam("which")))
    with pytest.raises(TypeError, match=r"'which' has no type: say bindparam\('which', type_="):
        _ = statement.postgres


def test_on_conflict_stands_before_returning() -> None:
    table = sa.Table("t", sa.MetaData(), sa.Column("a", sa.Integer, primary_key=True))
    statement = Statement(
        sa.insert(table).values(a=sa.bindparam("a")).returning(table.c.a), or_ignore=True
    )
    assert statement.sql.endswith("VALUES (:a) ON CONFLICT DO NOTHING RETURNING a")
    assert statement.postgres.single.sql.endswith(
        "VALUES ($1::integer) ON CONFLICT DO NOTHING RETURNING t.a"
    )
