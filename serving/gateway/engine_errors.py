"""What an engine's refusal means to the client: passed on, turned into ours, or a reason to ask another replica."""

from enum import Enum, auto

import msgspec

from serving.gateway.openai_errors import Refusal


class EngineAnswer(Enum):
    """What to do about an answer that is no refusal of the request itself."""

    ELSEWHERE = auto()  # this replica cannot, another may
    BUSY = auto()  # this replica has too much to do, another may have room


class _Error(msgspec.Struct):
    message: str = ""
    type: str | None = None
    param: str | None = None


class _Body(msgspec.Struct):
    error: _Error | None = None
    message: str | None = None


_decoder = msgspec.json.Decoder(_Body)
_ELSEWHERE = frozenset({401, 403, 502, 503, 504})
_TOO_LONG = ("context length", "maximum model length", "max_model_len", "is too long", "longer than the maximum")


def judge(status: int, body: bytes, asked_model: str, *, engine_name: str) -> Refusal | EngineAnswer:
    """The engine's error in OpenAI's shape with a stable code, its name for the model replaced by the client's."""
    if status in _ELSEWHERE:
        return EngineAnswer.ELSEWHERE
    try:
        read = _decoder.decode(body)
    except msgspec.MsgspecError:
        read = _Body()
    error = read.error or _Error(read.message or "")
    message = error.message.replace(engine_name, asked_model) or "the engine refused the request"
    if status == 404:
        # The route table names this model, so its replica has lost it (an adapter that was unloaded meanwhile).
        return EngineAnswer.ELSEWHERE if engine_name in error.message else Refusal(404, "not_found", message)
    if not 400 <= status < 500:
        return Refusal(502, "engine_error", "the model's engine failed on this request")
    if any(sign in message for sign in _TOO_LONG):
        return Refusal(400, "context_length_exceeded", message, error.param or "messages")
    if status == 429:
        return EngineAnswer.BUSY
    return Refusal(400 if status == 422 else status, "invalid_request", message, error.param)
