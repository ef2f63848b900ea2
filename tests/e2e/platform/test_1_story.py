"""The story that `make demo` tells, one test an act, on a real platform; each act checks its own promises."""

import re

import httpx
import pytest

from heliu.demo.act1_platform import platform_is_up
from heliu.demo.act2_firm import firm_is_let_in
from heliu.demo.act3_terms import terms_are_set
from heliu.demo.act4_quote import quote_then_submit
from heliu.demo.act5_training import training_runs
from heliu.demo.act6_model import model_is_served
from heliu.demo.act7_openai import sdk_works
from heliu.demo.act8_batch import batch_runs
from heliu.demo.act9_money import money_adds_up
from tests.e2e.platform.conftest import Telling
from tests.support.running_platform import RunningPlatform

pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.timeout(480, func_only=True)]


def test_act_1_everything_is_up_and_says_where(platform: RunningPlatform, telling: Telling) -> None:
    platform_is_up(platform.settings, telling.story.stage)
    telling.held()
    assert f"{platform.settings.api_url}/docs" in telling.printed.getvalue()


def test_the_documentation_needs_no_internet(platform: RunningPlatform) -> None:
    page = httpx.get(f"{platform.settings.api_url}/docs").text
    wanted = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert wanted
    assert all(address.startswith("/static/") for address in wanted), wanted
    for address in wanted:
        assert httpx.get(f"{platform.settings.api_url}{address}").status_code == 200
    paths = httpx.get(f"{platform.settings.api_url}/openapi.json").json()["paths"]
    assert {"/api/firms", "/api/quotes", "/api/jobs", "/api/deployments", "/api/statements"} <= set(paths)


def test_a_second_start_in_the_same_home_is_refused_with_what_to_do(platform: RunningPlatform) -> None:
    again = platform.heliu("up", "--detach")
    assert again.returncode == 1
    assert "already up" in again.stderr
    assert "heliu down" in again.stderr


def test_act_2_a_firm_is_let_in_and_a_doubtful_one_waits(telling: Telling) -> None:
    firm_is_let_in(telling.story)
    telling.held()


def test_act_3_quota_voucher_prices_and_catalogue_are_set(telling: Telling) -> None:
    terms_are_set(telling.story)
    telling.held()


def test_act_4_a_quote_is_given_and_two_submissions_are_one_job(telling: Telling) -> None:
    telling.tune = quote_then_submit(telling.story, steps=24)
    telling.held()


def test_act_5_a_real_fine_tune_runs_and_is_charged_what_it_used(telling: Telling) -> None:
    assert telling.tune is not None
    telling.jobs["lora-finetune"] = training_runs(telling.story, telling.tune)
    telling.held()


def test_act_6_the_adapter_is_the_firms_own_and_loaded_into_a_real_vllm(telling: Telling) -> None:
    model_is_served(telling.story, telling.adapter)
    telling.held()


def test_act_7_the_openai_sdk_reaches_base_and_adapter(telling: Telling) -> None:
    sdk_works(telling.story, telling.adapter)
    telling.held()


def test_act_8_a_csv_of_prompts_becomes_jsonl(telling: Telling) -> None:
    telling.jobs["text-batch"] = batch_runs(telling.story)
    telling.held()


def test_act_9_statement_centre_ledger_and_engines_agree(telling: Telling) -> None:
    money_adds_up(telling.story, {job.id: recipe for recipe, job in telling.jobs.items()})
    telling.held()


def test_the_command_shows_the_same_job_and_log(platform: RunningPlatform, telling: Telling) -> None:
    job = telling.jobs["lora-finetune"]
    assert telling.story.cast.key is not None
    shown = platform.heliu("job", "show", job.id, "--json", HELIU_TOKEN=telling.story.cast.key)
    assert shown.returncode == 0, shown.stderr
    assert f'"{job.id}"' in shown.stdout
    log = platform.heliu("job", "logs", "-f", job.id, HELIU_TOKEN=telling.story.cast.key)
    assert log.returncode == 0, log.stderr
    assert "loss" in log.stdout


def test_no_log_holds_a_secret_a_prompt_or_an_output(telling: Telling) -> None:
    telling.assert_nothing_secret_was_written()
