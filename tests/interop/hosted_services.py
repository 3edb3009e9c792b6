"""Nexus services as a Temporal worker hosts them, with the Python SDK's own means."""

import nexusrpc
from nexusrpc.handler import StartOperationContext, service_handler, sync_operation
from temporalio import nexus

from tests.interop.contract import Greeting, Hosted, Person
from tests.interop.workflows import Endless, Failing, Run


@service_handler(service=Hosted)
class HostedHandler:
    @sync_operation
    async def echo(self, _ctx: StartOperationContext, person: Person) -> Greeting:
        return Greeting(text=f"hello {person.name}")

    @sync_operation
    async def refuse(self, _ctx: StartOperationContext, reason: str) -> str:
        raise nexusrpc.HandlerError(reason, type=nexusrpc.HandlerErrorType.BAD_REQUEST)

    @sync_operation
    async def fail(self, _ctx: StartOperationContext, reason: str) -> str:
        raise nexusrpc.OperationError(reason, state=nexusrpc.OperationErrorState.FAILED)

    @nexus.workflow_run_operation
    async def run_workflow(
        self, ctx: nexus.WorkflowRunOperationContext, person: Person
    ) -> nexus.WorkflowHandle[Greeting]:
        return await ctx.start_workflow(Run.run, person, id=f"hosted-{ctx.request_id}")

    @nexus.workflow_run_operation
    async def run_failing_workflow(
        self, ctx: nexus.WorkflowRunOperationContext, reason: str
    ) -> nexus.WorkflowHandle[str]:
        return await ctx.start_workflow(Failing.run, reason, id=f"hosted-{ctx.request_id}")

    @nexus.workflow_run_operation
    async def run_endless_workflow(
        self, ctx: nexus.WorkflowRunOperationContext, name: str
    ) -> nexus.WorkflowHandle[str]:
        return await ctx.start_workflow(Endless.run, name, id=f"hosted-{ctx.request_id}")
