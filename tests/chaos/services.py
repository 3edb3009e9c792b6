"""The service that these tests crash: each run of a step leaves a line in a file."""

import asyncio
import json
import os
import secrets
import time
from datetime import timedelta
from pathlib import Path
from typing import Literal

from nexusrpc import OperationError, OperationErrorState
from nexusrpc.handler import service_handler
from pydantic import BaseModel

from handlers import DurableContext, durable_operation

SERVICE = "chaos.v1"

_LOOK_AGAIN_SECONDS = 0.02
_LONG = timedelta(hours=1)


class Job(BaseModel):
    """What an operation leaves its lines under: `{folder}/{key}.effects`.

    A wait within it ends when `{folder}/{key}.{name}` exists.
    """

    folder: str
    key: str
    ends: Literal["succeeded", "failed", "canceled"] = "succeeded"


class Effect(BaseModel):
    """One run of a step; the nonce tells it from every other run."""

    step: str
    pid: int
    nonce: str


@service_handler(name=SERVICE)
class ChaosHandler:
    @durable_operation
    async def three_steps(self, ctx: DurableContext, job: Job) -> list[str]:
        effects = [await ctx.step(effect, job, "first")]
        effects.append(await ctx.step(effect_on_thread, job, "second"))
        if job.ends == "failed":
            raise OperationError("told to fail", state=OperationErrorState.FAILED)
        if job.ends == "canceled":
            await ctx.sleep(_LONG)  # until that happens
        effects.append(await ctx.step(effect, job, "third"))
        return [each.nonce for each in effects]

    @durable_operation
    async def asleep(self, ctx: DurableContext, job: Job) -> None:
        """Sleep, and clean up whatever ends that."""
        await ctx.step(effect, job, "begun")
        try:
            await ctx.sleep(_LONG)
        finally:
            await ctx.step(effect, job, "cleanup")

    @durable_operation
    async def in_step(self, ctx: DurableContext, job: Job) -> None:
        """Wait within a step, then do one more."""
        await ctx.step(effect_when, job, "go")
        await ctx.step(effect, job, "after")

    @durable_operation
    async def compensating(self, ctx: DurableContext, job: Job) -> None:
        """Undo what was done when canceled; which await was cut short decides what is undone."""
        stage = "booking"
        await ctx.step(effect, job, "booked")
        try:
            stage = "packing"
            await ctx.step(effect_on_thread_when, job, "packed")
            stage = "waiting"
            await ctx.sleep(_LONG)
            stage = "shipping"
            await ctx.step(effect, job, "shipped")
        except asyncio.CancelledError:
            await ctx.step(effect, job, f"undo {stage}", name="undo")
            await ctx.step(effect_when, job, "refund")
            await ctx.step(effect, job, "undone")
            raise

    @durable_operation
    async def in_branches(self, ctx: DurableContext, job: Job) -> None:
        """Wait in two branches at once, and undo what both did."""
        try:
            await asyncio.gather(self._branch(ctx, job, "left"), self._branch(ctx, job, "right"))
        except asyncio.CancelledError:
            await ctx.step(effect_when, job, "refund")
            raise

    async def _branch(self, ctx: DurableContext, job: Job, name: str) -> None:
        await ctx.step(effect, job, name)
        try:
            await ctx.sleep(_LONG)
        finally:
            await ctx.step(effect, job, f"undo {name}")


async def effect(job: Job, step: str) -> Effect:
    await asyncio.sleep(_duration_seconds(job, step))
    return leave(job, step)


def effect_on_thread(job: Job, step: str) -> Effect:
    time.sleep(_duration_seconds(job, step))
    return leave(job, step)


async def effect_when(job: Job, name: str) -> Effect:
    """Leave a line before the wait, so that every run counts, also one that is cut short."""
    left = leave(job, name)
    while not may_go_on(job, name):  # noqa: ASYNC110  # it is the test that allows it
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)
    return left


def effect_on_thread_when(job: Job, name: str) -> Effect:
    left = leave(job, name)
    while not may_go_on(job, name):
        time.sleep(_LOOK_AGAIN_SECONDS)
    return left


def leave(job: Job, step: str) -> Effect:
    """Record that a step ran, in one write, which a kill does not tear."""
    left = Effect(step=step, pid=os.getpid(), nonce=secrets.token_hex(8))
    line = left.model_dump_json() + "\n"
    file = os.open(effects_file(job), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)
    return left


def effects_file(job: Job) -> Path:
    return Path(job.folder, f"{job.key}.effects")


def effects_of(job: Job) -> list[Effect]:
    """Return every run of every step, in order."""
    path = effects_file(job)
    if not path.exists():
        return []
    return [Effect(**json.loads(line)) for line in path.read_text().splitlines()]


def steps_of(job: Job) -> list[str]:
    """Return the names of the steps in the order in which they ran."""
    return [effect.step for effect in effects_of(job)]


def may_go_on(job: Job, name: str) -> bool:
    return Path(job.folder, f"{job.key}.{name}").exists()


def allow(job: Job, name: str) -> None:
    """End the wait of this name."""
    Path(job.folder, f"{job.key}.{name}").touch()


def _duration_seconds(job: Job, step: str) -> float:
    # Steps take a while, so that kills find some of them half done.
    return (hash((job.key, step)) % 20) / 1000


services = [ChaosHandler()]
