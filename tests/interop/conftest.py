"""A real Temporal server, a gateway, and a worker with the workflows of these tests."""

import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
from temporalio.api.nexus.v1 import EndpointSpec, EndpointTarget
from temporalio.api.operatorservice.v1 import CreateNexusEndpointRequest
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Worker

from tests.interop.hosted_services import HostedHandler
from tests.interop.workflows import (
    Call,
    CallOperation,
    Endless,
    Failing,
    GreetTwice,
    Outcome,
    Run,
)
from tests.support.gateway_process import GatewayProcess
from tests.support.temporal_server import TemporalServer

TARGET = "tests.interop.gateway_services:services"
TASK_QUEUE = "interop"


@pytest.fixture(scope="session")
def temporal_server() -> Iterator[TemporalServer]:
    with TemporalServer.start() as server:
        yield server


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    database = tmp_path_factory.mktemp("interop") / "gateway.db"
    with GatewayProcess.start(TARGET, database, "--allow-private-callbacks") as process:
        yield process


@dataclass(frozen=True)
class Temporal:
    """A client of the server, and its endpoints."""

    client: Client
    server: TemporalServer
    gateway: str  # the name of the endpoint that leads to the gateway
    worker: str  # the id of the endpoint that leads to the worker of these tests

    async def endpoint(self, name: str, target: EndpointTarget) -> str:
        """Make a Nexus endpoint and return its id."""
        spec = EndpointSpec(name=name, target=target)
        made = await self.client.operator_service.create_nexus_endpoint(
            CreateNexusEndpointRequest(spec=spec)
        )
        return made.endpoint.id

    async def endpoint_to(self, process: GatewayProcess) -> str:
        """Make a Nexus endpoint that leads to a gateway and return its name."""
        name = f"gateway-{uuid.uuid4().hex[:8]}"
        external = EndpointTarget.External(url=f"{process.base_url}/services/")
        await self.endpoint(name, EndpointTarget(external=external))
        return name

    async def call(self, call: Call, *, workflow_id: str | None = None) -> Outcome:
        """Run a workflow that makes one call."""
        return await self.client.execute_workflow(
            CallOperation.run,
            call,
            id=workflow_id or f"call-{uuid.uuid4()}",
            task_queue=TASK_QUEUE,
        )


@pytest.fixture(scope="module")
async def temporal(
    temporal_server: TemporalServer, gateway: GatewayProcess
) -> AsyncIterator[Temporal]:
    client = await Client.connect(temporal_server.address, data_converter=pydantic_data_converter)
    temporal = Temporal(client, temporal_server, "", "")
    to_worker = EndpointTarget.Worker(namespace="default", task_queue=TASK_QUEUE)
    temporal = Temporal(
        client,
        temporal_server,
        gateway=await temporal.endpoint_to(gateway),
        worker=await temporal.endpoint(
            f"worker-{uuid.uuid4().hex[:8]}", EndpointTarget(worker=to_worker)
        ),
    )
    async with Worker(
        client,
        task_queue=TASK_QUEUE,
        workflows=[CallOperation, Endless, Failing, GreetTwice, Run],
        nexus_service_handlers=[HostedHandler()],
    ):
        yield temporal
