"""What a client is told when it does not get what it asked for."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

# Kinds of refusal, in the words of the OpenAI API, which all answers here use.
INVALID_REQUEST = "invalid_request_error"
NOT_FOUND = "not_found_error"
RATE_LIMIT = "rate_limit_error"
SERVER_ERROR = "server_error"
TIMEOUT = "timeout_error"
UNAVAILABLE = "service_unavailable_error"


@dataclass
class Refusal(Exception):
    """A request that is not carried out, or a job that failed, in one sentence.

    `param` is the field of the request that is wrong. `retry_after`: seconds after which the same
    request may succeed; None: it will not, or nobody knows.
    """

    status: int  # of HTTP
    message: str
    type: str = INVALID_REQUEST
    param: str | None = None
    code: str | None = None
    retry_after: int | None = None

    def __str__(self) -> str:
        return self.message

    def to_dict(self) -> dict:
        """As the value of "error" in an answer."""
        return {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> Refusal:
    """A request with a value that cannot be used."""
    return Refusal(400, message, INVALID_REQUEST, param, code)


def not_found(message: str, param: str | None = None, code: str = "not_found") -> Refusal:
    """A request for something that is not there."""
    return Refusal(404, message, NOT_FOUND, param, code)


def renamed(refusal: Refusal, names: Mapping[str, str]) -> Refusal:
    """The same for a client that knows other names of the fields: ours -> theirs."""
    name = names.get(refusal.param or "")
    if name is None:
        return refusal
    message = re.sub(rf"\b{refusal.param}\b", name, refusal.message, count=1)
    return replace(refusal, message=message, param=name)
