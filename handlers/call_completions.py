"""Completions of calls, as they come in: whose they are, and on to the operation that waits."""

import asyncio

from callbacks.database import Database
from callbacks.signing_keys import SigningKeys
from clients.callback_tokens import OutgoingCall, key_id_of, verify_call
from handlers.call_messages import CALL_MESSAGE, completion_to_message
from handlers.clock import Clock
from handlers.store.signals import Received, RecordSignal
from nexus_spec import Completion


class CallCompletions:
    """Hands completions to the operations that made the calls, wherever those are.

    Args:
        database: Where the operations are.
        keys: Have signed the callback tokens.
        clock: The time.
    """

    def __init__(self, database: Database, keys: SigningKeys, clock: Clock | None = None) -> None:
        self._database = database
        self._keys = keys
        self._clock = clock or Clock()

    async def call_of(self, token: str) -> OutgoingCall:
        """Return the call that a callback token was made for.

        Raises:
            CallbackTokenInvalid: It was not made here.
        """
        return verify_call(token, await self._keys.trusted(key_id_of(token)))

    async def take(self, call: OutgoingCall, completion: Completion) -> bool:
        """Record how a call ended and wake its operation.

        The first completion of a call counts; later ones, and those of operations that have ended
        meanwhile, are taken and change nothing.

        Returns:
            False where there is no such operation, or no more.
        """
        received = await asyncio.shield(
            self._database.write(
                RecordSignal(
                    call.operation_token,
                    CALL_MESSAGE,
                    call.key,
                    completion_to_message(completion),
                    self._clock.now_ms(),
                )
            )
        )
        return received is not Received.UNKNOWN
