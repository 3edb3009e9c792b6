"""`NexusClient` calls services that a Temporal worker hosts, over Temporal's own HTTP address."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import nexusrpc
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from clients import CompletionReceiver, NexusClient, NotSupported
from nexus_spec import RemoteFailure
from tests.interop.conftest import Temporal
from tests.interop.contract import Greeting, Hosted, Person

pytestmark = [pytest.mark.anyio, pytest.mark.temporal]

RESULT_WITHIN_SECONDS = 20


@dataclass
class Caller:
    nexus: NexusClient
    endpoint_url: str


@pytest.fixture
async def caller(temporal: Temporal) -> AsyncIterator[Caller]:
    """A client whose results come by callback, to a receiver on a real socket."""
    app = Starlette()
    config = uvicorn.Config(app, port=0, log_config=None, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    port = server.servers[0].sockets[0].getsockname()[1]
    receiver = CompletionReceiver(public_url=f"http://127.0.0.1:{port}/done")
    app.router.routes.append(Mount("/done", receiver))
    endpoint_url = f"{temporal.server.http_url}/nexus/endpoints/{temporal.worker}/services"
    async with NexusClient(endpoint_url, callback_receiver=receiver) as nexus:
        yield Caller(nexus, endpoint_url)
    await server.shutdown()


def application_type(error: nexusrpc.OperationError) -> str:
    """Return the type of the application error that the worker raised, as it came over the wire."""
    cause = error.__cause__
    assert isinstance(cause, RemoteFailure)
    assert cause.failure.details is not None
    found: str = cause.failure.details["applicationFailureInfo"]["type"]
    return found


async def test_a_synchronous_operation(caller: Caller) -> None:
    greeting = await caller.nexus.execute(Hosted.echo, Person(name="ann"))
    assert greeting == Greeting(text="hello ann")


async def test_a_workflow_behind_an_operation(caller: Caller) -> None:
    handle = await caller.nexus.start(Hosted.run_workflow, Person(name="ann"))
    assert handle.token
    assert [link.type for link in handle.links] == ["temporal.api.common.v1.Link.WorkflowEvent"]
    greeting = await handle.result(RESULT_WITHIN_SECONDS)
    assert greeting == Greeting(text="hello ann from a workflow")


async def test_a_repeated_start_finds_the_same_workflow(caller: Caller) -> None:
    first = await caller.nexus.start(
        Hosted.run_endless_workflow, "x", request_id="the-same-request"
    )
    again = await caller.nexus.start(
        Hosted.run_endless_workflow, "x", request_id="the-same-request"
    )
    assert first.token == again.token
    await first.cancel()


async def test_a_refused_request(caller: Caller) -> None:
    with pytest.raises(nexusrpc.HandlerError, match="no such shelf") as refused:
        await caller.nexus.execute(Hosted.refuse, "no such shelf")
    assert refused.value.type is nexusrpc.HandlerErrorType.BAD_REQUEST


async def test_a_failed_synchronous_operation(caller: Caller) -> None:
    with pytest.raises(nexusrpc.OperationError, match="out of stock") as failed:
        await caller.nexus.execute(Hosted.fail, "out of stock")
    assert failed.value.state is nexusrpc.OperationErrorState.FAILED
    assert application_type(failed.value) == "OperationError"


async def test_a_failed_workflow(caller: Caller) -> None:
    handle = await caller.nexus.start(Hosted.run_failing_workflow, "out of stock")
    with pytest.raises(nexusrpc.OperationError, match="out of stock") as failed:
        await handle.result(RESULT_WITHIN_SECONDS)
    assert failed.value.state is nexusrpc.OperationErrorState.FAILED
    assert application_type(failed.value) == "OutOfStock"


async def test_a_canceled_workflow(caller: Caller) -> None:
    handle = await caller.nexus.start(Hosted.run_endless_workflow, "x")
    await handle.cancel()
    with pytest.raises(nexusrpc.OperationError) as canceled:
        await handle.result(RESULT_WITHIN_SECONDS)
    assert canceled.value.state is nexusrpc.OperationErrorState.CANCELED
    await handle.cancel()  # again, after the end


async def test_results_cannot_be_polled_there(caller: Caller) -> None:
    async with NexusClient(caller.endpoint_url) as nexus:
        handle = await nexus.start(Hosted.run_workflow, Person(name="ann"))
        with pytest.raises(NotSupported, match="callback_receiver"):
            await handle.result(RESULT_WITHIN_SECONDS)
