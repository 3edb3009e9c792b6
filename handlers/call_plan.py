"""What a handler wants to call, checked before anything is recorded of it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from nexusrpc import Content, Operation

from clients.request_headers import merge_user_headers
from clients.service_names import ServiceNames
from handlers.errors import StepArgumentsInvalid
from handlers.outgoing_calls import RemoteOperation
from nexus_spec import PayloadSerializer, UnencodableValue, operation_path
from nexus_spec.content import JSON
from nexus_spec.limits import PAYLOAD_BYTES

CallableOperation = Operation[Any, Any] | tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPlan:
    """A call as the handler's code asks for it, the same on every run.

    Attributes:
        name: What it is counted by in the journal.
        target: What is called.
        output_type: What the result is read as.
        content: The input.
        args_hash: Of all that must not change under an operation: target and input.
        timeout: How long the operation may take; None as long as this one.
        headers: Headers of the handler.
    """

    name: str
    target: RemoteOperation
    output_type: Any
    content: Content
    args_hash: bytes
    timeout: timedelta | None
    headers: Mapping[str, str]


def plan_call(
    names: ServiceNames,
    serializer: PayloadSerializer,
    op: CallableOperation,
    input: Any,
    *,
    endpoint: object,
    service: type | str | None,
    timeout: object,
    headers: Mapping[str, str] | None,
) -> CallPlan:
    """Return the plan of a call.

    Raises:
        StepArgumentsInvalid: It cannot be made like this: a mistake in the handler's code.
    """
    if timeout is not None and not (isinstance(timeout, timedelta) and timeout > timedelta(0)):
        raise StepArgumentsInvalid(f"timeout takes a positive timedelta, not {timeout!r}")
    if not isinstance(endpoint, str) or not endpoint:
        raise StepArgumentsInvalid(f"endpoint is a name of the settings, not {endpoint!r}")
    try:
        target = names.target_of(op, service)
        operation_path(target.service, target.operation)
        content = serializer.serialize(input)
        sent = merge_user_headers(headers)
    except UnencodableValue as error:
        raise StepArgumentsInvalid(f"the input of a call cannot be sent: {error}") from error
    except (TypeError, ValueError) as error:
        raise StepArgumentsInvalid(f"a call cannot be made: {error}") from error
    if len(content.data) > PAYLOAD_BYTES:
        raise StepArgumentsInvalid(
            f"a call's input of {len(content.data)} bytes is over the limit of {PAYLOAD_BYTES}"
        )
    remote = RemoteOperation(endpoint=endpoint, service=target.service, operation=target.operation)
    return CallPlan(
        name=target.operation.replace("#", "_").replace("/", "_"),
        target=remote,
        output_type=target.output_type,
        content=content,
        args_hash=_hash(remote, content),
        timeout=timeout,
        headers=sent,
    )


def _hash(target: RemoteOperation, content: Content) -> bytes:
    data = content.data
    if content.headers.get("content-type") == JSON and data:
        # The keys of a mapping may come in another order the next time.
        data = json.dumps(json.loads(data), sort_keys=True).encode()
    called = json.dumps([target.endpoint, target.service, target.operation])
    return hashlib.sha256(called.encode() + b"\n" + data).digest()
