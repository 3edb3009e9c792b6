"""The service under measurement: the same work as the floor gateway's."""

import asyncio
import os
from datetime import timedelta
from typing import Any

import nexusrpc
from nexusrpc.handler import StartOperationContext, service_handler, sync_operation

from handlers import DurableContext, durable_operation


@nexusrpc.service(name="bench")
class Bench:
    """Durable operations without steps, with three, and such as stay unfinished; an inline one."""

    run: nexusrpc.Operation[dict[str, Any], dict[str, Any]]
    steps: nexusrpc.Operation[dict[str, Any], dict[str, Any]]
    held: nexusrpc.Operation[dict[str, Any], dict[str, Any]]
    sleeper: nexusrpc.Operation[dict[str, Any], dict[str, Any]]
    echo: nexusrpc.Operation[dict[str, Any], dict[str, Any]]


async def step(value: str) -> str:
    """Do next to nothing, recorded."""
    return value + "."


async def hold(value: str) -> str:
    """Not return in a process that is told so: what it runs is there to be killed."""
    if "BENCH_HOLD" in os.environ:
        await asyncio.get_running_loop().create_future()
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

    @durable_operation
    async def held(self, ctx: DurableContext, value: dict[str, Any]) -> dict[str, Any]:
        text = await ctx.step(step, await ctx.step(step, ""))
        return {"ok": True, "text": await ctx.step(hold, text)}

    @durable_operation
    async def sleeper(self, ctx: DurableContext, value: dict[str, Any]) -> dict[str, Any]:
        text = await ctx.step(step, "")
        await ctx.sleep(timedelta(days=30))
        return {"ok": True, "text": await ctx.step(step, text)}

    @sync_operation
    async def echo(self, ctx: StartOperationContext, value: dict[str, Any]) -> dict[str, Any]:
        return {"ok": True, "input": value}


services = [BenchHandler()]
