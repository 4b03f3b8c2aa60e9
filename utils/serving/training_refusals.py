"""Why something cannot be done with a training."""

from utils.serving.refusal import INVALID_REQUEST, SERVER_ERROR, Refusal


def invalid(message: str, param: str, code: str = "invalid_value") -> Refusal:
    """A value that cannot be used."""
    return Refusal(422, message, INVALID_REQUEST, param, code)


def conflict(message: str, code: str) -> Refusal:
    """What cannot be done now."""
    return Refusal(409, message, INVALID_REQUEST, code=code)


def failed(message: str) -> Refusal:
    """What the server could not do."""
    return Refusal(500, message, SERVER_ERROR)
