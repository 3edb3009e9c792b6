import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nexusrpc import Content
from pydantic import BaseModel, Field, TypeAdapter
from pydantic_core import core_schema

from nexus_spec import Headers, InvalidWireValue, MediaType, PayloadSerializer, UnencodableValue
from nexus_spec.content import JSON, OCTETS
from tests.nexus_spec.strategies import JSON_VALUES

SERIALIZER = PayloadSerializer()


@dataclass
class Order:
    id: UUID
    placed: datetime
    lines: list[int]


class Person(BaseModel):
    full_name: str = Field(alias="fullName")
    age: int = 0


class Tree(BaseModel):
    child: "Tree | None" = None


def body(data: bytes | str, content_type: str | None = JSON, **others: str) -> Content:
    headers = dict(others) if content_type is None else {"content-type": content_type, **others}
    return Content(headers=headers, data=data.encode() if isinstance(data, str) else data)


def refusal(content: Content, as_type: Any = None) -> str:
    with pytest.raises(InvalidWireValue) as caught:
        SERIALIZER.decode(content, as_type)
    return str(caught.value)


def test_null_is_no_type_and_no_body() -> None:
    assert SERIALIZER.serialize(None) == Content(headers={}, data=b"")
    nothing = Content(headers={}, data=b"")
    for as_type in (None, Any, type(None), int | None):
        assert SERIALIZER.decode(nothing, as_type) is None
    assert SERIALIZER.decode(body("null"), None) is None
    assert "expected Person with Content-Type: application/json" in refusal(nothing, Person)


def test_bytes_are_octets() -> None:
    content = SERIALIZER.serialize(b"\xff")
    assert content == Content(headers={"content-type": OCTETS}, data=b"\xff")
    assert SERIALIZER.serialize(bytearray(b"a")).data == SERIALIZER.serialize(memoryview(b"a")).data
    for as_type in (None, Any, bytes, bytes | None, Annotated[bytes, Field(max_length=1)]):
        assert SERIALIZER.decode(content, as_type) == b"\xff"
    assert SERIALIZER.decode(body(b"", OCTETS), bytes) == b""
    assert "expected str" in refusal(body(b"text", OCTETS), str)
    assert "expected Annotated" in refusal(content, Annotated[bytes, Field(max_length=0)]).replace(
        "typing.", ""
    )


def test_everything_else_is_json_without_parameters() -> None:
    order = Order(UUID(int=1), datetime(2026, 1, 2, tzinfo=UTC), [1])
    content = SERIALIZER.serialize(order)
    assert content.headers == {"content-type": "application/json"}
    assert json.loads(content.data) == {
        "id": "00000000-0000-0000-0000-000000000001",
        "placed": "2026-01-02T00:00:00Z",
        "lines": [1],
    }
    assert SERIALIZER.decode(content, Order) == order


def test_models_are_written_as_they_are_read() -> None:
    person = Person(fullName="Bob", age=3)
    content = SERIALIZER.serialize(person)
    assert json.loads(content.data) == {"fullName": "Bob", "age": 3}
    assert SERIALIZER.decode(content, Person) == person


@given(JSON_VALUES.filter(lambda value: value is not None))
def test_json_survives_a_round_trip(value: object) -> None:
    assert SERIALIZER.decode(SERIALIZER.serialize(value)) == value


@given(st.binary())
def test_bytes_survive_a_round_trip(value: bytes) -> None:
    assert SERIALIZER.decode(SERIALIZER.serialize(value), bytes) == value


def test_deserialize_is_the_coroutine_of_decode() -> None:
    assert anyio.run(SERIALIZER.deserialize, body("[1]"), list[int]) == [1]
    with pytest.raises(InvalidWireValue):
        anyio.run(SERIALIZER.deserialize, body("["), None)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json; charset=utf-8",
        'Application/JSON;charset="UTF-8"',
        'application/json; format=protobuf; message-type="a.B"',
    ],
)
def test_json_is_read_whatever_its_parameters(content_type: str) -> None:
    assert SERIALIZER.decode(body('{"a":1}', content_type), dict[str, int]) == {"a": 1}


def test_header_names_match_in_any_case() -> None:
    assert SERIALIZER.decode(Content(headers={"Content-Type": JSON}, data=b"1"), int) == 1
    assert SERIALIZER.decode(Content(headers=Headers({"Content-Type": JSON}), data=b"1")) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (body("a=1", "application/x-www-form-urlencoded"), "send Content-Type: application/json"),
        (body("a", "multipart/form-data; boundary=x"), "send Content-Type: application/json"),
        (body("{}", None), "has no Content-Type: send Content-Type: application/json"),
        (body("", JSON), "the body is empty"),
        (body("{}", "text/plain"), "unknown Content-Type 'text/plain': expected application/json"),
        (body("{}", "json"), "invalid Content-Type"),
        (body("{}", "application/json; charset=latin-1"), "send UTF-8"),
        (body("{}", JSON, **{"content-encoding": "gzip"}), "send the body uncompressed"),
        (body("{'a': 1}"), "not valid JSON"),
    ],
)
def test_messages_tell_a_caller_with_curl_what_to_send(content: Content, message: str) -> None:
    assert message in refusal(content)
    assert message in refusal(content, dict[str, int])


