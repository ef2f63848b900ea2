"""Usage of streams, and what a log says after a kill."""

from serving.metering import Closed, Counted, Opened, Outcome, Record, RunningUsage, Subject, Tokens, follow


def subject(id: str) -> Subject:
    return Subject(id, "key_1", "firm_1", "prj_1", "lore", "base", "lse_1", False, "eng_1", 1_000)


def test_running_counts_of_one_choice_become_the_total() -> None:
    usage = RunningUsage()
    for output in (0, 1, 2, 5):
        usage.see(0, input=9, output=output)
    assert usage.tokens == Tokens(9, 0, 5)


def test_counts_of_several_choices_add_up_and_their_prompt_counts_once() -> None:
    usage = RunningUsage(choices=2)
    usage.see(0, input=9, output=3)
    usage.see(1, input=9, output=4)
    assert usage.tokens == Tokens(9, 0, 7)


def test_several_prompts_add_up() -> None:
    usage = RunningUsage(choices=1)
    usage.see(0, input=9, output=3)
    usage.see(1, input=5, output=4)
    assert usage.tokens == Tokens(14, 0, 7)


def test_a_count_never_goes_back_and_the_engines_total_is_final() -> None:
    usage = RunningUsage()
    usage.see(0, input=9, output=5)
    usage.see(0, input=9, output=4)
    assert usage.tokens.output == 5
    usage.close(Tokens(9, 4, 6))
    assert usage.tokens == Tokens(9, 4, 6)


def test_output_without_counts_is_at_least_one_token_a_chunk() -> None:
    usage = RunningUsage()
    for _ in range(3):
        usage.bump()
    assert usage.tokens.output == 3


def test_of_a_log_that_was_cut_off_the_open_requests_remain_at_their_last_count() -> None:
    log: list[Record] = [
        Opened(subject("a"), Tokens(9, 0, 1)),
        Opened(subject("b"), Tokens(5, 0, 1)),
        Counted("a", Tokens(9, 0, 7)),
        Closed(subject("b"), Tokens(5, 2, 3), Outcome.COMPLETED),
        Closed(subject("c"), Tokens(1, 0, 1), Outcome.CLIENT_LEFT),
        Counted("nobody", Tokens(1, 0, 1)),
        Counted("b", Tokens(5, 0, 9)),
    ]
    for at in range(len(log)):  # wherever one segment ends and the next begins
        cut: dict[str, Opened] = {}
        assert follow(cut, log[:at]) + follow(cut, log[at:]) == 2
        assert cut == {"a": Opened(subject("a"), Tokens(9, 0, 7))}
