import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nexusrpc import Link

from nexus_spec import InvalidWireValue, format_link, is_header_value, parse_links

TYPES = st.from_regex(r"[A-Za-z0-9_./]+", fullmatch=True)
WORKFLOW_EVENT = (
    "<temporal:///namespaces/default/workflows/w-slow/01a2/history"
    "?eventID=5&eventType=NexusOperationScheduled&referenceType=EventReference>; "
    'type="temporal.api.common.v1.Link.WorkflowEvent"'
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('<my://path?k=v>; type="com.example.My"', [("my://path?k=v", "com.example.My")]),
        ("<a:b>;type=T", [("a:b", "T")]),
        (' \t<a:b> ; \ttype = "T" ', [("a:b", "T")]),
        ("<a:b>; rel=next; type=x.y/z_1; title*=UTF-8''a", [("a:b", "x.y/z_1")]),
        ('<a:b>; title="a, b; c=\\"d\\""; type="T"', [("a:b", "T")]),
        ("<a:b>; type=T; type=U", [("a:b", "T")]),
        ("<a:b,c;d>; type=T", [("a:b,c;d", "T")]),
        ('<a:b>; type="T", <c:d>; type=U,<e:f>;type=V', [("a:b", "T"), ("c:d", "U"), ("e:f", "V")]),
    ],
)  # fmt: skip
def test_reads_links_as_http_writes_them(value: str, expected: list[tuple[str, str]]) -> None:
    assert parse_links([value]) == [Link(url=url, type=type_) for url, type_ in expected]


def test_all_values_count_and_none_is_no_link() -> None:
    assert parse_links([]) == []
    assert len(parse_links(["<a:b>;type=T", "<c:d>;type=T,<e:f>;type=T"])) == 3


@pytest.mark.parametrize(
    "value",
    [
        *["", " ", ",", "a:b; type=T", "<a:b", "a:b>; type=T", "<>; type=T", "<a:b>"],
        *["<a:b>; type", "<a:b>; rel; type=T", "<a:b>; type=T;", "<a:b>; type=T,"],
        *["<a:b>; type=", '<a:b>; type=""', "<a:b>; type=a-b", '<a:b>; type="T', "<a:b> type=T"],
        *["<a:b>; type=T x", "<a:b>; Type=T", "<a:b>; type=T, ,<c:d>; type=T", "<a:b>;; type=T"],
        *["<a b>; type=T", "<a\x00b>; type=T", "<a\u00e9>; type=T", "<<a>; type=T"],
        *["<a:b>; type=\u0661", "<a:b>; type=T\n"],
    ],
)
def test_refuses_malformed_links(value: str) -> None:
    with pytest.raises(InvalidWireValue, match="link"):
        parse_links([value])


@given(st.text() | st.text(alphabet='<>;,="\\ ta:T'))
@example("<a:b>; type=" + '"\\' * 50_000)
@example("<a:b>" + "; a=b" * 20_000)
def test_any_text_is_links_or_refused(value: str) -> None:
    try:
        links = parse_links([value])
    except InvalidWireValue:
        return
    assert links
    written = ", ".join(format_link(link) for link in links)
    assert [format_link(link) for link in parse_links([written])] == written.split(", ")


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), TYPES)
def test_written_links_are_read_the_same_however_a_reader_splits(url: str, type_: str) -> None:
    value = format_link(Link(url=url, type=type_))
    assert is_header_value(value)
    assert "," not in value
    assert value.count(";") == 1
    (link,) = parse_links([value])
    assert link.type == type_
    assert format_link(link) == value


def test_links_of_temporal_are_written_as_they_were_read() -> None:
    (link,) = parse_links([WORKFLOW_EVENT])
    assert format_link(link) == WORKFLOW_EVENT


def test_writing_escapes_what_readers_stumble_over_and_keeps_escapes() -> None:
    link = Link(url="a:b,c;d<e>%2C%zz é\n", type="T")
    assert format_link(link) == '<a:b%2Cc%3Bd%3Ce%3E%2C%25zz%20%C3%A9%0A>; type="T"'


@pytest.mark.parametrize(
    "link", [Link("", "T"), Link("a:b", ""), Link("a:b", "a b"), Link("\ud800", "T")]
)
def test_links_without_a_wire_form_are_refused(link: Link) -> None:
    with pytest.raises(InvalidWireValue, match="link"):
        format_link(link)
