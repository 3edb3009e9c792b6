"""Serving the app with uvicorn, signals included."""

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette

from gateway.access import is_loopback
from gateway.http_protocol import Http1Protocol
from gateway.logs import announcement
from gateway.runtime import Gateway
from gateway.settings import InvalidSettings, Settings

logger = logging.getLogger(__name__)

_BACKLOG = 2048
_MOST_FILES = 65_536
_THREADS_END_SECONDS = 0.5


def serve(app: Starlette, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return.

    Raises:
        InvalidSettings: The address cannot be used.
        DatabaseError: The database cannot be used.
    """
    if settings.allow_private_callbacks:
        logger.warning("callbacks to loopback and private addresses are allowed")
    if proxies := settings.callbacks.proxies.urls:
        logger.info("callbacks go through a proxy", extra={"proxies": ", ".join(proxies)})
    _raise_file_limit()
    listener = _listen(settings.host, settings.port)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=Http1Protocol,
        ws="none",
        lifespan="off",  # run by `_Server`, so that its errors reach the person who started it
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        timeout_graceful_shutdown=round(settings.drain_seconds) or 1,
    )
    server = _Server(config, app, listener, settings.log_format)
    with listener, asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(server.run())
    _leave_busy_threads_behind()


def _raise_file_limit() -> None:
    """Let the process have as many connections as it may: often the usual limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _leave_busy_threads_behind() -> None:
    """End the process where a thread outlived the drain: Python would wait for it for ever.

    Everything is closed by now. What the thread still does is not recorded, and its step runs
    again with the next process.
    """
    deadline = time.monotonic() + _THREADS_END_SECONDS
    for thread in threading.enumerate():
        if thread.name.startswith(("nexus-handler", "nexus-step")):
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                logger.warning("a handler's thread did not end", extra={"busy": thread.name})
                logging.shutdown()
                os._exit(0)


class _Server(uvicorn.Server):
    """uvicorn with our signals: its own would end the process by the signal, not with 0."""

    def __init__(
        self, config: uvicorn.Config, app: Starlette, listener: socket.socket, log_format: str
    ) -> None:
        super().__init__(config)
        self._app = app
        self._listener = listener
        self._log_format = log_format

    async def run(self) -> None:  # type: ignore[override]  # ours runs inside the loop
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        async with self._app.router.lifespan_context(self._app):
            _tune_garbage_collector()
            await self.serve(sockets=[self._listener])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            message = f"listening on {_url(self._listener)}"
            sys.stderr.write(announcement(self._log_format, __name__, message))
            sys.stderr.flush()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def _stop(self) -> None:
        if self.should_exit:
            self.force_exit = True  # the second time: do not wait for connections
            return
        logger.info("draining")
        gateway: Gateway = self._app.state.gateway
        # Those who wait for an operation are answered first, or they would hold the drain up.
        gateway.release_waiters()
        self.should_exit = True


def _tune_garbage_collector() -> None:
    """Let the collector look less often, and never again at what start-up has left.

    Requests leave few cycles behind, and the default of one look every 700 objects takes a fifth
    of a durable operation's time (benchmarks/RESULTS.md).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 100)


def check_bind(settings: Settings, *, has_keys: bool) -> None:
    """Check that an address which others can reach is not served to anybody at all.

    Raises:
        InvalidSettings: It would be.
    """
    if is_loopback(settings.host) or has_keys or settings.allow_unauthenticated:
        return
    raise InvalidSettings(
        f"--host {settings.host} can be reached by others and there is no API key: create one "
        "with `nexus-gateway keys create NAME`, or say --allow-unauthenticated"
    )


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InvalidSettings(f"cannot listen on {host}:{port}: {error.strerror}") from error
    except UnicodeError as error:  # from the codec of host names
        raise InvalidSettings(f"cannot listen on {host!r}: that is no host name") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise InvalidSettings(f"cannot listen on {host}:{port}: {error.strerror}") from error
    listener.setblocking(False)
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"
