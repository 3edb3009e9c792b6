import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nexus_spec import InvalidWireValue, parse_media_type


@pytest.mark.parametrize(
    ("value", "type_", "params"),
    [
        ("application/json", "application/json", {}),
        (" Application/JSON ", "application/json", {}),
        ("application/json;", "application/json", {}),
        ("a/b; ;Charset=UTF-8 ; x=y", "a/b", {"charset": "UTF-8", "x": "y"}),
        ("a/x; message-type=\"a.B\"", "a/x", {"message-type": "a.B"}),
        ('a/b;x="q\\"; y=\\\\z";x=second', "a/b", {"x": 'q"; y=\\z'}),
        ('a/b;x=""', "a/b", {"x": ""}),
    ],
)  # fmt: skip
def test_reads_type_and_parameters(value: str, type_: str, params: dict[str, str]) -> None:
    media_type = parse_media_type(value)
    assert (media_type.type, dict(media_type.params)) == (type_, params)


@pytest.mark.parametrize(
    "value",
    [
        *["", "json", "a/", "/b", "a/b/c", "a/b c", "a b/c", "a/b;x", "a/b;x=", "a/b; x = y"],
        *['a/b;x="y', 'a/b;x="y"z', "a/b,c/d", "a/b;x=y z", "a/\u00e9", "a/b\n", "a/b;x=" + "\x00"],
    ],
)
def test_refuses_anything_else(value: str) -> None:
    with pytest.raises(InvalidWireValue, match="expected for example application/json"):
        parse_media_type(value)


@given(st.text() | st.text(alphabet='a/b;= "\\'))
@example("a/b" + ";" * 20_000)
@example('a/b;x="' + "\\" * 20_000)
def test_any_text_is_a_media_type_or_refused(value: str) -> None:
    try:
        media_type = parse_media_type(value)
    except InvalidWireValue:
        return
    assert media_type.type == media_type.type.lower()
