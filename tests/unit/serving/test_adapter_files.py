"""What of an adapter's files is accepted, rebuilt or refused."""

import io
import json
import pickle
import struct
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.adapter_files import BadAdapter, check, header_bytes
from tests.support.adapters import BASE, config_file, weights_file


def verdict(config: bytes, weights: bytes) -> str:
    """ "ok", or the code of the refusal."""
    try:
        check(config, weights, weights_bytes=len(weights), base_model=BASE)
    except BadAdapter as error:
        return error.code
    return "ok"


def test_a_plain_lora_is_accepted_and_its_config_is_rebuilt() -> None:
    weights = weights_file(rank=8)
    files = check(config_file(rank=8), weights, weights_bytes=len(weights), base_model=BASE)
    assert files.rank == 8
    assert files.config["base_model_name_or_path"] == BASE
    assert files.config["target_modules"] == ["q_proj", "v_proj"]
    assert files.config["modules_to_save"] is None
    assert set(files.config) == {
        "peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "bias",
        "target_modules", "use_rslora", "use_dora", "modules_to_save", "inference_mode",
    }  # fmt: skip


def test_what_a_loader_would_import_never_survives() -> None:
    weights = weights_file()
    config = config_file(auto_mapping={"base_model_class": "os", "parent_library": "subprocess"}, revision="x")
    files = check(config, weights, weights_bytes=len(weights), base_model=BASE)
    assert "auto_mapping" not in files.config
    assert "subprocess" not in json.dumps(dict(files.config))


def test_a_folder_that_ends_in_the_base_models_name_is_that_model() -> None:
    assert verdict(config_file(base_model_name_or_path=f"/srv/models/{BASE}/"), weights_file()) == "ok"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"peft_type": "IA3"}, "adapter_not_lora"),
        ({"base_model_name_or_path": "another-model"}, "adapter_wrong_base"),
        ({"base_model_name_or_path": None}, "adapter_wrong_base"),
        ({"r": 17}, "adapter_rank"),
        ({"r": 0}, "adapter_rank"),
        ({"r": True}, "adapter_rank"),
        ({"r": "8"}, "adapter_rank"),
        ({"lora_alpha": 0}, "adapter_config"),
        ({"lora_alpha": float("nan")}, "adapter_config"),
        ({"target_modules": ".*"}, "adapter_config"),
        ({"target_modules": ["q_proj|.*"]}, "adapter_config"),
        ({"target_modules": []}, "adapter_config"),
        ({"target_modules": [["q_proj"]]}, "adapter_config"),
        ({"bias": "all"}, "adapter_config"),
        ({"use_dora": True}, "adapter_config"),
        ({"modules_to_save": ["lm_head"]}, "adapter_config"),
        ({"rank_pattern": {"q_proj": 64}}, "adapter_config"),
        ({"chat_template": "{{ x }}"}, "adapter_config"),
        ({"anything_else": 1}, "adapter_config"),
    ],
)
def test_a_config_that_cannot_be_served_is_refused_by_name(change: Mapping[str, Any], code: str) -> None:
    assert verdict(config_file(**change), weights_file()) == code


@pytest.mark.parametrize("raw", [b"", b"[]", b"null", b"\xff\xfe", b"{", b'{"r": 8, "r": 8}', b"[" * 100_000])
def test_a_config_that_is_no_json_object_is_refused(raw: bytes) -> None:
    assert verdict(raw, weights_file()) in {"adapter_not_json", "adapter_too_large"}


def test_a_pickle_is_not_safetensors() -> None:
    buffer = io.BytesIO()
    pickle.dump({"weights": list(range(1000))}, buffer)
    assert verdict(config_file(), buffer.getvalue()) == "adapter_not_safetensors"
    zipped = b"PK\x03\x04" + bytes(10_000)
    assert verdict(config_file(), zipped) == "adapter_not_safetensors"


def _grown(weights: bytes) -> bytes:
    return weights + b"\x00" * 16


def _cut(weights: bytes) -> bytes:
    return weights[:-1]


def _with_header(change: Callable[[dict[str, Any]], None]) -> bytes:
    weights = weights_file()
    (length,) = struct.unpack("<Q", weights[:8])
    header = json.loads(weights[8 : 8 + length])
    change(header)
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + weights[8 + length :]


Q_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
Q_B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


def _rename(header: dict[str, Any], old: str, new: str) -> None:
    header[new] = header.pop(old)


@pytest.mark.parametrize(
    ("weights", "code"),
    [
        (_grown(weights_file()), "adapter_not_safetensors"),
        (_cut(weights_file()), "adapter_not_safetensors"),
        (b"\x00" * 7, "adapter_not_safetensors"),
        (struct.pack("<Q", 1 << 60) + b"{}", "adapter_not_safetensors"),
        (struct.pack("<Q", 2) + b"{}", "adapter_tensors"),
        (weights_file(rank=4), "adapter_rank"),
        (weights_file(modules=("k_proj",)), "adapter_tensors"),
        (weights_file(dtype="F64"), "adapter_tensors"),
        (_with_header(lambda h: h.pop(Q_A)), "adapter_tensors"),
        (_with_header(lambda h: _rename(h, Q_A, "lm_head.weight")), "adapter_tensors"),
        (_with_header(lambda h: _rename(h, Q_B, Q_A.replace("lora_A", "lora_A.default"))), "adapter_rank"),
        (_with_header(lambda h: h[Q_A].update(data_offsets=[0, 10**15])), "adapter_not_safetensors"),
        (_with_header(lambda h: h[Q_A].update(data_offsets=[-1, 4])), "adapter_not_safetensors"),
        (_with_header(lambda h: h[Q_A].update(shape=[8])), "adapter_not_safetensors"),
        (_with_header(lambda h: h[Q_A].update(extra=1)), "adapter_not_safetensors"),
        (_with_header(lambda h: h.update({Q_A: h[Q_B]})), "adapter_rank"),
    ],
)
def test_weights_that_are_not_exactly_this_lora_are_refused(weights: bytes, code: str) -> None:
    assert verdict(config_file(), weights) == code


@given(st.binary(max_size=400))
def test_no_bytes_whatever_break_the_checker(raw: bytes) -> None:
    assert verdict(raw, raw) != "ok"
    assert verdict(config_file(), struct.pack("<Q", len(raw)) + raw) != "ok"


def test_a_header_longer_than_the_file_or_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(BadAdapter):
        header_bytes(struct.pack("<Q", 100), total_bytes=50)
    with pytest.raises(BadAdapter):
        header_bytes(struct.pack("<Q", 5 << 20), total_bytes=100 << 20)
    assert header_bytes(struct.pack("<Q", 100), total_bytes=10_000) == 100
