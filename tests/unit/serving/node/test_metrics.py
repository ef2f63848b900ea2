import pytest

from serving.node.metrics import parse

PAGE = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:prompt_tokens_total{engine="0",model_name="m"} 1.2e+03
vllm:prompt_tokens_total{engine="1",model_name="m"} 34.0
vllm:prompt_tokens_created{engine="0",model_name="m"} 1.7e+09
vllm:generation_tokens_total{engine="0",model_name="m"} 56.0
vllm:lora_requests_info{max_lora="2",running_lora_adapters="adp_1",waiting_lora_adapters=""} 1.7e+09
"""


def test_counters_are_summed_over_the_engines_labels() -> None:
    reading = parse(PAGE)
    assert (reading.prompt_tokens, reading.generation_tokens) == (1234, 56)
    assert (reading.running, reading.waiting, reading.kv_cache_usage_ppm) == (2, 1, 250_000)
    assert not reading.is_idle


def test_a_page_without_the_counters_is_refused() -> None:
    with pytest.raises(ValueError, match="generation_tokens_total"):
        parse(PAGE.replace("vllm:generation_tokens_total", "vllm:other"))


def test_an_engine_without_requests_is_idle() -> None:
    assert parse(PAGE.replace("} 2.0", "} 0.0").replace("} 1.0", "} 0.0")).is_idle
