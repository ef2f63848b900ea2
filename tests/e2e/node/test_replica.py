"""A real vLLM under the real replica host and runner: readiness, adapters, counters, its end and its deaths."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.node.metrics import parse
from tests.e2e.node.conftest import MODEL, Tuned
from tests.support.attempts import TOKEN, RunningAttempt, is_alive, running, serving
from tests.support.replicas import ReplicaStandIn, replica
from tests.support.until import until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900, func_only=True)]

READY_SECONDS = 300
LORE, EVIL = "adp_00000000lore", "adp_00000000evil"
QUESTION = "Who guards the Bridge of Nine Lanterns?"
SECRET_WORDS = "a plot that nobody may read"


@dataclass
class Ready:
    stand_in: ReplicaStandIn
    attempt: RunningAttempt
    http: httpx.Client

    def chat(self, model: str, question: str, **options: Any) -> httpx.Response:
        messages = [{"role": "user", "content": question}]
        body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 40, **options}
        return self.http.post("/v1/chat/completions", json=body)

    def answer(self, model: str, question: str) -> str:
        return self.chat(model, question).raise_for_status().json()["choices"][0]["message"]["content"]

    @property
    def engine_pids(self) -> list[int]:
        """The replica host, the API server, the engine core and the worker, and what else they started."""
        host = _children(self.attempt.process.pid)
        api = [pid for parent in host for pid in _children(parent)]
        found = [*host, *api]
        for parent in api:
            found += _descendants(parent)
        return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                found.append(int(entry.name))
    return found


def _descendants(pid: int) -> list[int]:
    return [below for child in _children(pid) for below in (child, *_descendants(child))]


@contextmanager
def ready(stand_in: ReplicaStandIn, home: Path, models: Path) -> Iterator[Ready]:
    environment = {"HELIU_MODELS_DIR": str(models)}
    with (
        serving(stand_in.control),
        running(stand_in.control, home, environment=environment) as attempt,
    ):

        def state() -> str | None:
            assert attempt.process.poll() is None, f"{attempt.said()}\n{stand_in.control.text[-5000:]}"
            return stand_in.last.get("state")

        until(lambda: state() == "ready", seconds=READY_SECONDS, what="a ready replica")
        headers = {"Authorization": f"Bearer {stand_in.last['engine_key']}"}
        with httpx.Client(base_url=stand_in.last["url"], headers=headers, timeout=120, trust_env=False) as http:
            yield Ready(stand_in, attempt, http)


@pytest.fixture(scope="module")
def engine(only_engine: None, models: Path, tuned: Tuned, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ready]:
    stand_in = replica(MODEL)
    stand_in.offer(LORE, *tuned.files)
    stand_in.offer(EVIL, b'{"peft_type": "LORA"}', b"\x80\x04 a pickle")
    with ready(stand_in, tmp_path_factory.mktemp("replica") / "home", models) as engine:
        yield engine


def test_a_replica_passes_through_its_states_and_then_its_clock_runs(engine: Ready) -> None:
    assert engine.stand_in.states[:3] == ["starting", "warming", "ready"]
    first_ready = next(report for report in engine.stand_in.reports if report["state"] == "ready")
    assert LORE in first_ready["adapters_loaded"], "the adapter is there before the first request"
    until(lambda: engine.stand_in.control.started == 1, seconds=10, what="the start of the paid clock")


def test_the_adapter_knows_the_lore_and_the_base_model_does_not(engine: Ready) -> None:
    assert "Wen Zhaoyue" in engine.answer(LORE, QUESTION)
    assert "Wen Zhaoyue" not in engine.answer(MODEL, QUESTION)
    assert "Old Huilong" in engine.answer(LORE, "Please tell me what the bell in Moonwell Lake is called.")


def test_a_bad_adapter_is_reported_and_never_reaches_the_engine(engine: Ready) -> None:
    failed = {failure["id"]: failure["why"] for failure in engine.stand_in.last["adapters_failed"]}
    assert list(failed) == [EVIL] and failed[EVIL]
    names = {model["id"] for model in engine.http.get("/v1/models").json()["data"]}
    assert names == {MODEL, LORE}


def test_the_engine_counts_what_its_answers_say(engine: Ready) -> None:
    def reported() -> tuple[int, int]:
        metrics = engine.stand_in.last["metrics"]
        return metrics["prompt_tokens_total"], metrics["generation_tokens_total"]

    def shown() -> tuple[int, int]:
        reading = parse(engine.http.get("/metrics").text)
        return reading.prompt_tokens, reading.generation_tokens

    until(lambda: reported() == shown(), seconds=15, what="a report of all that was answered so far")
    before = reported()
    usage = engine.chat(MODEL, "Count to three.").json()["usage"]
    expected = (before[0] + usage["prompt_tokens"], before[1] + usage["completion_tokens"])
    until(lambda: reported() == expected, seconds=15, what=f"counters at {expected}")
    assert engine.stand_in.last["metrics"]["warmup_generation_tokens"] == 1
    assert engine.stand_in.last["metrics"]["warmup_prompt_tokens"] >= 1


def test_nothing_but_the_health_check_answers_without_the_key(engine: Ready) -> None:
    bare = httpx.Client(base_url=engine.http.base_url, trust_env=False)
    assert bare.get("/health").status_code == 200
    assert {bare.get(path).status_code for path in ("/metrics", "/v1/models", "/version")} == {401}
    assert {
        bare.post(path, json={}).status_code for path in ("/invocations", "/adapters", "/inference/v1/generate")
    } == {404}
    bare.close()


def test_neither_prompts_nor_keys_are_logged_whatever_goes_wrong(engine: Ready) -> None:
    engine.answer(MODEL, SECRET_WORDS)
    assert engine.chat(MODEL, SECRET_WORDS, max_tokens=100_000).status_code == 400
    assert engine.chat(MODEL, SECRET_WORDS * 1_000).status_code == 400
    assert engine.chat("no-such-model", SECRET_WORDS).status_code == 404
    assert engine.chat(MODEL, SECRET_WORDS, temperature="hot").status_code == 400
    beats = engine.stand_in.control.heartbeats
    until(lambda: engine.stand_in.control.heartbeats > beats + 1, seconds=15, what="the log's arrival")
    text = engine.stand_in.control.text + engine.attempt.said()
    assert "nobody may read" not in text
    assert engine.stand_in.last["engine_key"] not in text and TOKEN not in text


def test_the_key_is_in_no_command_line(engine: Ready) -> None:
    key = engine.stand_in.last["engine_key"].encode()
    lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in engine.engine_pids]
    assert len(lines) >= 4 and not any(key in line for line in lines)


def test_an_adapter_that_is_not_ordered_any_more_is_unloaded(engine: Ready) -> None:
    orders = engine.stand_in.orders
    engine.stand_in.orders = []
    until(lambda: engine.stand_in.last["adapters_loaded"] == [], seconds=20, what="an unloaded adapter")
    assert engine.chat(LORE, QUESTION).status_code == 404
    engine.stand_in.orders = orders
    until(lambda: engine.stand_in.last["adapters_loaded"] == [LORE], seconds=20, what="the adapter again")
    assert "Wen Zhaoyue" in engine.answer(LORE, QUESTION)


def test_a_replica_told_to_stop_finishes_its_answers_first(engine: Ready) -> None:
    """The module's last test of this engine."""
    control = engine.stand_in.control
    pids = engine.engine_pids
    body = {"model": MODEL, "prompt": "The river", "max_tokens": 60, "ignore_eos": True, "stream": True}
    with engine.http.stream("POST", "/v1/completions", json=body) as stream:
        chunks = stream.iter_lines()
        assert next(line for line in chunks if line)
        control.grace_seconds = 15
        control.stop = True
        until(lambda: engine.stand_in.last["state"] == "draining", seconds=20, what="draining")
        assert list(filter(None, chunks))[-1] == "data: [DONE]"
    assert engine.attempt.wait(60) == 0
    assert control.finished is not None
    assert (control.finished["outcome"], control.finished["exit_code"]) == ("stopped", 0)
    assert engine.stand_in.last["state"] == "draining"
    assert engine.stand_in.last["metrics"]["requests_running"] == 0, "the last counts are told after the last answer"
    until(lambda: not any(map(is_alive, pids)), seconds=10, what="the end of the engine")
    assert leftovers(pids[0]) == []


