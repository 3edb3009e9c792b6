"""Signs deliveries, each with the secret of its own destination."""

from collections.abc import Sequence
from functools import lru_cache

from callbacks.outbox import Delivery
from callbacks.signing_keys import SigningKeys
from clients.signatures import destination_secret, webhook_headers
from nexus_spec.headers import OPERATION_STATE

__all__ = ["Signer"]

_CACHED_SECRETS = 4096


class Signer:
    """Makes the headers that sign one attempt.

    Args:
        keys: Those of the purpose `CALLBACKS`; the secrets of the destinations derive from them.
    """

    def __init__(self, keys: SigningKeys) -> None:
        self._keys = keys
        self._secret = lru_cache(_CACHED_SECRETS)(destination_secret)

    async def headers(self, delivery: Delivery, now_ms: int) -> list[tuple[str, str]]:
        """Return what to send besides the delivery's own headers at an attempt.

        The id is that of the delivery, the same at every attempt. The state that is signed is the
        one in its header `Nexus-Operation-State`; a notice to the operator has none, and is signed
        with a secret of its own. Where a completion is given up again, its notice is a new message.

        Args:
            delivery: What is sent.
            now_ms: When, in milliseconds since 1970.

        Raises:
            DatabaseError: No key is known, and the database cannot be asked; to be tried again.
        """
        keys = await self._keys.all_signing()
        is_notice = delivery.slot < 0
        message_id = f"{delivery.token}_{delivery.id}"
        if is_notice:
            message_id = f"{message_id}_{delivery.deadline_at}"
        return webhook_headers(
            message_id,
            now_ms // 1000,
            delivery.body,
            [self._secret(key.secret, delivery.destination, notices=is_notice) for key in keys],
            state=_first(delivery.headers, OPERATION_STATE),
            token=delivery.token,
        )


def _first(headers: Sequence[tuple[str, str]], name: str) -> str | None:
    return next((value for each, value in headers if each.lower() == name), None)
