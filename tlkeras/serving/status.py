"""Errors of requests: TensorFlow's codes and their translation to HTTP and gRPC."""

from enum import Enum


class Code(Enum):
    """TensorFlow's error codes: number in gRPC, and status in HTTP as TensorFlow Serving translates them."""

    OK = (0, 200)
    CANCELLED = (1, 499)
    UNKNOWN = (2, 500)
    INVALID_ARGUMENT = (3, 400)
    DEADLINE_EXCEEDED = (4, 504)
    NOT_FOUND = (5, 404)
    PERMISSION_DENIED = (7, 403)
    RESOURCE_EXHAUSTED = (8, 429)
    FAILED_PRECONDITION = (9, 400)
    OUT_OF_RANGE = (11, 400)
    UNIMPLEMENTED = (12, 501)
    INTERNAL = (13, 500)
    UNAVAILABLE = (14, 503)
    TOO_LARGE = (8, 413)
    """The body is over the limit; gRPC has no code of its own for it."""

    def __init__(self, number: int, http: int):
        self.number, self.http = number, http


class StatusError(Exception):
    """The error response to a request."""

    def __init__(self, code: Code, message: str):
        self.code, self.message = code, message
        super().__init__(f"{code.name}: {message}")


def invalid_argument(message: str) -> StatusError:
    """Error of a malformed request."""
    return StatusError(Code.INVALID_ARGUMENT, message)


def translate(error: Exception) -> StatusError:
    """The error response for an exception of TensorFlow, or any other."""
    if isinstance(error, StatusError):
        return error
    number, message = getattr(error, "error_code", None), str(getattr(error, "message", None) or error)
    return StatusError(next((code for code in Code if code.number == number), Code.INTERNAL), message)
