"""Errors as replies: text-embeddings-inference's types, statuses and bodies."""

from __future__ import annotations

from typing import Any

# Their statuses; a request that cannot be read has others of the same type.
STATUSES = {
    "Unhealthy": 503,
    "Backend": 424,
    "Overloaded": 429,
    "Validation": 422,
    "Tokenizer": 422,
    "Empty": 400,
}
# The names that vLLM gives to statuses.
VLLM_TYPES = {
    400: "BadRequestError",
    404: "NotFoundError",
    424: "InternalServerError",
    429: "TooManyRequestsError",
    503: "ServiceUnavailableError",
}


class ApiError(Exception):
    """What a client is told in place of an answer.

    Args:
        error_type: one of `STATUSES`.
        message: one line.
        status: default that of the type.
        retry_after: seconds, for a client that may come again.
        reason: by which metrics count it; default the type in small letters.
    """

    def __init__(
        self,
        error_type: str,
        message: str,
        *,
        status: int | None = None,
        retry_after: int | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.message = message
        self.status = status or STATUSES[error_type]
        self.reason = reason or error_type.lower()
        self.headers = {} if retry_after is None else {"retry-after": str(retry_after)}

    def body(self) -> dict[str, Any]:
        """text-embeddings-inference's."""
        return {"error": self.message, "error_type": self.error_type}

    def vllm_body(self) -> dict[str, Any]:
        """vLLM's, of the same message."""
        name = VLLM_TYPES[self.vllm_status]
        error = {"message": self.message, "type": name, "param": None, "code": self.vllm_status}
        return {"error": error}

    @property
    def vllm_status(self) -> int:
        """VLLM's of what cannot be read is 400."""
        return self.status if self.status in VLLM_TYPES else 400


def validation(message: str, reason: str | None = None) -> ApiError:
    """What is wrong with a body that could be read."""
    return ApiError("Validation", message, reason=reason)