def test_identity_is_no_encoding() -> None:
    assert SERIALIZER.decode(body("1", JSON, **{"Content-Encoding": "Identity"})) == 1


def test_errors_of_types_are_field_lines_without_the_input() -> None:
    assert refusal(body('{"age":"hidden secret"}'), Person).splitlines() == [
        "the body does not fit Person:",
        "fullName: Field required",
        "age: Input should be a valid integer, unable to parse string as an integer",
    ]
    assert refusal(body('"x"'), int).splitlines()[1].startswith("body: Input should be")


def test_errors_stay_short() -> None:
    many = refusal(body(json.dumps(["x"] * 500)), list[int])
    assert len(many.splitlines()) == 12
    assert many.endswith("and 490 more")
    assert refusal(body(json.dumps(["x"] * 5000)), list[int]).endswith(": 5000 errors")
    assert len(refusal(body(json.dumps({"k" * 9999: "x"})), dict[str, int])) < 300


@pytest.mark.parametrize("as_type", [None, Tree, list[Any], dict[str, Any], float, int, str, bytes])
@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'{"child":' * 100_000,
        b'{"child":' * 300 + b"null" + b"}" * 300,
        b"9" * 5000,
        b"\xff",
        b'"\\ud800"',
        b'"\x00"',
        b"\xef\xbb\xbf{}",
    ],
    ids=["lists", "objects", "closed", "digits", "utf-8", "surrogate", "control", "bom"],
)
def test_hostile_json_is_refused(data: bytes, as_type: Any) -> None:
    assert refusal(body(data), as_type)


@given(
    st.binary() | JSON_VALUES.map(lambda value: json.dumps(value).encode()),
    st.sampled_from([JSON, OCTETS, "", "text/plain", "application/json; charset=x"]) | st.text(),
    st.sampled_from([None, Any, int, str, bytes, Order, Person, list[str], datetime, UUID]),
)
def test_any_body_is_a_value_or_refused(data: bytes, content_type: str, as_type: Any) -> None:
    try:
        value = SERIALIZER.decode(body(data, content_type), as_type)
    except InvalidWireValue:
        return
    if as_type not in (None, Any):
        TypeAdapter(as_type).validate_python(value)


def test_not_a_number_is_written_as_null() -> None:
    assert SERIALIZER.serialize([math.nan, math.inf]).data == b"[null,null]"
    assert "not valid JSON" in refusal(body("NaN"))


@pytest.mark.parametrize("value", [object(), "\ud800", {"a": b"\xff"}, [len]])
def test_values_without_a_json_form_are_refused(value: object) -> None:
    with pytest.raises(UnencodableValue, match="cannot be written as JSON"):
        SERIALIZER.serialize(value)


def test_values_that_hold_themselves_are_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(UnencodableValue):
        SERIALIZER.serialize(loop)


def test_types_that_cannot_be_cached_work() -> None:
    as_type = Annotated[int, Field(json_schema_extra={"a": []}), []]
    assert SERIALIZER.decode(body("1"), as_type) == 1


class Upper:
    """A codec for text, and another for one kind of JSON."""

    def __init__(self, media_type: str) -> None:
        self.media_type = media_type

    def encode(self, value: Any) -> Content | None:
        if not isinstance(value, str):
            return None
        return Content({"content-type": self.media_type}, value.upper().encode())

    def decode(self, content: Content, media_type: MediaType, as_type: Any) -> Any:
        params: Mapping[str, str] = media_type.params
        return as_type, dict(params), content.data


def test_codecs_come_first_and_leave_other_values_alone() -> None:
    serializer = PayloadSerializer(codecs=[Upper("text/x-upper")])
    content = serializer.serialize("a")
    assert content == Content({"content-type": "text/x-upper"}, b"A")
    assert serializer.decode(content, str) == (str, {}, b"A")
    assert serializer.decode(serializer.serialize([1])) == [1]
    with pytest.raises(InvalidWireValue, match="text/x-upper"):
        serializer.decode(body("a", "text/plain"))


def test_codec_may_take_over_one_kind_of_json() -> None:
    serializer = PayloadSerializer([Upper("application/json; format=upper")])
    special = body("{}", "application/json; format=upper; x=1")
    assert serializer.decode(special) == (None, {"format": "upper", "x": "1"}, b"{}")
    assert serializer.decode(body("{}")) == {}
    assert serializer.decode(body("{}", "application/json; format=protobuf")) == {}


class Bottomless:
    """A type whose validation runs out of stack."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        def dive(value: object) -> object:
            return dive(value)

        return core_schema.no_info_plain_validator_function(dive)


def test_validation_that_runs_out_of_stack_is_a_refusal() -> None:
    assert "nested too deeply" in refusal(body("1"), Bottomless)
