import json
import logging
import sys
from collections.abc import Iterator

import pytest

from kit.telemetry import JsonFormatter, configure_logging


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:], root.level = handlers, level


def record(**extra: object) -> logging.LogRecord:
    made = logging.LogRecord("quotas.ledger", logging.WARNING, __file__, 1, "held %d", (5,), None)
    vars(made).update(extra)
    return made


def test_a_record_is_one_line_of_json_with_its_extras() -> None:
    line = JsonFormatter("api").format(record(firm="firm_1", note="two\nlines"))
    assert "\n" not in line
    read = json.loads(line)
    assert read["message"] == "held 5"
    assert (read["level"], read["process"], read["logger"]) == ("warning", "api", "quotas.ledger")
    assert (read["firm"], read["note"]) == ("firm_1", "two\nlines")
    assert read["at"].endswith("+00:00")


def test_an_exception_stays_inside_its_line() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        made = record()
        made.exc_info = sys.exc_info()
    line = JsonFormatter("api").format(made)
    assert "\n" not in line
    assert "ValueError: broken" in json.loads(line)["exception"]


def test_logs_go_to_standard_error_and_library_chatter_stays_out(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("gateway", level="INFO")
    logging.getLogger("serving.gateway").info("ready")
    logging.getLogger("httpx").info("GET /with?secret=1")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [json.loads(line)["message"] for line in captured.err.splitlines()] == ["ready"]
    assert root_logger.level == logging.INFO
