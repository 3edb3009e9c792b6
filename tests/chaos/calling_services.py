"""The service that two gateways have, each to call the other's."""

from nexusrpc.handler import service_handler

from handlers import DurableContext, durable_operation
from tests.chaos.services import Effect, Job, effect

SERVICE = "calling.v1"


@service_handler(name=SERVICE)
class CallingHandler:
    @durable_operation
    async def outer(self, ctx: DurableContext, job: Job) -> list[str]:
        """Have the other gateway do two things, one after the other and each in its own time."""
        first = await ctx.call((SERVICE, "inner"), job, endpoint="other")
        handle = await ctx.start_call((SERVICE, "inner"), job, endpoint="other")
        await ctx.step(effect, job, "between")
        return [first, await handle.result()]

    @durable_operation
    async def inner(self, ctx: DurableContext, job: Job) -> str:
        """Do something, and tell by what run of it."""
        left: Effect = await ctx.step(effect, job, "inner")
        return left.nonce


services = [CallingHandler()]
