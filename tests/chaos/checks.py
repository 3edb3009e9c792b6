"""What has to hold after a campaign, whatever happened in it."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.chaos.database import Ended, is_delivered
from tests.chaos.fleet import Fault
from tests.chaos.load import Call
from tests.chaos.witness import Run
from tests.support.callback_receiver import Received

STEPS = 6  # of each operation

# Between the moment that a record bears and its commit there is nothing to wait for; this is for
# a machine that has more to do than it can.
_MARGIN_MS = 100

# What a process says when it was as good as gone for a while, without any fault of ours.
_LAPSES = ("the lease ran out", "takes up operations of its own again")


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was not kept."""

    promise: str
    what: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is known of a campaign after it."""

    calls: Sequence[Call]
    operations: Sequence[Ended]
    runs: Sequence[Run]
    faults: Sequence[Fault]
    received: Sequence[Received]
    shown: Mapping[int, Mapping[str, str]]  # what each replica says of each operation
    logs: Mapping[int, str]  # by pid

    @property
    def repeated(self) -> int:
        """How many runs of steps were not the first of their step."""
        return len(self.runs) - len({(run.token, run.label) for run in self.runs})


def violations(evidence: Evidence) -> list[Violation]:
    """Return every promise that was not kept."""
    return [
        Violation(check.__name__, what)
        for check in (
            every_start_was_answered,
            one_operation_for_each_request,
            every_operation_ended_as_it_had_to,
            nothing_is_left_to_do,
            everyone_was_told_the_same,
            no_recorded_step_ran_again,
            what_counts_was_recorded,
            one_owner_at_a_time,
            every_repetition_has_a_cause,
            all_replicas_agree,
        )
        for what in check(evidence)
    ]


def every_start_was_answered(evidence: Evidence) -> Iterator[str]:
    """No client was refused, or left without an answer."""
    for call in evidence.calls:
        if not call.answered:
            yield f"{call.request_id} was never answered"
        for refusal in call.refusals:
            yield f"{call.request_id}: {refusal}"


def one_operation_for_each_request(evidence: Evidence) -> Iterator[str]:
    """However often a request was sent, there is one operation, and it is the answered one."""
    stored = Counter(operation.request_id for operation in evidence.operations)
    for request_id, count in (stored - Counter(dict.fromkeys(stored, 1))).items():
        yield f"{request_id} has {count + 1} operations"
    tokens = {operation.request_id: operation.token for operation in evidence.operations}
    for call in evidence.calls:
        if call.answered and call.request_id not in tokens:
            yield f"{call.request_id} was accepted as {call.token} and is lost"
        elif call.token is not None and call.token != tokens[call.request_id]:
            yield f"{call.request_id} was answered {call.token}, not {tokens[call.request_id]}"


def every_operation_ended_as_it_had_to(evidence: Evidence) -> Iterator[str]:
    """Each is in the state that its kind ends in."""
    calls = {call.request_id: call for call in evidence.calls}
    for operation in evidence.operations:
        call = calls[operation.request_id]
        if operation.state != call.ends:
            yield (
                f"{call.kind} {operation.token} is {operation.state}, not {call.ends} "
                f"(epoch {operation.epoch}, owner {operation.owner}, "
                f"{operation.pause_reason or operation.failure!r}, "
                f"journal {[entry.key for entry in operation.journal]})"
            )


def nothing_is_left_to_do(evidence: Evidence) -> Iterator[str]:
    """Nothing is owned, in flight or undelivered."""
    for operation in evidence.operations:
        if operation.has_ended and operation.owner is not None:
            yield f"{operation.token} has ended and is owned by {operation.owner}"
        if not operation.callbacks:
            yield f"{operation.token} has lost its callback"
        for callback in operation.callbacks:
            if not is_delivered(callback):
                yield f"the callback of {operation.token} is {callback.state} ({callback.owner})"


def everyone_was_told_the_same(evidence: Evidence) -> Iterator[str]:
    """Callbacks, answers and the record tell of one end."""
    told: defaultdict[str, list[Received]] = defaultdict(list)
    for request in evidence.received:
        told[request.path[1:]].append(request)
    calls = {call.request_id: call for call in evidence.calls}
    for operation in evidence.operations:
        requests = told.pop(operation.request_id, [])
        if not requests:
            yield f"nobody was told of {operation.token}"
            continue
        bodies = {request.body for request in requests}
        states = {request.get("nexus-operation-state") for request in requests}
        closed = {request.get("nexus-operation-close-time") for request in requests}
        if len(bodies) != 1 or len(closed) != 1:
            yield f"different ends were told of {operation.token}: {bodies} at {closed}"
        if states != {operation.state}:
            yield f"{operation.token} is {operation.state}, and {states} was told"
        outcome = operation.output if operation.state == "succeeded" else operation.failure
        if bodies != {outcome}:
            yield f"{operation.token} has the outcome {outcome!r}, and {bodies} was told"
        for status, body in calls[operation.request_id].results:
            if body != outcome or (status == 200) != (operation.state == "succeeded"):
                yield f"{operation.token} has the outcome {outcome!r}, and {body!r} was answered"
    for request_id in told:
        yield f"a callback came that nobody asked for: {request_id}"


def no_recorded_step_ran_again(evidence: Evidence) -> Iterator[str]:
    """No run of a step began after the step was recorded."""
    recorded = {
        (entry.token, entry.label): entry
        for operation in evidence.operations
        for entry in operation.steps
    }
    for run in evidence.runs:
        entry = recorded.get((run.token, run.label))
        if entry is None or run.began_at <= entry.created_at + _MARGIN_MS:
            continue
        if not _was_frozen(evidence.faults, run):
            yield (
                f"{run.label} of {run.token} was recorded at {entry.created_at} (epoch "
                f"{entry.epoch}) and ran in {run.pid} {run.began_at - entry.created_at} ms later, "
                f"asked for {run.began_at - run.asked_at} ms before"
            )


def what_counts_was_recorded(evidence: Evidence) -> Iterator[str]:
    """What is recorded of a step is what a run of it brought, and the outcome is made of that."""
    runs = {(run.token, run.label, run.nonce) for run in evidence.runs}
    for operation in evidence.operations:
        for entry in operation.steps:
            if (entry.token, entry.label, entry.nonce) not in runs:
                yield f"{entry.key} of {entry.token} was recorded and never ran: {entry.nonce}"
        if operation.state == "succeeded":
            result = json.loads(operation.output or b"null")
            steps = [entry.nonce for entry in sorted(operation.steps, key=lambda e: e.label)]
            if result != steps:
                yield f"{operation.token} returned {result}, and its steps {steps}"
        if operation.state != "canceled" and len(operation.steps) != STEPS:
            yield f"{operation.token} has {len(operation.steps)} steps"


def one_owner_at_a_time(evidence: Evidence) -> Iterator[str]:
    """No owner wrote to a journal after the next one did, and no place was given twice."""
    for operation in evidence.operations:
        epochs = [entry.epoch for entry in operation.journal]
        if epochs != sorted(epochs) or any(epoch > operation.epoch for epoch in epochs):
            yield f"{operation.token} has entries of the epochs {epochs}, now {operation.epoch}"
        ordinals = [entry.ordinal for entry in operation.journal]
        if len(set(ordinals)) != len(ordinals):
            yield f"{operation.token} has entries with the ordinals {ordinals}"


def every_repetition_has_a_cause(evidence: Evidence) -> Iterator[str]:
    """A step runs again only where the process that ran it before was struck."""
    struck = {fault.pid for fault in evidence.faults}
    struck |= {pid for pid, log in evidence.logs.items() if any(said in log for said in _LAPSES)}
    restarts = [fault for fault in evidence.faults if fault.pid is None]
    before: dict[tuple[str, str], Run] = {}
    for run in evidence.runs:
        earlier = before.get((run.token, run.label))
        before[run.token, run.label] = run
        if earlier is None or earlier.pid in struck:
            continue
        if any(earlier.began_at <= r.ended_at and r.began_at <= run.began_at for r in restarts):
            continue
        yield f"{run.label} of {run.token} ran in {earlier.pid} and then in {run.pid}"


def all_replicas_agree(evidence: Evidence) -> Iterator[str]:
    """Whoever is asked of an operation says the same."""
    for token in {token for shown in evidence.shown.values() for token in shown}:
        said = {shown.get(token) for shown in evidence.shown.values()}
        if len(said) != 1:
            yield f"{token}: {said}"


def _was_frozen(faults: Sequence[Fault], run: Run) -> bool:
    """Whether its process was stopped just between asking for its lease and beginning.

    That moment is short, and nothing can be done about it but to make steps idempotent.
    """
    return any(
        fault.kind == "freeze"
        and fault.pid == run.pid
        and run.asked_at <= fault.began_at + 1
        and run.began_at >= fault.ended_at - 1
        for fault in faults
    )
