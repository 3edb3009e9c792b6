"""The caller's side of Nexus RPC: start operations, await them, deliver and receive completions."""

from clients.completion_client import CompletionClient
from clients.completion_receiver import CompletionReceiver, OnCompletion
from clients.error_decoding import error_of_response
from clients.errors import (
    ClientError,
    MalformedResponse,
    NotSupported,
    ServiceUnresolved,
    StillRunning,
    UnknownOutcome,
    Unreachable,
)
from clients.expected_completions import ExpectedCompletion
from clients.operation_client import NexusClient
from clients.operation_handle import OperationHandle
from clients.retry import Clock, RetryPolicy, retry_after_seconds
from clients.sender import HttpxSender, Sender, SentResponse
from clients.signatures import SignatureInvalid, parse_secret, verify_webhook
from clients.start import StartOptions

__all__ = [
    "ClientError",
    "Clock",
    "CompletionClient",
    "CompletionReceiver",
    "ExpectedCompletion",
    "HttpxSender",
    "MalformedResponse",
    "NexusClient",
    "NotSupported",
    "OnCompletion",
    "OperationHandle",
    "RetryPolicy",
    "Sender",
    "SentResponse",
    "ServiceUnresolved",
    "SignatureInvalid",
    "StartOptions",
    "StillRunning",
    "UnknownOutcome",
    "Unreachable",
    "error_of_response",
    "parse_secret",
    "retry_after_seconds",
    "verify_webhook",
]
