"""kill -9, one part after another, then everything: each job finishes once, is charged once, and the books hold.

Two training jobs carry all the kills: one trains on through what does not concern it, the other is thrown out again
and again.
"""

import json
import signal
from contextlib import suppress
from datetime import datetime
from zoneinfo import ZoneInfo

import httpx
import psutil
import pytest
from openai import OpenAIError

from heliu.client import ApiError, Unreachable
from heliu.client.job_views import JobDetail
from heliu.client.money_views import StatementLine
from heliu.demo.act4_quote import LORE
from heliu.demo.act6_model import POOL
from heliu.demo.act7_openai import STREAMED
from heliu.demo.story import BASE_MODEL
from heliu.supervisor import records
from heliu.supervisor.records import RunFolder
from kit.postgres import embedded_pid
from tests.e2e.platform.conftest import Telling
from tests.support.until import until

pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.timeout(480, func_only=True)]

RUNNER = "scheduler.node.runner"
ENGINE = "serving.node.engine"


class Faults:
    """What these tests do to the platform, and what they ask it afterwards."""

    def __init__(self, telling: Telling) -> None:
        self.telling = telling
        self.platform = telling.platform
        self.jobs = telling.story.developer.jobs

    def train(self, name: str, steps: int) -> str:
        """Submit a fine-tune; returns its id."""
        upload = self.telling.story.developer.files.upload(LORE)
        params = {"base_model": BASE_MODEL, "adapter_name": name, "steps": steps}
        return self.jobs.submit("lora-finetune", pools=[POOL], inputs={"data.jsonl": upload.id}, params=params).id

    def seen(self, job_id: str) -> JobDetail | None:
        """The job, or None while the platform cannot be asked."""
        try:
            return self.jobs.get(job_id)
        except (ApiError, Unreachable):
            return None

    def until_trains(self, job_id: str, attempts: int, step: int = 2, seconds: float = 200) -> JobDetail:
        """The job once its attempt of this number has made some steps."""

        def look() -> JobDetail | None:
            job = self.seen(job_id)
            if job is None or len(job.attempts) < attempts or job.state != "running":
                assert job is None or not job.over, f"it ended early: {job}"
                return None
            return job if job.progress and job.progress["step"] >= step else None

        return until(look, seconds=seconds, what=f"attempt {attempts} of {job_id} trains")

    def until_over(self, job_id: str, seconds: float = 300) -> JobDetail:
        """The job once it is over."""

        def look() -> JobDetail | None:
            job = self.seen(job_id)
            return job if job and job.over else None

        return until(look, seconds=seconds, what=f"the end of {job_id}")

    def kill_service(self, name: str) -> None:
        """kill -9, then wait until it was started again and is ready."""
        restarts = self.platform.service(name).restarts
        self.platform.kill(name)

        def again() -> bool:
            record = self.platform.service(name)
            return record.restarts > restarts and record.ready and record.process.find() is not None

        until(again, seconds=90, what=f"the restart of {name}")

    def until_answers(self, seconds: float = 240) -> None:
        """Wait until the adapter answers through the gateway again."""

        def look() -> bool:
            try:
                return "Qiao Bailu" in self.telling.ask(STREAMED, model=self.telling.adapter)
            except OpenAIError:
                return False

        until(look, seconds=seconds, what="an answer of the adapter")

    def paid(self, job_id: str) -> list[StatementLine]:
        """The lines of the statement that this job has to be paid for; lines of nothing say what was lost."""
        statement = self.telling.story.owner.money.statement(_period())
        return [line for line in statement.lines if line.subject == job_id and line.amount_micro_yuan > 0]

    def books_hold(self, *finished: str) -> None:
        """The ledger check passes, and what is on hold is for what lives: one hold each, and none for what is over."""
        report = self.telling.story.administrator.money.check_ledger()
        assert report.ok, report.findings
        compute = [hold.subject for hold in report.open_holds if hold.kind == "compute"]
        assert not set(finished) & set(compute), report.open_holds
        with suppress(AssertionError):  # a workload that was thrown out a moment ago holds again once it is placed
            until(lambda: self._on_hold() == self._living(), seconds=60, what="one hold each for what lives")
        assert self._on_hold() == self._living()

    def _on_hold(self) -> tuple[list[str], set[str]]:
        """Workloads with a compute hold, as often as they have one; and who has allowances but is not the gateway."""
        holds = self.telling.story.administrator.money.check_ledger().open_holds
        compute = sorted(hold.subject for hold in holds if hold.kind == "compute")
        gateway = (self.platform.home / "gateway" / "name").read_text().strip()
        return compute, {hold.subject for hold in holds if hold.kind != "compute"} - {gateway}

    def _living(self) -> tuple[list[str], set[str]]:
        """Workloads of live replicas and jobs that are not over; nobody else may have an allowance."""
        replicas = self.telling.story.administrator.deployments.replicas()
        jobs = [job.id for job in self.jobs.list() if not job.over]
        return sorted([*jobs, *(str(one.workload_id) for one in replicas)]), set()


def _period() -> str:
    return datetime.now(ZoneInfo("Asia/Shanghai")).strftime("%Y-%m")


@pytest.fixture(scope="module")
def faults(telling: Telling) -> Faults:
    return Faults(telling)


