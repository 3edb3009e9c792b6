"""The Nexus RPC wire formats: pure values, parsers and renderers, without I/O or clock."""

from nexus_spec.completion import Completion, parse_completion, render_completion
from nexus_spec.content import Codec, PayloadSerializer
from nexus_spec.durations import format_duration, parse_duration
from nexus_spec.errors import (
    ERROR_KINDS,
    ErrorKind,
    InvalidWireValue,
    NexusError,
    UnencodableValue,
    is_retryable,
    status_of,
    type_of_status,
)
from nexus_spec.failure import (
    Failure,
    RemoteFailure,
    application_error,
    error_of_failure,
    failure_from_json,
    failure_of_error,
    failure_to_bytes,
    failure_to_json,
    parse_failure,
)
from nexus_spec.headers import (
    Headers,
    callback_headers,
    content_headers,
    is_header_name,
    is_header_value,
)
from nexus_spec.limits import (
    CALLBACK_HEADER_BYTES,
    CALLBACK_URL_BYTES,
    LINK_BYTES,
    LINKS,
    NAME_BYTES,
    PAYLOAD_BYTES,
    TOKEN_BYTES,
    USER_HEADER_BYTES,
)
from nexus_spec.links import format_link, parse_links
from nexus_spec.media_types import MediaType, parse_media_type
from nexus_spec.operation import (
    OperationInfo,
    OperationState,
    parse_operation_info,
    parse_operation_state,
)
from nexus_spec.operation_path import (
    OperationAddress,
    check_name,
    check_token,
    operation_path,
    parse_operation_path,
)
from nexus_spec.timestamps import (
    format_http_date,
    format_rfc3339,
    parse_http_date,
    parse_rfc3339,
)

__all__ = [
    "CALLBACK_HEADER_BYTES",
    "CALLBACK_URL_BYTES",
    "ERROR_KINDS",
    "LINKS",
    "LINK_BYTES",
    "NAME_BYTES",
    "PAYLOAD_BYTES",
    "TOKEN_BYTES",
    "USER_HEADER_BYTES",
    "Codec",
    "Completion",
    "ErrorKind",
    "Failure",
    "Headers",
    "InvalidWireValue",
    "MediaType",
    "NexusError",
    "OperationAddress",
    "OperationInfo",
    "OperationState",
    "PayloadSerializer",
    "RemoteFailure",
    "UnencodableValue",
    "application_error",
    "callback_headers",
    "check_name",
    "check_token",
    "content_headers",
    "error_of_failure",
    "failure_from_json",
    "failure_of_error",
    "failure_to_bytes",
    "failure_to_json",
    "format_duration",
    "format_http_date",
    "format_link",
    "format_rfc3339",
    "is_header_name",
    "is_header_value",
    "is_retryable",
    "operation_path",
    "parse_completion",
    "parse_duration",
    "parse_failure",
    "parse_http_date",
    "parse_links",
    "parse_media_type",
    "parse_operation_info",
    "parse_operation_path",
    "parse_operation_state",
    "parse_rfc3339",
    "render_completion",
    "status_of",
    "type_of_status",
]
