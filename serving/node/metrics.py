"""The engine's own counters, from its Prometheus page. Pure."""

import re
from dataclasses import dataclass

_SAMPLE = re.compile(r"^(vllm:[a-z_]+)(?:\{[^}]*\})? ([0-9.eE+\-]+|NaN)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters since the engine's start and its load now."""

    prompt_tokens: int
    generation_tokens: int
    running: int
    waiting: int
    kv_cache_usage_ppm: int

    @property
    def is_idle(self) -> bool:
        return self.running == 0 and self.waiting == 0


def parse(page: str) -> Reading:
    """Sums over the engine's label sets. Raises ValueError when a counter is not there."""
    sums: dict[str, float] = {}
    for name, value in _SAMPLE.findall(page):
        sums[name] = sums.get(name, 0.0) + float(value)
    try:
        return Reading(
            prompt_tokens=round(sums["vllm:prompt_tokens_total"]),
            generation_tokens=round(sums["vllm:generation_tokens_total"]),
            running=round(sums["vllm:num_requests_running"]),
            waiting=round(sums["vllm:num_requests_waiting"]),
            kv_cache_usage_ppm=min(1_000_000, max(0, round(sums.get("vllm:kv_cache_usage_perc", 0.0) * 1_000_000))),
        )
    except KeyError as missing:
        raise ValueError(f"the engine's metrics lack {missing.args[0]}") from None