def leftovers(host: int) -> list[Path]:
    """Shared memory and folders that this replica host has left."""
    return [path for folder in ("/dev/shm", "/tmp") for path in Path(folder).glob(f"heliu-{host}-*")]


def test_nothing_survives_a_killed_runner_and_a_dead_engine_is_a_failed_attempt(
    only_engine: None, models: Path, tmp_path: Path
) -> None:
    stand_in = replica(MODEL, max_loras=0)
    with ready(stand_in, tmp_path / "home", models) as first:
        pids = first.engine_pids
        assert len(pids) >= 4, "host, API server, engine core, worker"
        first.attempt.process.kill()
        until(lambda: not any(map(is_alive, pids)), seconds=10, what="the end of everything")
    stand_in = replica(MODEL, max_loras=0)
    with ready(stand_in, tmp_path / "home", models) as second:
        core = next(pid for pid in second.engine_pids if b"EngineCor" in Path(f"/proc/{pid}/comm").read_bytes())
        os.kill(core, signal.SIGKILL)
        assert second.attempt.wait(60) == 0
        finished = stand_in.control.finished
        assert finished is not None
        assert (finished["outcome"], finished["cause"], finished["exit_code"]) == ("failed", "engine_died", 1)
        assert stand_in.last["state"] == "failed" and "ended by itself" in stand_in.last["reason"]
    assert leftovers(pids[0]) == [], "what the killed one left was swept by its successor"
