"""The contract's shell samples as requests: as much of curl as they use."""

import argparse
import re
import shlex
from dataclasses import dataclass

import httpx

_STATUS = re.compile(r"\((\d{3})\)$")
_SAMPLES_BASE_URL = "http://127.0.0.1:8080"

_curl = argparse.ArgumentParser(prog="curl", exit_on_error=False)
_curl.add_argument("url")
_curl.add_argument("-X", dest="method")
_curl.add_argument("-H", dest="headers", action="append", default=[])
_curl.add_argument("--json")


@dataclass(frozen=True)
class Sample:
    """One sample, and the status that its label promises."""

    operation_id: str
    label: str
    source: str

    @property
    def status(self) -> int:
        found = _STATUS.search(self.label)
        assert found is not None, f"{self.label!r} ends with no status"
        return int(found[1])

    def request(self, base_url: str, token: str = "", callback_id: str = "") -> httpx.Request:
        text = self.source.replace("$TOKEN", token).replace("$ID", callback_id)
        text = text.replace("\\\n", " ")
        command, *arguments = shlex.split(text)
        assert command == "curl"
        given = _curl.parse_args(arguments)
        assert given.url.startswith(f"{_SAMPLES_BASE_URL}/")
        headers = [tuple(header.split(": ", 1)) for header in given.headers]
        body = given.json
        if body is not None:
            headers += [("Content-Type", "application/json"), ("Accept", "application/json")]
        return httpx.Request(
            given.method or ("GET" if body is None else "POST"),
            given.url.replace(_SAMPLES_BASE_URL, base_url),
            headers=headers,
            content=body,
        )
