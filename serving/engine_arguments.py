"""The engine arguments a catalogue entry may set. What is not named here cannot reach the engine's command line.

Absent on purpose: trust_remote_code, anything that opens a port, names a file or loads code, and the LoRA
arguments (they follow from the model's `max_loras`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kit.errors import InvalidInput

Value = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number within `[least, most]`."""

    least: int
    most: int

    def accepts(self, value: object) -> bool:
        """Whether `value` is such a number; True and False are not."""
        return isinstance(value, int) and not isinstance(value, bool) and self.least <= value <= self.most

    def __str__(self) -> str:
        return f"a whole number from {self.least} to {self.most}"


@dataclass(frozen=True, slots=True)
class Share:
    """A number within `[least, most]`."""

    least: float
    most: float

    def accepts(self, value: object) -> bool:
        """Whether `value` is such a number; True and False are not."""
        return isinstance(value, int | float) and not isinstance(value, bool) and self.least <= value <= self.most

    def __str__(self) -> str:
        return f"a number from {self.least} to {self.most}"


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a few words."""

    words: tuple[str, ...]

    def accepts(self, value: object) -> bool:
        """Whether `value` is one of the words."""
        return isinstance(value, str) and value in self.words

    def __str__(self) -> str:
        return "one of " + ", ".join(self.words)


@dataclass(frozen=True, slots=True)
class Switch:
    """true or false."""

    def accepts(self, value: object) -> bool:
        """Whether `value` is a truth value."""
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "true or false"


_TOOL_PARSERS = ("hermes", "llama3_json", "mistral", "qwen3_coder", "deepseek_v3", "glm45", "kimi_k2", "pythonic")
_REASONING_PARSERS = ("deepseek_r1", "qwen3", "glm45", "kimi_k2")

ALLOWED: Mapping[str, Whole | Share | OneOf | Switch] = {
    "block_size": Whole(1, 256),
    "dtype": OneOf(("auto", "bfloat16", "float16", "float32")),
    "enable_auto_tool_choice": Switch(),
    "enable_chunked_prefill": Switch(),
    "enable_prefix_caching": Switch(),
    "enforce_eager": Switch(),
    "gpu_memory_utilization": Share(0.05, 0.98),
    "kv_cache_dtype": OneOf(("auto", "fp8", "fp8_e4m3", "fp8_e5m2")),
    "max_model_len": Whole(64, 1 << 21),
    "max_num_batched_tokens": Whole(64, 1 << 20),
    "max_num_seqs": Whole(1, 4096),
    "pipeline_parallel_size": Whole(1, 16),
    "quantization": OneOf(("awq", "awq_marlin", "gptq", "gptq_marlin", "fp8", "bitsandbytes", "compressed-tensors")),
    "reasoning_parser": OneOf(_REASONING_PARSERS),
    "seed": Whole(0, (1 << 31) - 1),
    "tensor_parallel_size": Whole(1, 64),
    "tool_call_parser": OneOf(_TOOL_PARSERS),
}


def checked(arguments: Mapping[str, object]) -> dict[str, Value]:
    """The arguments, sorted by name. Raises InvalidInput for one that is unknown or out of its range."""
    accepted: dict[str, Value] = {}
    for name in sorted(arguments):
        rule = ALLOWED.get(name)
        if rule is None:
            raise InvalidInput(
                f"engine argument {name!r} is not allowed",
                code="engine_argument_not_allowed",
                hint="allowed are " + ", ".join(ALLOWED),
            )
        value = arguments[name]
        if not rule.accepts(value):
            raise InvalidInput(f"engine argument {name!r} must be {rule}", code="engine_argument_out_of_range")
        assert isinstance(value, bool | int | float | str)
        accepted[name] = value
    return accepted
