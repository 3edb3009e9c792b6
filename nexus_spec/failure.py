"""Failures: how an error looks on the wire, in three forms, and as an exception.

Typed:  `metadata.type` is `nexus.HandlerError` or `nexus.OperationError`; all that is sent.
Bare:   no known type; status and `Nexus-Operation-State` say what happened.
Third:  a Temporal server's own failure as protobuf JSON, wherever a worker's error passes through.

This module is the door to its three parts: the object and its JSON, Failures read as errors, and
errors written as Failures.
"""

from nexus_spec.failure_decoding import RemoteFailure, error_of_failure
from nexus_spec.failure_encoding import application_error, failure_of_error
from nexus_spec.failure_json import (
    HANDLER_ERROR,
    OPERATION_ERROR,
    TEMPORAL_FAILURE,
    UNWRAP_ERROR,
    Failure,
    failure_from_json,
    failure_to_bytes,
    failure_to_json,
    metadata_type,
    parse_failure,
)

__all__ = [
    "HANDLER_ERROR",
    "OPERATION_ERROR",
    "TEMPORAL_FAILURE",
    "UNWRAP_ERROR",
    "Failure",
    "RemoteFailure",
    "application_error",
    "error_of_failure",
    "failure_from_json",
    "failure_of_error",
    "failure_to_bytes",
    "failure_to_json",
    "metadata_type",
    "parse_failure",
]
