"""The services that the tests of the client call."""

import nexusrpc
from pydantic import BaseModel


class OrderIn(BaseModel):
    sku: str
    count: int = 1


class Receipt(BaseModel):
    id: int


@nexusrpc.service(name="orders/v1")
class Orders:
    place: nexusrpc.Operation[OrderIn, Receipt]
    ping: nexusrpc.Operation[None, None]
