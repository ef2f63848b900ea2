"""A real vLLM through the gateway and directly, in turns: what the way through costs where a model computes."""

import http.client
import itertools
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.gateway.load import PATH, PROMPT
from benchmarks.gateway.targets import Target, heliu
from benchmarks.results import Row
from tests.support.real_engine import SECRET, real_engine
from tests.support.running_platform import prepared_models

MODEL = "smollm2-135m-instruct"
AT_ONCE, EACH, TOKENS = 8, 2, 48
RATIO_MIN = 0.98

_numbers = itertools.count(1)


def real_vllm(rounds: int) -> list[Row]:
    """Answers per second through the gateway over those without it: the median of the rounds' ratios."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with (
            real_engine(prepared_models() / MODEL, [MODEL], log) as engine,
            heliu(engine.url, model=MODEL, engine_key=SECRET, alone=False) as through,
        ):
            direct = Target("direct", engine.url, {"authorization": f"Bearer {SECRET}"})
            for target in (direct, through):
                _answers_per_second(target)
            ratios: list[float] = []
            speeds: list[float] = []
            for number in range(rounds):
                order = (direct, through) if number % 2 else (through, direct)
                seen = {target.name: _answers_per_second(target) for target in order}
                ratios.append(seen["heliu"] / seen["direct"])
                speeds.append(seen["direct"])
    ratio = statistics.median(ratios)
    reference = f"{rounds} rounds, {min(ratios):.2f} to {max(ratios):.2f}"
    return [
        Row("real_vllm_direct", statistics.median(speeds), "1/s"),
        Row("real_vllm_ratio", ratio, "", reference, ratio, f"≥ {RATIO_MIN:g}", ratio >= RATIO_MIN),
    ]


def _answers_per_second(target: Target) -> float:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        began = time.perf_counter()
        list(pool.map(lambda _: _ask(target), range(AT_ONCE)))
        return AT_ONCE * EACH / (time.perf_counter() - began)


def _ask(target: Target) -> None:
    """A few requests one after another on one connection; each prompt is new, so no cache answers for another."""
    where = urlsplit(target.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=300)
    try:
        for _ in range(EACH):
            content = f"{next(_numbers)}. {PROMPT}"
            body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "temperature": 0}
            body |= {"max_tokens": TOKENS, "ignore_eos": True}
            connection.request("POST", PATH, json.dumps(body), {"content-type": "application/json"} | target.headers)
            answer = connection.getresponse()
            said = json.loads(answer.read())
            assert answer.status == 200 and said["usage"]["completion_tokens"] == TOKENS, said
    finally:
        connection.close()
