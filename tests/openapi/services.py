"""What the gateway serves here: the examples, and an operation that is finished from outside."""

import uuid
from typing import Any

import nexusrpc
from nexusrpc.handler import (
    CancelOperationContext,
    OperationHandler,
    StartOperationContext,
    StartOperationResultAsync,
    operation_handler,
    service_handler,
)

from examples.orders import OrdersHandler


@nexusrpc.service(name="approvals")
class Approvals:
    ask: nexusrpc.Operation[str, Any]
    anything: nexusrpc.Operation[Any, Any]


class AskHandler(OperationHandler[Any, Any]):
    """Waits for somebody outside."""

    async def start(self, ctx: StartOperationContext, input: Any) -> StartOperationResultAsync:
        return StartOperationResultAsync(str(uuid.uuid4()))

    async def cancel(self, ctx: CancelOperationContext, token: str) -> None:
        pass  # who was asked may still answer


@service_handler(service=Approvals)
class ApprovalsHandler:
    @operation_handler
    def ask(self) -> OperationHandler[str, Any]:
        return AskHandler()

    @operation_handler
    def anything(self) -> OperationHandler[Any, Any]:
        return AskHandler()


services = [OrdersHandler(), ApprovalsHandler()]
