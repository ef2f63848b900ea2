from scheduler.node.logs import LogBuffer, printable


def test_lines_are_numbered_without_gaps_and_repeated_until_acknowledged() -> None:
    logs = LogBuffer()
    for text in ("a", "b", "c"):
        logs.append(text)
    assert [(line.seq, line.text) for line in logs.batch(2)] == [(1, "a"), (2, "b")]
    assert [line.seq for line in logs.batch(2)] == [1, 2], "not acknowledged: sent again"
    logs.acknowledge(2)
    assert [(line.seq, line.text) for line in logs.batch(10)] == [(3, "c")]
    logs.acknowledge(3)
    assert logs.is_empty


def test_a_long_line_becomes_several() -> None:
    logs = LogBuffer()
    logs.append("x" * 9_000)
    assert [len(line.text) for line in logs.batch(10)] == [4_000, 4_000, 1_000]


def test_a_full_buffer_counts_what_it_could_not_keep() -> None:
    logs = LogBuffer(pending_chars_max=100)
    for number in range(30):
        logs.append(f"line {number:05d}")
    kept = logs.batch(100)
    assert [line.text for line in kept] == [f"line {number:05d}" for number in range(10)]
    logs.acknowledge(kept[-1].seq)
    logs.append("later")
    assert [line.text for line in logs.batch(100)] == ["(20 lines were dropped here)", "later"]


def test_a_log_that_reaches_its_limit_says_so_once() -> None:
    logs = LogBuffer(total_chars_max=20)
    for number in range(10):
        logs.append(f"line {number:05d}")
    texts = [line.text for line in logs.batch(100)]
    assert texts[:2] == ["line 00000", "line 00001"]
    assert len(texts) == 3 and "reached its limit" in texts[2]


def test_batches_are_bounded_in_size_but_never_empty() -> None:
    logs = LogBuffer()
    for _ in range(200):
        logs.append("x" * 4_000)
    assert 1 <= len(logs.batch(500)) <= 64


def test_control_characters_do_not_reach_terminal_or_database() -> None:
    assert printable("\x1b[31mred\x1b[0m\ttab") == "red\ttab"
    assert printable("nul\0byte") == "nul\ufffdbyte"
    assert printable("50%\r") == "50%"
    assert printable("灯 lantern") == "灯 lantern"
