"""The bodies of requests: text-embeddings-inference's, vLLM's, and our fields for speed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from consistentee_ext.serving.errors import ApiError, validation

Text = str | tuple[str, str]
Kind = TypeVar("Kind")

PREDICT_INPUTS = (
    "inputs: expected a string, a pair of strings [string, string], or a batch of both "
    "[[string], [string, string], ...]"
)
FLAT = "; a flat list is one pair: write a batch of texts as [[string], [string], ...]"


@dataclass(frozen=True)
class Speed:
    """How fast the rows of a request leave.

    Attributes:
        level: one of the checkpoint's.
        threshold: in (0, 1], in its place.
        max_layers: rows leave there at the latest.
        deadline_ms: from the arrival of the request.
    """

    level: str | None = None
    threshold: float | None = None
    max_layers: int | None = None
    deadline_ms: float | None = None


@dataclass(frozen=True)
class Ask:
    """What is to be classified, and how.

    Attributes:
        texts: single ones and pairs.
        is_batch: whether the reply is a list for each text.
        truncate: whether too long ones are cut.
        side: at which end.
        raw_scores: logits in place of scores.
        speed: of all texts.
    """

    texts: list[Text]
    is_batch: bool
    truncate: bool
    side: str
    raw_scores: bool
    speed: Speed


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object of a body; raises ApiError with status 400 unless it is one."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ApiError(
            "Validation", f"body: expected JSON in UTF-8: {reason}", status=400
        ) from None
    if not isinstance(body, dict):
        raise validation(f"body: expected an object, got {_name(body)}")
    return body


def predict_ask(body: Mapping[str, Any]) -> Ask:
    """Of ``/predict``."""
    inputs = _required(body, "inputs")
    if isinstance(inputs, str):
        return _ask(body, [inputs], is_batch=False)
    if not isinstance(inputs, list) or not inputs:
        got = "an empty list" if inputs == [] else _name(inputs)
        raise validation(f"{PREDICT_INPUTS}, got {got}")
    if isinstance(inputs[0], str):
        return _ask(body, [_sequence(inputs, FLAT)], is_batch=False)
    return _ask(body, [_sequence(item, "") for item in inputs], is_batch=True)


def rerank_ask(body: Mapping[str, Any]) -> Ask:
    """Of ``/rerank``: pairs of the query and each text."""
    query = _typed(body, "query", _required(body, "query"), str, "a string")
    texts = _strings("texts", _required(body, "texts"))
    if not texts:
        raise ApiError("Empty", "`texts` cannot be empty")
    return _ask(body, [(query, text) for text in texts], is_batch=True)


def returns_text(body: Mapping[str, Any]) -> bool:
    """Whether the reply of ``/rerank`` repeats the texts."""
    return bool(_optional(body, "return_text", False, bool, "true or false"))


def classify_ask(body: Mapping[str, Any]) -> Ask:
    """Of vLLM's ``/classify``, which cuts no text unless it is asked to."""
    given = _required(body, "input")
    texts: list[Text] = [given] if isinstance(given, str) else [*_strings("input", given)]
    if not texts:
        raise ApiError("Empty", "`input` cannot be empty")
    cut = _optional(body, "truncate_prompt_tokens", None, int, "-1")
    if cut not in (None, -1):
        raise validation(f"truncate_prompt_tokens: expected -1, the model's limit, got {cut}")
    shown = _optional(body, "use_activation", True, bool, "true or false")
    return Ask(
        _checked_texts(texts),
        is_batch=True,
        truncate=cut == -1,
        side="right",
        raw_scores=not shown,
        speed=_speed(body),
    )


def _ask(body: Mapping[str, Any], texts: list[Text], is_batch: bool) -> Ask:
    side = _optional(body, "truncation_direction", "right", str, "left or right").lower()
    if side not in ("left", "right"):
        raise validation(f"truncation_direction: expected left or right, got {side!r}")
    return Ask(
        _checked_texts(texts),
        is_batch,
        truncate=_optional(body, "truncate", True, bool, "true or false"),
        side=side,
        raw_scores=_optional(body, "raw_scores", False, bool, "true or false"),
        speed=_speed(body),
    )


def _speed(body: Mapping[str, Any]) -> Speed:
    level = _optional(body, "level", None, str, "a string")
    threshold = _optional(body, "threshold", None, (int, float), "a number in (0, 1]")
    if threshold is not None and not 0 < threshold <= 1:
        raise validation(f"threshold: expected a number in (0, 1], got {threshold}")
    if threshold is not None and level is not None:
        raise validation("threshold: expected none beside a level, got both")
    deadline = _optional(body, "deadline_ms", None, (int, float), "a number above 0")
    if deadline is not None and not (deadline > 0 and math.isfinite(deadline)):
        raise validation(f"deadline_ms: expected a number above 0, got {deadline}")
    bound = _optional(body, "max_layers", None, int, "an integer")
    return Speed(level, None if threshold is None else float(threshold), bound, deadline)


def _required(body: Mapping[str, Any], name: str) -> Any:
    if name not in body:
        raise validation(f"{name}: expected this field, got none")
    return body[name]


def _optional(body: Mapping[str, Any], name: str, default: Any, kind: Any, wanted: str) -> Any:
    value = body.get(name)
    return default if value is None else _typed(body, name, value, kind, wanted)


def _typed(body: Mapping[str, Any], name: str, value: Any, kind: Any, wanted: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise validation(f"{name}: expected {wanted}, got {_name(value)}")
    return value


def _strings(name: str, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        wrong = value if not isinstance(value, list) else [i for i in value if type(i) is not str]
        got = _name(wrong[0]) + " in it" if isinstance(wrong, list) else _name(wrong)
        raise validation(f"{name}: expected a list of strings, got {got}")
    return value


def _sequence(item: object, hint: str) -> Text:
    """One text or one pair, as a list of one or two strings."""
    if not isinstance(item, list) or not all(isinstance(part, str) for part in item):
        raise validation(f"{PREDICT_INPUTS}, got {_name(item)} with other things in it")
    if len(item) == 1:
        return str(item[0])
    if len(item) == 2:
        return item[0], item[1]
    raise validation(f"{PREDICT_INPUTS}, got a list of {len(item)} strings{hint}")


def _checked_texts(texts: list[Text]) -> list[Text]:
    """The texts; raises ApiError where one is empty or has half of a character."""
    for text in texts:
        whole = "".join(text)
        if not whole:
            raise ApiError("Empty", "`inputs` cannot be empty")
        try:
            whole.encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise validation(f"inputs: expected text, got half a character, {half!a}") from None
    return texts


def _name(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    if value is None:
        return "null"
    return names.get(type(value), "a number")
