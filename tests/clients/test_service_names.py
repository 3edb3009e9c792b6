import gc

import nexusrpc
import pytest
from nexusrpc import Operation
from nexusrpc.handler import StartOperationContext, service_handler, sync_operation

from clients import ServiceUnresolved
from clients.service_names import ServiceNames, service_name


@nexusrpc.service(name="orders")
class Orders:
    place: Operation[int, str]
    named: Operation[int, str] = Operation(name="named-otherwise")


@nexusrpc.service
class Returns:
    place: Operation[int, str]


@nexusrpc.service(name="parent")
class Parent:
    inherited: Operation[int, str]
    only_parent_uses: Operation[int, str] = Operation(name="x")


@nexusrpc.service(name="child")
class Child(Parent):
    own: Operation[int, str]


def test_the_service_of_an_operation_is_found() -> None:
    names = ServiceNames()
    for _ in range(2):
        assert names.name_of(Orders.place) == "orders"
        assert names.name_of(Orders.named) == "orders"
        assert names.name_of(Returns.place) == "Returns"


def test_equal_operations_of_two_services_are_told_apart() -> None:
    assert Orders.place == Returns.place
    names = ServiceNames()
    assert {names.name_of(Orders.place), names.name_of(Returns.place)} == {"orders", "Returns"}


def test_an_operation_inherited_under_another_name_must_be_named() -> None:
    if Child.inherited is not Parent.inherited:  # from nexus-rpc 1.5 on each class has its own
        assert ServiceNames().name_of(Child.inherited) == "child"
        return
    with pytest.raises(ServiceUnresolved, match="child, parent"):
        ServiceNames().name_of(Child.inherited)
    assert ServiceNames().name_of(Child.own) == "child"


def test_a_child_that_comes_later_is_noticed() -> None:
    @nexusrpc.service(name="early")
    class Early:
        op: Operation[int, str]

    names = ServiceNames()
    assert names.name_of(Early.op) == "early"

    @nexusrpc.service(name="late")
    class Late(Early):
        other: Operation[int, str]

    if Late.op is not Early.op:  # from nexus-rpc 1.5 on each class has its own
        assert names.name_of(Late.op) == "late"
        return
    with pytest.raises(ServiceUnresolved, match="early, late"):
        names.name_of(Late.op)


def test_a_child_of_the_same_name_does_not_matter() -> None:
    @nexusrpc.service(name="versioned")
    class Old:
        op: Operation[int, str]

    @nexusrpc.service(name="versioned")
    class New(Old):
        other: Operation[int, str]

    assert ServiceNames().name_of(New.op) == "versioned"


def test_an_undecorated_child_does_not_matter() -> None:
    @nexusrpc.service(name="base")
    class Base:
        op: Operation[int, str]

    class Plain(Base):
        pass

    assert ServiceNames().name_of(Plain.op) == "base"


def test_a_handler_that_derives_from_its_definition_does_not_matter() -> None:
    @nexusrpc.service(name="derived-from")
    class Definition:
        op: Operation[int, str]

    @service_handler(service=Definition)
    class Handler:
        @sync_operation
        async def op(self, ctx: StartOperationContext, input: int) -> str:
            return str(input)

    assert ServiceNames().name_of(Definition.op) == "derived-from"
    assert service_name(Handler) == "derived-from"


def test_one_object_in_two_services_must_be_named() -> None:
    shared: Operation[int, str] = Operation(name="op", input_type=int, output_type=str)

    @nexusrpc.service(name="one")
    class One:
        op = shared

    @nexusrpc.service(name="two")
    class Two:
        op = shared

    with pytest.raises(ServiceUnresolved, match="one, two"):
        ServiceNames().name_of(Two.op)


def test_an_operation_outside_of_any_service_must_be_named() -> None:
    loose: Operation[int, str] = Operation(name="place", input_type=int, output_type=str)
    with pytest.raises(ServiceUnresolved, match="pass service="):
        ServiceNames().name_of(loose)


def define(name: str) -> type:
    @nexusrpc.service(name=name)
    class Again:
        op: Operation[int, str]

    return Again


def test_operations_and_their_ids_come_and_go_and_none_answers_for_another() -> None:
    names = ServiceNames()
    for n in range(20):
        again = define(f"again-{n}")
        operation = again.__dict__["op"]
        assert names.name_of(operation) == f"again-{n}"
        del again, operation
        gc.collect()


def test_names_of_services() -> None:
    assert service_name(Orders) == "orders"
    assert service_name("by/name") == "by/name"
    with pytest.raises(ServiceUnresolved):
        service_name(int)
