"""Workflows on a real Temporal server call operations that the gateway serves."""

import asyncio
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflow.v1 import PendingNexusOperationInfo

from tests.interop.conftest import TARGET, TASK_QUEUE, Temporal
from tests.interop.contract import Greeting, Person, Work
from tests.interop.workflows import Call, CallOperation, Cause, GreetTwice, Outcome
from tests.support.eventually import eventually
from tests.support.gateway_process import GatewayProcess

pytestmark = [pytest.mark.anyio, pytest.mark.temporal]

WORKFLOWS_AT_ONCE = 50
# A server that has less time left than 1.5 s does not even send the request.
SHORT_TIMEOUT_SECONDS = 2.5

OUTERMOST = Cause(error="NexusOperationError", message="nexus operation completed unsuccessfully")


async def call(temporal: Temporal, operation: str, value: Any = None, **options: Any) -> Outcome:
    return await temporal.call(
        Call(endpoint=temporal.gateway, operation=operation, input=value, **options)
    )


async def shown(gateway: GatewayProcess, token: str) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=gateway.base_url) as http:
        answer = await http.get(f"/api/v1/operations/{token}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def work_in(folder: Path) -> Work:
    return Work(journal=str(folder / "journal"), waits_for=str(folder / "go"))


def allow_to_end(work: Work) -> None:
    Path(work.waits_for).touch()


def lines(work: Work) -> list[str]:
    journal = Path(work.journal)
    return journal.read_text().splitlines() if journal.exists() else []


# ---------------------------------------------------------------- results


async def test_typed_calls_inline_and_durable(temporal: Temporal) -> None:
    greetings = await temporal.client.execute_workflow(
        GreetTwice.run,
        args=[temporal.gateway, Person(name="ann")],
        id=f"greet-{uuid.uuid4()}",
        task_queue=TASK_QUEUE,
    )
    assert greetings == [Greeting(text="hello ann"), Greeting(text="hello ann, later")]


async def test_an_inline_result_has_no_token(temporal: Temporal) -> None:
    outcome = await call(temporal, "greet", Person(name="bob"))
    assert outcome == Outcome(token=None, result={"text": "hello bob"})


async def test_a_durable_result_arrives_by_callback(
    temporal: Temporal, gateway: GatewayProcess
) -> None:
    outcome = await call(temporal, "greet_later", Person(name="bob"))
    assert outcome.result == {"text": "hello bob, later"}
    assert outcome.token is not None

    async def delivery() -> dict[str, Any] | None:
        operation = await shown(gateway, outcome.token or "")
        [found] = operation["deliveries"]
        return found if found["state"] == "delivered" else None

    delivered = await eventually(delivery)
    assert delivered["url"] == f"{temporal.server.http_url}/namespaces/default/nexus/callback"
    assert delivered["attempts"] == 1


@pytest.mark.parametrize("operation", ["nothing", "nothing_later"])
async def test_null_in_and_out(temporal: Temporal, operation: str) -> None:
    outcome = await call(temporal, operation)
    assert (outcome.result, outcome.causes) == (None, [])
    assert (outcome.token is None) == (operation == "nothing")


async def test_many_workflows_at_once(temporal: Temporal) -> None:
    names = [f"caller {n}" for n in range(WORKFLOWS_AT_ONCE)]
    outcomes = await asyncio.gather(
        *(call(temporal, "greet_later", Person(name=name)) for name in names)
    )
    assert [o.result for o in outcomes] == [{"text": f"hello {name}, later"} for name in names]
    assert len({outcome.token for outcome in outcomes}) == WORKFLOWS_AT_ONCE


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("operation", ["fail", "fail_at_once"])
async def test_a_failed_operation_shows_its_message_and_causes(
    temporal: Temporal, operation: str
) -> None:
    outcome = await call(temporal, operation, "out of stock")
    assert outcome.causes == [
        OUTERMOST,
        Cause(
            error="ApplicationError",
            message="OperationError: out of stock",
            type="OperationError",
            retryable=False,
        ),
        Cause(
            error="HandlerError",
            message="the shelf is empty",
            type="NOT_FOUND",
            retryable=False,
        ),
    ]


async def test_an_application_error_keeps_its_own_type(temporal: Temporal) -> None:
    outcome = await call(temporal, "fail_as_application", "out of stock")
    assert outcome.causes == [
        OUTERMOST,
        Cause(
            error="ApplicationError",
            message="OutOfStock: out of stock",
            type="OutOfStock",
            retryable=False,
        ),
    ]


async def test_a_refused_request_fails_at_once_with_its_type(temporal: Temporal) -> None:
    outcome = await call(temporal, "reject", "no such shelf")
    assert outcome.causes == [
        OUTERMOST,
        Cause(error="HandlerError", message="no such shelf", type="BAD_REQUEST", retryable=False),
    ]


async def test_an_unknown_operation_fails_at_once(temporal: Temporal) -> None:
    outcome = await call(temporal, "no such operation")
    assert [cause.type for cause in outcome.causes] == [None, "NOT_FOUND"]


async def test_an_input_of_the_wrong_shape_fails_at_once(temporal: Temporal) -> None:
    outcome = await call(temporal, "greet_later", {"nom": "ann"})
    assert [cause.type for cause in outcome.causes] == [None, "BAD_REQUEST"]
    assert "name: Field required" in outcome.causes[1].message


async def test_a_handler_that_breaks_is_tried_again(temporal: Temporal) -> None:
    outcome = await call(temporal, "flaky", str(uuid.uuid4()))
    assert outcome.result == 3


async def test_what_broke_a_handler_stays_on_the_handlers_side(
    temporal: Temporal, gateway: GatewayProcess
) -> None:
    started = await temporal.client.start_workflow(
        CallOperation.run,
        # An endpoint of its own: Temporal stops calling one that fails too often.
        Call(endpoint=await temporal.endpoint_to(gateway), operation="broken", input="x"),
        id=f"broken-{uuid.uuid4()}",
        task_queue=TASK_QUEUE,
    )

    async def second_attempt() -> PendingNexusOperationInfo | None:
        described = await started.describe()
        pending = described.raw_description.pending_nexus_operations
        return pending[0] if pending and pending[0].attempt >= 2 else None

    pending = await eventually(second_attempt)
    await started.terminate()
    assert pending.last_attempt_failure.nexus_handler_failure_info.type == "INTERNAL"
    assert "swordfish" not in str(pending)
    assert "swordfish" in gateway.log()


# ---------------------------------------------------------------- cancel, timeout


async def test_a_cancel_waits_for_the_cleanup(
    temporal: Temporal, gateway: GatewayProcess, tmp_path: Path
) -> None:
    work = work_in(tmp_path)
    outcome = await call(temporal, "work", work, cancel=True)
    assert outcome.causes == [
        OUTERMOST,
        Cause(error="CancelledError", message="operation canceled"),
    ]
    assert lines(work) in (["begun", "undone"], [])  # nothing is undone that had not begun
    assert (await shown(gateway, outcome.token or ""))["state"] == "canceled"


async def test_a_timeout_ends_the_operation_on_both_sides(
    temporal: Temporal, gateway: GatewayProcess, tmp_path: Path
) -> None:
    work = work_in(tmp_path)
    outcome = await call(temporal, "work", work, timeout_seconds=SHORT_TIMEOUT_SECONDS)
    assert outcome.token is not None
    assert outcome.causes == [
        OUTERMOST,
        Cause(error="TimeoutError", message="operation timed out", type="SCHEDULE_TO_CLOSE"),
    ]

    async def ended() -> dict[str, Any] | None:
        operation = await shown(gateway, outcome.token or "")
        return operation if operation["state"] != "running" else None

    operation = await eventually(ended)
    assert (operation["state"], operation["failure"]["message"]) == (
        "failed",
        "operation timed out",
    )
    assert lines(work) == ["begun", "undone"]


# ---------------------------------------------------------------- links


@pytest.mark.parametrize("operation", ["links", "links_at_once"])
async def test_links_lead_both_ways(temporal: Temporal, operation: str) -> None:
    workflow_id = f"links-{uuid.uuid4()}"
    outcome = await temporal.call(
        Call(endpoint=temporal.gateway, operation=operation, input="x"), workflow_id=workflow_id
    )
    [link] = outcome.result
    assert link["type"] == "temporal.api.common.v1.Link.WorkflowEvent"
    assert link["url"].startswith(f"temporal:///namespaces/default/workflows/{workflow_id}/")

    # Temporal keeps links of its own types, and accepts the handler's others without a word. An
    # operation that runs on had its start answered before its handler could add any.
    history = await temporal.client.get_workflow_handle(workflow_id).fetch_history()
    [completed] = [
        event
        for event in history.events
        if event.event_type == EventType.EVENT_TYPE_NEXUS_OPERATION_COMPLETED
    ]
    linked = [link.workflow_event.workflow_id for link in completed.links]
    assert linked == (["behind-the-gateway"] if operation == "links_at_once" else [])


# ---------------------------------------------------------------- crashes


async def test_a_gateway_that_is_killed_still_completes(temporal: Temporal, tmp_path: Path) -> None:
    database = tmp_path / "killed.db"
    work = work_in(tmp_path)
    start = asyncio.to_thread(GatewayProcess.start, TARGET, database, "--allow-private-callbacks")
    with await start as first:
        endpoint = await temporal.endpoint_to(first)
        started = await temporal.client.start_workflow(
            CallOperation.run,
            Call(endpoint=endpoint, operation="work", input=work),
            id=f"killed-{uuid.uuid4()}",
            task_queue=TASK_QUEUE,
        )

        async def waiting() -> dict[str, Any] | None:
            async with httpx.AsyncClient(base_url=first.base_url) as http:
                [*operations] = (await http.get("/api/v1/operations")).json()["operations"]
            if not operations:
                return None
            operation = await shown(first, operations[0]["token"])
            return operation if operation["steps"] else None

        operation = await eventually(waiting)
        await asyncio.to_thread(first.kill9)

    allow_to_end(work)
    restart = asyncio.to_thread(
        GatewayProcess.start, TARGET, database, "--allow-private-callbacks", port=first.port
    )
    with await restart as second:
        outcome = await started.result()
        assert (await shown(second, operation["token"]))["state"] == "succeeded"
    assert outcome == Outcome(token=operation["token"], result=["begun", "done"])
    assert lines(work) == ["begun", "done"]
