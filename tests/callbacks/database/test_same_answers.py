"""The same writes have the same answers and leave the same rows on both databases.

And on PostgreSQL they do so whether they run alone or as a batch.
"""

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa

from callbacks.database import Database, Row, Statement, Transaction, listed, open_database
from tests.callbacks.database.conftest import things

pytestmark = pytest.mark.anyio

_bind = sa.bindparam
_mine = things.c.a == _bind("a")

_STATEMENTS = {
    "insert": Statement(
        sa.insert(things).values(a=_bind("a"), b=_bind("b"), c=_bind("c"), d=7), or_ignore=True
    ),
    "insert_returning": Statement(
        sa.insert(things).values(a=_bind("a"), b=_bind("b")).returning(things.c.b, things.c.a),
        or_ignore=True,
    ),
    "copy": Statement(
        sa.insert(things).from_select(
            ["a", "b", "c", "d"],
            sa.select(
                _bind("copy", type_=sa.Integer),
                things.c.b,
                things.c.c,
                sa.func.coalesce(things.c.d, _bind("d")),
            ).where(_mine, things.c.b == _bind("b")),
        ),
        or_ignore=True,
    ),
    "rename": Statement(sa.update(things).where(_mine).values(b=_bind("new_b"), c=_bind("c"))),
    "raise": Statement(
        sa.update(things)
        .where(_mine, things.c.d < _bind("d"))
        .values(d=things.c.d + _bind("more"))
        .returning(things.c.d)
    ),
    "raise_old": Statement(
        sa.update(things)
        .where(
            _mine,
            things.c.a.in_(sa.select(things.c.a).where(things.c.d <= _bind("d"))),
        )
        .values(d=sa.case((things.c.d == 7, 8), else_=_bind("d", type_=sa.BigInteger)))
    ),
    "delete": Statement(sa.delete(things).where(_mine, things.c.b != _bind("b"))),
    "read": Statement(
        sa.select(things.c.a, things.c.b, things.c.c, things.c.d).where(
            things.c.a.in_([sa.literal_column(str(n)) for n in range(5)]), _mine
        )
    ),
    "lock": Statement(sa.select(things.c.d).where(_mine).with_for_update(key_share=True)),
    "near": Statement(
        sa.select(things.c.a, things.c.d)
        .where(_mine, sa.or_(_bind("b").is_(None), things.c.b == _bind("b")))
        .order_by(things.c.a.desc())
    ),
    "count": Statement(sa.select(sa.func.count()).where(_mine)),
    "among": Statement(
        sa.select(things.c.b).where(_mine, things.c.b.in_(listed("texts"))).limit(_bind("most"))
    ),
}
_CHANGES = {"insert", "copy", "rename", "raise_old", "delete"}
_ALL = Statement(sa.select(things).order_by(things.c.a))


@dataclass
class Script:
    """Some statements on one row, and its copy; what was seen is the answer."""

    key: int
    steps: Sequence[tuple[str, Mapping[str, Any]]]

    @property
    def subject(self) -> str | None:
        return str(self.key)

    async def apply(self, tx: Transaction) -> list[Any]:
        seen: list[Any] = []
        for name, params in self.steps:
            if name in _CHANGES:
                seen.append(await tx.execute(_STATEMENTS[name], params))
            else:
                seen.append(list(await tx.fetch(_STATEMENTS[name], params)))
        return seen


def scripts(chance: random.Random) -> list[Script]:
    made = []
    for _ in range(40):
        key = chance.randrange(12)
        steps = [
            (
                chance.choice(list(_STATEMENTS)),
                {
                    "a": key,
                    "copy": key + 100,
                    "b": chance.choice(["", "it's", "ü", None]),
                    "new_b": chance.choice(["", "it's", "ü", None]),
                    "c": chance.choice([b"", b"\x00\xff", None]),
                    "d": chance.choice([-1, 7, 8, 2**40]),
                    "more": chance.choice([1, 2**41]),
                    "texts": '["", "ü"]',
                    "most": 2,
                },
            )
            for _ in range(chance.randrange(1, 6))
        ]
        made.append(Script(key, steps))
    return made


async def outcome(
    database: Database, batches: Sequence[Sequence[Script]], *, alone: bool
) -> tuple[list[Any], Sequence[Row]]:
    answers: list[Any] = []
    for batch in batches:
        if alone:
            answers += [await database.write(script) for script in batch]
        else:
            answers += await asyncio.gather(*map(database.write, batch))
    return answers, [tuple(row) for row in await database.fetch(_ALL, {})]


@pytest.mark.parametrize("seed", range(8))
async def test_batches_on_both_and_single_writes(
    sqlite_url: str, things_url: str, seed: int
) -> None:
    chance = random.Random(seed)
    batches = [scripts(chance) for _ in range(6)]
    on_sqlite = await open_database(sqlite_url)
    on_postgres = await open_database(things_url)
    expected = await outcome(on_sqlite, batches, alone=False)
    assert expected[1]
    assert await outcome(on_postgres, batches, alone=False) == expected
    clear = Statement(sa.delete(things).where(things.c.a >= _bind("a")))

    class Clear:
        subject = None

        async def apply(self, tx: Transaction) -> int:
            return await tx.execute(clear, {"a": 0})

    await on_postgres.write(Clear())
    assert await outcome(on_postgres, batches, alone=True) == expected
    await on_sqlite.aclose()
    await on_postgres.aclose()


def test_all_but_a_few_have_a_batched_form() -> None:
    alone = {name for name, of in _STATEMENTS.items() if of.postgres.batched is None}
    assert alone == {"count", "among"}


async def test_two_changes_of_one_row_in_one_batch_are_both_done(things_url: str) -> None:
    database = await open_database(things_url)
    insert = ("insert", {"a": 1, "b": "x", "c": None})
    more = {"a": 1, "d": 2**40, "more": 1}

    class Anybody(Script):
        subject = None

    await database.write(Script(1, [insert]))
    answers = await asyncio.gather(
        *(database.write(Anybody(1, [("raise", more)])) for _ in range(5)),
        *(database.write(Anybody(1, [insert])) for _ in range(2)),
    )
    assert database.batches == 2
    assert sorted(answers[:5]) == [[[(8 + n,)]] for n in range(5)]
    assert answers[5:] == [[0], [0]]
    await database.aclose()


async def test_of_equal_inserts_in_one_batch_one_is_done(things_url: str) -> None:
    database = await open_database(things_url)

    class Anybody(Script):
        subject = None

    step = ("insert_returning", {"a": 1, "b": "x"})
    answers = await asyncio.gather(*(database.write(Anybody(1, [step])) for _ in range(3)))
    assert answers == [[[("x", 1)]], [[]], [[]]]
    await database.aclose()
