"""What the client repeats and what it never does, against a real server on loopback."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from heliu import AwaitsApproval, Client
from heliu.client.transport import ApiError, Transport, Unreachable, new_idempotency_key

BUSY = (503, {"code": "unavailable", "detail": "the database does not answer", "hint": "wait", "retryable": True})
REFUSED = (409, {"code": "no_quota", "detail": "the firm has no quota", "hint": "ask for one", "retryable": False})
GOOD = (200, {"id": "job_1"})
CUT = (0, {})
PROPOSAL = {
    "id": "prop_1",
    "action": "top_up",
    "firm_id": "firm_1",
    "amount_micro_yuan": 10**12,
    "proposed_by": "mem_1",
    "proposed_at": "2026-11-02T02:00:00Z",
}


class Script:
    """Answers in order; remembers what was asked."""

    def __init__(self, *answers: tuple[int, dict[str, Any]], headers: dict[str, str] | None = None) -> None:
        self.answers = list(answers)
        self.headers = headers or {}
        self.asked: list[dict[str, str]] = []


@pytest.fixture
def server() -> Iterator[tuple[Script, Transport]]:
    script = Script()

    class Scripted(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            script.asked.append(
                {name.lower(): value for name, value in self.headers.items()} | {"method": self.command}
            )
            status, body = script.answers.pop(0)
            if not status:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            content = json.dumps(body).encode()
            self.send_response(status)
            for name, value in script.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = answer

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    transport = Transport(f"http://127.0.0.1:{httpd.server_port}", "hl_key_secret", retry_seconds=5)
    yield script, transport
    transport.close()
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_reading_is_repeated_while_the_platform_says_that_it_may_help(server: tuple[Script, Transport]) -> None:
    script, transport = server
    script.answers = [BUSY, CUT, GOOD]
    assert transport.json("GET", "/api/jobs/job_1") == {"id": "job_1"}
    assert len(script.asked) == 3
    assert {seen["authorization"] for seen in script.asked} == {"Bearer hl_key_secret"}


def test_writing_with_an_idempotency_key_is_repeated_under_the_same_key(server: tuple[Script, Transport]) -> None:
    script, transport = server
    script.answers = [CUT, BUSY, GOOD]
    key = new_idempotency_key()
    assert transport.json("POST", "/api/jobs", body={"recipe": "script"}, idempotency_key=key) == {"id": "job_1"}
    assert [seen["idempotency-key"] for seen in script.asked] == [key, key, key]


def test_writing_without_a_key_is_never_sent_twice(server: tuple[Script, Transport]) -> None:
    script, transport = server
    script.answers = [CUT, GOOD]
    with pytest.raises(Unreachable):
        transport.json("POST", "/api/firms", body={})
    assert len(script.asked) == 1


def test_a_refusal_by_a_rule_is_not_repeated_and_keeps_its_code_and_hint(server: tuple[Script, Transport]) -> None:
    script, transport = server
    script.answers = [REFUSED, GOOD]
    with pytest.raises(ApiError, match="the firm has no quota") as caught:
        transport.json("GET", "/api/jobs")
    assert (caught.value.status, caught.value.code, caught.value.hint) == (409, "no_quota", "ask for one")
    assert len(script.asked) == 1


def test_the_time_the_platform_asks_for_is_waited(server: tuple[Script, Transport]) -> None:
    script, transport = server
    script.headers = {"Retry-After": "1"}
    script.answers = [(429, BUSY[1] | {"code": "rate_limited"}), GOOD]
    began = time.monotonic()
    assert transport.json("GET", "/api/jobs") == {"id": "job_1"}
    assert time.monotonic() - began >= 1


def test_an_act_that_waits_for_a_second_administrator_is_not_taken_for_done(server: tuple[Script, Transport]) -> None:
    script, transport = server
    waiting = PROPOSAL | {"state": "open"}
    script.answers = [(202, waiting), (200, waiting | {"state": "approved", "result_id": "top_1"})]
    client = Client(transport=transport)
    with pytest.raises(AwaitsApproval, match=r"top_up waits .* heliu approval approve prop_1") as caught:
        client.money.top_up("firm_1", 10**12, evidence="slip 7")
    assert caught.value.proposal.amount_micro_yuan == 10**12
    assert client.approvals.approve("prop_1").result_id == "top_1"


def test_what_was_only_taken_in_is_no_proposal(server: tuple[Script, Transport]) -> None:
    script, transport = server
    script.answers = [(202, {"id": "delivery_1"})]
    assert transport.json("POST", "/api/deliveries/delivery_1/replay") == {"id": "delivery_1"}


def test_nobody_there_is_unreachable_and_says_where() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(Unreachable, match=url):
        Transport(url, None, retry_seconds=0.1).json("GET", "/healthz")
