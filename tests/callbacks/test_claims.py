"""Who gets how many of the due deliveries, and when."""

import pytest

from callbacks.claims import ClaimDue
from callbacks.delivery import DeliverySettings
from callbacks.outcomes import Attempt, Retry
from tests.callbacks.conftest import OpenOffice
from tests.callbacks.office import one_rule, until

pytestmark = pytest.mark.anyio


def as_many_as_there_are(destination: str) -> int:
    return 1000


async def test_a_claim_takes_no_more_than_memory_wants(open_office: OpenOffice) -> None:
    """What is sent slowly waits in the database, and leaves memory to the others."""
    rules = one_rule(per_second=0.2)
    office = await open_office(settings=DeliverySettings(rules=rules, in_memory=100))
    for n in range(30):
        for k in range(20):
            await office.leave(f"t{n}-{k}", f"slow{n}.example")
    await until(lambda: office.service.held >= 30)
    await office.leave("other", "other.example")
    await office.is_("other", "delivered", 1)
    # One under way or done, one that waits.
    assert office.service.held <= 2 * 30


async def test_a_claim_takes_a_few_of_each(open_office: OpenOffice) -> None:
    office = await open_office(settings=DeliverySettings(in_memory=0))
    for n in range(90):
        await office.leave(f"big{n}", "big.example")
    for n in range(9):
        await office.leave(f"small{n}", f"small{n}.example")
    claim = ClaimDue("me", office.now(), 40, as_many_as_there_are, (), 1000)
    first = await office.database.write(claim)
    hosts = [each.destination for each in first.deliveries]
    assert len(hosts) == 13
    assert hosts.count("http://big.example:80") == 4
    assert first.more
    second = await office.database.write(claim)
    assert {each.destination for each in second.deliveries} == {"http://big.example:80"}
    assert len(second.deliveries) == 40


async def test_who_was_served_stands_behind(open_office: OpenOffice) -> None:
    """With more destinations than one claim looks at, all have their turn."""
    office = await open_office(settings=DeliverySettings(in_memory=0))
    for n in range(100):
        for k in range(3):
            await office.leave(f"t{n}-{k}", f"h{n}.example")
    seen: list[set[str]] = []
    for _ in range(2):
        office.time += 1
        claim = ClaimDue("me", office.now(), 64, as_many_as_there_are, (), 1000)
        found = await office.database.write(claim)
        seen.append({each.destination for each in found.deliveries})
    assert [len(hosts) for hosts in seen] == [64, 64]
    assert len(seen[0] | seen[1]) == 100


async def test_what_waits_longer_than_others_waits_for_its_time(open_office: OpenOffice) -> None:
    office = await open_office(settings=DeliverySettings(in_memory=0))
    claimed = await office.database.write(office.ending("t1", claim=True))
    attempt = Attempt(1, 0, 1, 500, None, None, None)
    await office.database.write(
        Retry(claimed[0], office.time + 5000, "answered 500", False, office.time, attempt)
    )
    await office.leave("t2")
    claim = ClaimDue("me", office.now(), 40, as_many_as_there_are, (), 1000)
    found = await office.database.write(claim)
    assert [each.token for each in found.deliveries] == ["t2"]
    assert found.next_at == office.time + 5000
    assert not found.more
