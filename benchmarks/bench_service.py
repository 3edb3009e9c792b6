"""The service under measurement: the same work as the floor gateway's."""

from typing import Any

import nexusrpc
from nexusrpc.handler import StartOperationContext, service_handler, sync_operation

from handlers import DurableContext, durable_operation


@nexusrpc.service(name="bench")
class Bench:
    """A durable operation without steps, one with three, and an inline one."""

    run: nexusrpc.Operation[dict[str, Any], dict[str, Any]]
    steps: nexusrpc.Operation[dict[str, Any], dict[str, Any]]
    echo: nexusrpc.Operation[dict[str, Any], dict[str, Any]]


async def step(value: str) -> str:
    """Do next to nothing, recorded."""
    return value + "."


@service_handler(service=Bench)
class BenchHandler:
    """Answers with what it was given."""

    @durable_operation
    async def run(self, ctx: DurableContext, value: dict[str, Any]) -> dict[str, Any]:
        return {"ok": True, "input": value}

    @durable_operation
    async def steps(self, ctx: DurableContext, value: dict[str, Any]) -> dict[str, Any]:
        text = ""
        for _ in range(3):
            text = await ctx.step(step, text)
        return {"ok": True, "input": value, "text": text}

    @sync_operation
    async def echo(self, ctx: StartOperationContext, value: dict[str, Any]) -> dict[str, Any]:
        return {"ok": True, "input": value}


services = [BenchHandler()]