def test_a_job_trains_on_while_controller_and_database_are_killed(faults: Faults) -> None:
    job_id = faults.train("lore-through-kills", steps=30)
    faults.until_trains(job_id, attempts=1)
    faults.kill_service("controller")
    postmaster = embedded_pid(faults.platform.home / "postgres")
    assert postmaster is not None
    psutil.Process(postmaster).send_signal(signal.SIGKILL)
    folder = faults.platform.home / "postgres"
    until(lambda: embedded_pid(folder) not in (None, postmaster), seconds=60, what="a new server")
    job = faults.until_over(job_id)
    assert job.state == "succeeded", job
    assert [attempt.cause for attempt in job.attempts] == ["done"], "it was continued, not begun again"
    assert len(faults.paid(job_id)) == 1
    faults.books_hold(job_id)


def test_a_gateway_killed_in_the_middle_of_a_stream_bills_what_it_had_logged(faults: Faults) -> None:
    before = faults.telling.story.administrator.deployments.engines()[-1]
    with pytest.raises(httpx.TransportError):
        _stream_until_the_gateway_dies(faults)
    faults.until_answers(seconds=60)

    def billed() -> bool:
        line = faults.telling.story.administrator.deployments.engines()[-1]
        assert line.verdict != "overbilled", line
        return line.billed_generation - before.billed_generation > 20 and line.verdict != "open"

    until(billed, seconds=60, what="the bill of the broken stream")
    faults.books_hold()


def test_a_killed_vllm_comes_back_with_its_adapters(faults: Faults) -> None:
    engines = faults.platform.below_ray(ENGINE)
    assert engines, "no vLLM runs below Ray"
    for engine in engines:
        engine.send_signal(signal.SIGKILL)
    faults.until_answers()
    faults.books_hold()


def test_a_job_thrown_out_by_every_kill_finishes_once_after_all(faults: Faults) -> None:
    job_id = faults.train("lore-after-all", steps=16)
    faults.until_trains(job_id, attempts=1)
    for runner in _runner_of(faults, job_id):
        runner.send_signal(signal.SIGKILL)
    faults.until_trains(job_id, attempts=2)
    faults.telling.assert_nothing_secret_was_written()  # Ray begins new logs when it starts again
    faults.kill_service("ray-head")
    faults.until_trains(job_id, attempts=3)
    faults.telling.assert_nothing_secret_was_written()
    _kill_everything(faults)
    faults.platform.start()
    job = faults.until_over(job_id)
    assert job.state == "succeeded", job
    causes = [attempt.cause for attempt in sorted(job.attempts, key=lambda one: one.id)]
    assert causes[-1] == "done", causes
    assert causes.count("done") == 1, causes
    assert len(causes) >= 4, causes
    paid = faults.paid(job_id)  # the last attempt, and of those before what their checkpoints kept
    assert 1 <= len(paid) <= len(job.attempts), paid
    assert sum(line.amount_micro_yuan for line in paid) == job.charged_micro_yuan, paid
    ran = sum(attempt.ran_ms or 0 for attempt in job.attempts)
    assert 0 < sum(line.quantities["gpu_ms"] for line in paid) <= ran, "what no checkpoint kept is free"
    faults.books_hold(job_id)


def test_after_everything_the_replica_is_back_and_nothing_was_billed_twice(faults: Faults) -> None:
    faults.until_answers()
    lines = faults.telling.story.administrator.deployments.engines()
    assert "overbilled" not in [line.verdict for line in lines]
    faults.books_hold()


def test_after_all_kills_no_log_holds_a_secret_a_prompt_or_an_output(faults: Faults) -> None:
    faults.telling.assert_nothing_secret_was_written()


def test_down_leaves_nothing_running_and_up_finds_the_state(faults: Faults) -> None:
    instance = RunFolder(faults.platform.home).instance()
    assert instance is not None
    faults.platform.stop()
    left = [ref for ref in records.marked(instance.id) if ref.find() is not None]
    assert left == [], [ref.find() for ref in left]
    status = faults.platform.heliu("status", "--json")
    assert (status.returncode, json.loads(status.stdout)["state"]) == (3, "down")
    faults.platform.start()
    assert faults.telling.story.owner.sessions.me().firm.id == faults.telling.story.firm_id


def _stream_until_the_gateway_dies(faults: Faults) -> None:
    headers = {"Authorization": f"Bearer {faults.telling.story.cast.key}"}
    body = {"model": BASE_MODEL, "messages": [{"role": "user", "content": "Count."}], "max_tokens": 300}
    body |= {"stream": True, "ignore_eos": True}
    url = f"{faults.platform.settings.gateway_url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as answer:
        pieces = (line for line in answer.iter_lines() if line.startswith("data: {"))
        for number, _ in enumerate(pieces, start=1):
            if number == 30:
                faults.platform.kill("gateway")


def _runner_of(faults: Faults, job_id: str) -> list[psutil.Process]:
    """The runner whose environment names the job's attempt."""
    attempt = faults.jobs.get(job_id).attempts[0].id
    runners = [one for one in faults.platform.below_ray(RUNNER) if one.environ().get("HELIU_ATTEMPT_ID") == attempt]
    assert runners, "the job's runner was not found"
    return runners


def _kill_everything(faults: Faults) -> None:
    """kill -9 of every process of the platform at one moment: supervisor, services, Ray, vLLM, PostgreSQL."""
    for process in faults.platform.processes():
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
