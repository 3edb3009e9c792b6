"""Values that several tests of the wire draw from."""

from hypothesis import strategies as st

from nexus_spec.headers import is_header_value

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=8), inner, max_size=4
        )
    ),
    max_leaves=8,
)
"""What JSON can say, without what it cannot (NaN, halves of surrogate pairs)."""

TOKENS = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0xFF), min_size=1, max_size=60
).filter(is_header_value)
