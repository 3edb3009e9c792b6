"""Workflows that call Nexus operations, and those that run behind one."""

import asyncio
from datetime import timedelta
from typing import Any

from temporalio import exceptions, workflow

with workflow.unsafe.imports_passed_through():
    import nexusrpc
    from pydantic import BaseModel

    from tests.interop.contract import Greeting, Interop, Person

__all__ = ["Call", "CallOperation", "Cause", "Endless", "Failing", "GreetTwice", "Outcome", "Run"]


class Call(BaseModel):
    """One call of an operation.

    `cancel` asks for its cancellation as soon as it has started, and waits for its end.
    """

    endpoint: str
    operation: str
    input: Any = None
    timeout_seconds: float = 30.0
    cancel: bool = False


class Cause(BaseModel):
    """One error of a chain, as workflow code can see it."""

    error: str
    message: str
    type: str | None = None
    retryable: bool | None = None


class Outcome(BaseModel):
    """How a call went, told by the workflow: a result, or errors from the outside in."""

    token: str | None = None
    result: Any = None
    causes: list[Cause] = []


@workflow.defn
class CallOperation:
    @workflow.run
    async def run(self, call: Call) -> Outcome:
        nexus = workflow.create_nexus_client(service="interop.v1", endpoint=call.endpoint)
        outcome = Outcome()
        try:
            handle: workflow.NexusOperationHandle[Any] = await nexus.start_operation(
                call.operation,
                call.input,
                schedule_to_close_timeout=timedelta(seconds=call.timeout_seconds),
                cancellation_type=workflow.NexusOperationCancellationType.WAIT_COMPLETED,
            )
            outcome.token = handle.operation_token
            if call.cancel:
                handle.cancel()
            outcome.result = await handle
        except exceptions.TemporalError as error:
            outcome.causes = _causes(error)
        return outcome


@workflow.defn
class GreetTwice:
    """Calls with the service's own types."""

    @workflow.run
    async def run(self, endpoint: str, person: Person) -> list[Greeting]:
        nexus = workflow.create_nexus_client(service=Interop, endpoint=endpoint)
        now = await nexus.execute_operation(Interop.greet, person)
        later = await nexus.execute_operation(Interop.greet_later, person)
        return [now, later]


@workflow.defn
class Run:
    @workflow.run
    async def run(self, person: Person) -> Greeting:
        await workflow.sleep(timedelta(milliseconds=50))
        return Greeting(text=f"hello {person.name} from a workflow")


@workflow.defn
class Failing:
    @workflow.run
    async def run(self, reason: str) -> str:
        raise exceptions.ApplicationError(reason, type="OutOfStock", non_retryable=True)


@workflow.defn
class Endless:
    @workflow.run
    async def run(self, _name: str) -> str:
        await asyncio.Event().wait()
        return "never"


def _causes(error: BaseException) -> list[Cause]:
    causes = []
    cause: BaseException | None = error
    while cause is not None:
        found = Cause(error=type(cause).__name__, message=str(cause))
        match cause:
            case exceptions.ApplicationError():
                found.type, found.retryable = cause.type, not cause.non_retryable
            case nexusrpc.HandlerError():
                found.type, found.retryable = cause.raw_error_type, cause.retryable
            case exceptions.TimeoutError():
                found.type = cause.type.name if cause.type is not None else None
            case _:
                pass
        causes.append(found)
        cause = cause.__cause__
    return causes
