"""What callers share with the services of these tests: names and types, no code."""

import nexusrpc
from pydantic import BaseModel

__all__ = ["Greeting", "Hosted", "Interop", "LinkSeen", "Person", "Work"]


class Person(BaseModel):
    name: str


class Greeting(BaseModel):
    text: str


class Work(BaseModel):
    """What a durable operation records, and what it waits for, as paths of files."""

    journal: str
    waits_for: str


class LinkSeen(BaseModel):
    url: str
    type: str


@nexusrpc.service(name="interop.v1")
class Interop:
    """Served by the gateway."""

    greet: nexusrpc.Operation[Person, Greeting]
    greet_later: nexusrpc.Operation[Person, Greeting]
    work: nexusrpc.Operation[Work, list[str]]
    fail: nexusrpc.Operation[str, str]
    fail_at_once: nexusrpc.Operation[str, str]
    fail_as_application: nexusrpc.Operation[str, str]
    reject: nexusrpc.Operation[str, str]
    flaky: nexusrpc.Operation[str, int]
    broken: nexusrpc.Operation[str, str]
    links: nexusrpc.Operation[str, list[LinkSeen]]
    links_at_once: nexusrpc.Operation[str, list[LinkSeen]]
    nothing: nexusrpc.Operation[None, None]
    nothing_later: nexusrpc.Operation[None, None]


@nexusrpc.service(name="hosted.v1")
class Hosted:
    """Served by a Temporal worker."""

    echo: nexusrpc.Operation[Person, Greeting]
    refuse: nexusrpc.Operation[str, str]
    fail: nexusrpc.Operation[str, str]
    run_workflow: nexusrpc.Operation[Person, Greeting]
    run_failing_workflow: nexusrpc.Operation[str, str]
    run_endless_workflow: nexusrpc.Operation[str, str]
