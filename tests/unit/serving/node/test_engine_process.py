import json
import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from kit.errors import InvalidInput
from serving.node.engine_process import command_line, environment, on_cpu
from serving.node.params import Params
from serving.vocabulary import ReplicaParams

GIVEN: dict[str, Any] = {
    "replica_id": "rep_1",
    "deployment_id": "dep_1",
    "model": "smollm2-135m-instruct",
    "source": "smollm2-135m-instruct",
    "revision": "main",
    "engine_arguments": {"max_model_len": 2048, "enable_prefix_caching": False},
    "context_tokens": 2048,
    "capabilities": ["chat"],
    "max_loras": 2,
    "max_lora_rank": 16,
    "generation": 1,
}


def words(*, on_cpu: bool = True, **changes: Any) -> list[str]:
    params = Params.model_validate({**GIVEN, **changes})
    socket = "ipc:///tmp/heliu-1-2/cache-events"
    return command_line(params, model=Path("/models/m"), port=1234, on_cpu=on_cpu, cache_events=socket)


def after(line: list[str], flag: str) -> str:
    return line[line.index(flag) + 1]


def test_params_are_what_serving_sends() -> None:
    assert set(Params.model_fields) == set(typing.get_type_hints(ReplicaParams))


@pytest.mark.parametrize("change", [{"surprise": 1}, {"source": "../etc"}, {"max_lora_rank": 64}, {"max_loras": "2"}])
def test_params_that_are_unknown_or_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Params.model_validate({**GIVEN, **change})


def test_the_engine_listens_on_loopback_behind_the_guard() -> None:
    line = words()
    assert (after(line, "--host"), after(line, "--port")) == ("127.0.0.1", "1234")
    assert after(line, "--middleware") == "serving.node.engine_guard.OnlyWithKey"
    assert "--disable-uvicorn-access-log" in line and "--enable-prompt-tokens-details" in line


def test_remote_code_is_never_trusted_and_no_key_is_on_the_command_line() -> None:
    line = words()
    assert not any("trust" in word or "api-key" in word for word in line)
    with pytest.raises(InvalidInput) as refusal:
        words(engine_arguments={"trust_remote_code": True})
    assert refusal.value.code == "engine_argument_not_allowed"


def test_engine_arguments_become_flags() -> None:
    line = words(engine_arguments={"max_model_len": 4096, "enable_prefix_caching": False, "enforce_eager": True})
    assert after(line, "--max-model-len") == "4096"
    assert "--no-enable-prefix-caching" in line and "--enforce-eager" in line


def test_a_cpu_engine_is_eager_in_bfloat16_unless_told_otherwise() -> None:
    assert "--enforce-eager" in words() and after(words(), "--dtype") == "bfloat16"
    assert "--enforce-eager" not in words(on_cpu=False)
    assert after(words(engine_arguments={"dtype": "float32"}), "--dtype") == "float32"


def test_a_model_without_adapters_starts_without_lora() -> None:
    assert "--enable-lora" not in words(max_loras=0)
    line = words(max_loras=3)
    assert (after(line, "--max-loras"), after(line, "--max-cpu-loras"), after(line, "--max-lora-rank")) == (
        "3",
        "3",
        "16",
    )


def test_the_engines_environment_holds_its_key_and_nothing_that_speaks_for_the_platform() -> None:
    base = {"PATH": "/bin", "HELIU_ATTEMPT_TOKEN": "ha_secret", "HELIU_HOME": "/h", "VLLM_CPU_KVCACHE_SPACE": "4"}
    made = environment(base, key="the-key", cache=Path("/c"), tag="heliu-1-2", on_cpu=True)
    assert made["VLLM_API_KEY"] == "the-key" and made["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    assert "ha_secret" not in made.values() and "HELIU_HOME" not in made
    assert made["VLLM_CPU_KVCACHE_SPACE"] == "4", "the node's own choice"
    assert environment({}, key="k", cache=Path("/c"), tag="t", on_cpu=True)["VLLM_CPU_KVCACHE_SPACE"] == "1"


@pytest.mark.parametrize(("installed", "cpu"), [("vllm_cpu", True), ("vllm", False)])
def test_the_installed_build_of_vllm_decides_whether_it_computes_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: str, cpu: bool
) -> None:
    record = tmp_path / f"{installed}-0.32.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {installed.replace('_', '-')}\nVersion: 0.32.0\n")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert on_cpu() is cpu


def test_the_engine_tells_what_its_cache_holds_where_it_has_one() -> None:
    events = json.loads(after(words(engine_arguments={}), "--kv-events-config"))
    assert events["endpoint"] == "ipc:///tmp/heliu-1-2/cache-events"
    assert events["enable_kv_cache_events"] is True
    assert events["buffer_steps"] == 1
    assert "--kv-events-config" not in words(engine_arguments={"enable_prefix_caching": False})
