"""The demo's exit code is the truth: one broken promise, and it is not 0."""

import io

import pytest
from rich.console import Console

from heliu.client.transport import ApiError
from heliu.demo.stage import Broken, Stage


@pytest.fixture
def stage() -> Stage:
    return Stage(Console(file=io.StringIO(), width=100))


def test_a_story_whose_promises_all_held_ends_with_0(stage: Stage) -> None:
    with stage.step(1, "One"):
        stage.check(True, "the sum is right")
        stage.must([1], "there is something")
    assert (stage.ending(), stage.held) == (0, 2)


def test_one_broken_promise_is_enough_for_exit_code_1_and_the_story_goes_on(stage: Stage) -> None:
    with stage.step(1, "One"):
        stage.check(None, "the sum is right")
        stage.check(True, "the rest holds")
    assert (stage.ending(), stage.failed) == (1, ["the sum is right"])


def test_a_promise_that_the_rest_needs_ends_the_story(stage: Stage) -> None:
    with pytest.raises(Broken, match="the platform is up"), stage.step(1, "One"):
        stage.must(False, "the platform is up")
    assert stage.ending() == 1


def test_a_refusal_in_a_step_is_counted_and_ends_the_story(stage: Stage) -> None:
    with pytest.raises(Broken), stage.step(3, "Prices"):
        raise ApiError(402, "no_money", "the balance does not cover it")
    assert stage.ending() == 1
    assert "no_money" in stage.failed[0]


@pytest.mark.parametrize("error", [ValueError("not enough values to unpack"), OSError(28, "No space left on device")])
def test_what_nobody_foresaw_is_counted_with_its_kind_and_ends_the_story(stage: Stage, error: Exception) -> None:
    with pytest.raises(Broken), stage.step(6, "The model is served"):
        raise error
    assert stage.ending() == 1
    assert stage.failed == [f"6. The model is served: {type(error).__name__}: {error}"]
