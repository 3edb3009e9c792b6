from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway import create_app
from tests.gateway.desk import open_desk_on
from tests.gateway.services import LabHandler
from tests.support.callback_receiver import Answer, CallbackReceiver
from tests.support.eventually import eventually
from tests.support.gateway_process import Served, served

pytestmark = pytest.mark.anyio

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Served]:
    app = create_app(
        [LabHandler()], database=f"sqlite:///{tmp_path}/nexus.db", allow_private_callbacks=True
    )
    async with served(app) as serving:
        yield serving


async def samples(http: httpx.AsyncClient) -> Samples:
    answer = await http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def test_an_empty_gateway_has_numbers_all_the_same(here: Served) -> None:
    async with httpx.AsyncClient(base_url=here.base_url) as http:
        found = await samples(http)
    assert found["nexus_operations_in_memory", ()] == 0
    assert found["nexus_operation_duration_seconds_count", ()] == 0
    assert found["nexus_callback_oldest_due_seconds", ()] == 0
    assert found["nexus_callback_outcomes_total", (("outcome", "delivered"),)] == 0


async def test_what_happens_is_counted(here: Served, receiver: CallbackReceiver) -> None:
    receiver.will_answer(503, 200, 400)

    def of(operation: str, **more: str) -> tuple[tuple[str, str], ...]:
        labels = {"endpoint": "default", "service": "lab", "operation": operation, **more}
        return tuple(sorted(labels.items()))

    async with httpx.AsyncClient(base_url=here.base_url) as http:
        for _ in range(3):
            await http.post("/services/lab/echo", json=1)
        await http.post("/services/lab/nap", json=60)
        callback = {"callback": receiver.url()}
        await http.post("/services/lab/two_steps", json=0, params=callback)
        await receiver.received(2)
        await http.post("/services/lab/end", json="failed", params=callback)
        await receiver.received(3)

        async def counted() -> Samples | None:
            found = await samples(http)
            given_up = found["nexus_callback_outcomes_total", (("outcome", "failed"),)]
            return found if given_up else None

        found = await eventually(counted)
    assert found["nexus_operation_starts_total", of("echo")] == 3
    assert found["nexus_operation_starts_total", of("two_steps")] == 1
    assert found["nexus_operations_ended_total", of("two_steps", state="succeeded")] == 1
    assert found["nexus_operations_ended_total", of("end", state="failed")] == 1
    assert ("nexus_operations_ended_total", of("nap", state="succeeded")) not in found
    assert sum(v for (name, _), v in found.items() if name == "nexus_operations_open") == 1
    assert found["nexus_operations_in_memory", ()] == 0  # it sleeps, in the database
    assert found["nexus_operation_duration_seconds_count", ()] == 2
    assert found["nexus_operation_duration_seconds_bucket", (("le", "+Inf"),)] == 2
    assert found["nexus_step_duration_seconds_count", ()] == 2
    assert found["nexus_callback_attempt_seconds_count", ()] == 3
    outcomes = {
        dict(labels)["outcome"]: value
        for (name, labels), value in found.items()
        if name == "nexus_callback_outcomes_total"
    }
    assert outcomes == {"delivered": 1, "retried": 1, "failed": 1}
    assert found["nexus_database_writes_total", ()] >= found["nexus_database_commits_total", ()] > 0


async def test_buckets_only_grow(here: Served) -> None:
    async with httpx.AsyncClient(base_url=here.base_url) as http:
        for seconds in (0, 0.02, 0.2):
            await http.post("/services/lab/nap", json=seconds, headers={"prefer": "wait=10"})
        found = await samples(http)
    buckets = sorted(
        (float(dict(labels)["le"]), value)
        for (name, labels), value in found.items()
        if name == "nexus_operation_duration_seconds_bucket"
    )
    values = [value for _, value in buckets]
    assert values == sorted(values)
    assert values[-1] == 3
    assert found["nexus_operation_duration_seconds_sum", ()] >= 0.22


async def test_a_backlog_shows_how_old_it_is(here: Served, receiver: CallbackReceiver) -> None:
    receiver.will_answer(503)
    async with httpx.AsyncClient(base_url=here.base_url) as http:
        await http.post("/services/lab/two_steps", json=0, params={"callback": receiver.url()})
        await receiver.received()

        async def due() -> bool | None:
            found = await samples(http)
            return found.get(("nexus_callbacks", (("state", "due"),))) == 1 or None

        assert await eventually(due)


async def test_destinations_that_deliveries_wait_for_are_counted(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/nexus.db"
    async with (
        open_desk_on(url, breaker_failures=2) as desk,
        CallbackReceiver(lambda _: Answer(500)) as broken,
        CallbackReceiver(lambda _: Answer(503, {"Retry-After": "60"})) as busy,
    ):

        async def counted(*expected: int) -> bool | None:
            found = await samples(desk.http)
            states = [
                found["nexus_callback_destinations", (("state", state),)]
                for state in ("open", "disabled", "waiting")
            ]
            return states == list(expected) or None

        assert await counted(0, 0, 0)
        for receiver in (broken, broken, busy):
            await desk.of(await desk.start("end", "null", receiver.url()), "due")
        await eventually(lambda: counted(1, 0, 1))
        await desk.post("destinations/disable", {"destination": broken.url()})
        await eventually(lambda: counted(0, 1, 1))
        for receiver in (broken, busy):
            await desk.post("destinations/enable", {"destination": receiver.url()})
        await eventually(lambda: counted(0, 0, 0))


async def test_a_head_request_has_no_body(here: Served) -> None:
    async with httpx.AsyncClient(base_url=here.base_url) as http:
        answer = await http.head("/metrics")
    assert (answer.status_code, answer.content) == (200, b"")
