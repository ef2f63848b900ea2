"""`make fuzz`: atheris looks for inputs to the gateway's HTTP and JSON by what they reach in its code; none may leak.

`python -m tests.fuzz.protocol -runs=1000000`; arguments are libFuzzer's. What it finds it leaves as a file that can be
given back as an argument. It also fails when memory grows after the first tenth of the runs.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import asyncio
import json
import os
import resource
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["serving.gateway"]):
    from serving.gateway.endpoints import ENDPOINTS, Asked, decode
    from serving.gateway.http_messages import HttpLimits
    from serving.gateway.http_server import HttpServer
    from serving.gateway.openai_errors import Refusal
from tests.unit.serving.gateway.test_fuzz import Answers, Echo, send

LEAK_MIB_MAX = 64
"""What libFuzzer's own corpus and tables may add."""
RUNS = 1_000_000
LIMITS = HttpLimits(head_bytes_max=2_000, target_bytes_max=200, body_bytes_max=1_000)
PATHS = sorted(ENDPOINTS)
SEEDS = (
    b"\x00POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}",
    b"\x01POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    b"\x02GET / HTTP/1.0\r\nExpect: 100-continue\r\nConnection: keep-alive\r\n\r\n",
    b'\x80{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"x"}]}],"stream":true,"n":2}',
    b'\x81{"model":"m","prompt":["a","b"],"max_tokens":null,"stream_options":{"include_usage":true}}',
)


def resident_mib() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


class Fuzzer:
    """Judges one input after another."""

    def __init__(self, runs: int) -> None:
        self.server = HttpServer(Echo(), LIMITS)
        self.runs = runs
        self.seen = 0
        self.before = 0.0

    def one(self, data: bytes) -> None:
        """The first byte says what the rest is sent to."""
        self.seen += 1
        if self.seen == self.runs // 10:
            self.before = resident_mib()
        if self.seen == self.runs:
            grown = resident_mib() - self.before
            print(f"memory grew by {grown:.1f} MiB over {self.runs - self.runs // 10:,} inputs", flush=True)
            assert grown < LEAK_MIB_MAX, "the gateway keeps something of inputs that are over"
        if data[:1] < b"\x80":
            self.http(data[1:], cut=data[0] if data else 0)
        else:
            self.json(PATHS[data[0] % len(PATHS)], data[1:])

    def http(self, data: bytes, *, cut: int) -> None:
        whole, requests = send(self.server, [data])
        parts, alike = send(self.server, [data[:cut], data[cut:]])
        assert [r.body for r in requests] == [r.body for r in alike], "how the bytes were cut changes nothing"
        assert whole.over == parts.over
        if b"HEAD" not in data:
            statuses = [status for status in Answers().read(whole.written) if status != 100]
            assert statuses.count(200) == len(requests)
            assert all(status in (200, 400, 413, 414, 417, 431, 501, 503, 505) for status in statuses)

    @staticmethod
    def json(path: bytes, data: bytes) -> None:
        asked = decode(ENDPOINTS[path], data, b"application/json")
        if isinstance(asked, Refusal):
            assert asked.status in (400, 415)
        else:
            assert isinstance(asked, Asked)
            json.loads(asked.for_engine(engine_model="e", salt="s", output_tokens_max=5))


async def main() -> None:
    """The server wants a running loop; libFuzzer ends the process itself."""
    given = [word for word in sys.argv[1:] if word.startswith("-runs=")]
    runs = int(given[-1].removeprefix("-runs=")) if given else RUNS
    corpus = Path(tempfile.mkdtemp(prefix="heliu-fuzz-"))
    for number, seed in enumerate(SEEDS):
        (corpus / str(number)).write_bytes(seed)
    fuzzer = Fuzzer(runs)
    words = [sys.argv[0], str(corpus), *sys.argv[1:], f"-runs={runs}", "-max_len=4096", "-timeout=10"]
    atheris.Setup(words, fuzzer.one)
    atheris.Fuzz()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    asyncio.run(main())
