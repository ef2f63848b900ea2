"""The gateway's memory over many requests with many distinct prefixes, before two replicas: routing remembers them."""

import json
import tempfile
from pathlib import Path

import psutil

from benchmarks.gateway.load import PATH, Load, run_wrk
from benchmarks.gateway.targets import MODEL, Target, heliu, mock
from benchmarks.results import Row

PREFIXES = 100_000
PREFIX_BYTES = 2_400  # two blocks and a bit
CONNECTIONS = 64
SLICE_SECONDS = 15
MB_MAX = 300

_SCRIPT = """
local filler = string.rep("Over the river at Wuhan. ", %(repeats)d)
local n = %(seed)d
request = function()
  n = (n * 1103515245 + 12345) %% 2147483648
  local prefix = math.floor(n / 7) %% %(prefixes)d
  local body = '{"model":"%(model)s","max_tokens":1,"messages":[{"role":"system","content":"Context '
    .. prefix .. ': ' .. filler .. '"},{"role":"user","content":"Question ' .. n .. '"}]}'
  return wrk.format("POST", "%(path)s", {["content-type"] = "application/json", ["authorization"] = %(key)s}, body)
end
"""


def gateway_memory(requests: int) -> list[Row]:
    """Send requests until that many are answered; the most memory the gateway's process took, in MB of 10^6 bytes."""
    with mock() as one, mock() as two, heliu(one, two) as target:
        began = _resident_mb(target)
        done = failed = 0
        most = began
        while done < requests:
            load = _slice(target, seed=done + 1)
            done, failed = done + load.answered, failed + load.failed
            target.settle()
            most = max(most, _resident_mb(target))
    reference = f"{done:,} answers, {failed:,} refusals, {PREFIXES:,} prefixes; {began:.0f} MB before"
    return [Row("gateway_mb_1m", most, "MB", reference, target=f"≤ {MB_MAX}", met=most <= MB_MAX)]


def _slice(target: Target, *, seed: int) -> Load:
    values = {
        "repeats": PREFIX_BYTES // 25, "seed": seed, "prefixes": PREFIXES, "model": MODEL, "path": PATH,
        "key": json.dumps(target.headers["authorization"]),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "prefixes.lua"
        script.write_text(_SCRIPT % values)
        return run_wrk(target, CONNECTIONS, SLICE_SECONDS, script)


def _resident_mb(target: Target) -> float:
    return psutil.Process(target.pid).memory_info().rss / 1e6
