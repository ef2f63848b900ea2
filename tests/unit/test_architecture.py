"""The project's own rules, tested: sizes, words, and what no file may contain."""

import ast
import re

import pytest

from tests.support.sources import ROOT, definitions, name_of, python_files, texts

LINES_MAX = 400
FUNCTION_LINES_MAX = 60

EMPTY_WORDS = {"util", "utils", "helper", "helpers", "manager", "managers", "misc", "common", "handler2", "stuff"}
"""They say nothing about what a thing is for."""
FOREIGN_WORDS = {
    "tenant": "firm",
    "customer": "firm",
    "company": "firm",
    "organization": "firm",
    "organisation": "firm",
    "center": "centre",
    "wallet": "account",
    "reservation": "hold",
    "coupon": "voucher",
    "pricelist": "tariff",
}
"""Another word for something the vocabulary names already."""

REGISTRIES = tuple(
    "".join(parts)
    for parts in (
        ("pypi", ".org"),
        ("python", "hosted.org"),
        ("npm", "js.org"),
        ("npm", "js.com"),
        ("npm", "mirror.com"),
        ("download.", "pytorch.org"),
        ("mirrors.", "aliyun.com"),
        ("tuna.", "tsinghua.edu.cn"),
        ("deb.", "debian.org"),
        ("mirrors.", "ustc.edu.cn"),
    )
)
"""Where packages come from is the machine's business; written in pieces so that this file does not contain them."""

HOME_OF_SOMEBODY = re.compile(r"(?<![\w.])/(?:home|Users)/(?!somebody\b)[\w.-]+/|(?<![\w.])/root/(?!\.ssh\b)[\w.]")


def words_of(name: str) -> list[str]:
    """`JobHandler2` and `job_handler2` → job, handler2."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().strip("_").split("_")


def test_no_python_file_is_longer_than_a_table_of_contents_can_excuse() -> None:
    long = {name_of(path): len(path.read_text("utf-8").splitlines()) for path in python_files()}
    assert {name: lines for name, lines in long.items() if lines > LINES_MAX} == {}


def test_a_function_fits_a_screen() -> None:
    long = {
        f"{name_of(path)}:{node.lineno} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in python_files()
        if "migrations" not in path.parts  # a table is as long as its columns
        for node in definitions(path)
        if not isinstance(node, ast.ClassDef)
    }
    assert {name: lines for name, lines in long.items() if lines > FUNCTION_LINES_MAX} == {}


def test_names_say_what_a_thing_is_for_in_the_words_of_the_vocabulary() -> None:
    names = {name_of(path): path.stem for path in python_files()} | {
        f"{name_of(path)}:{node.lineno}": node.name for path in python_files() for node in definitions(path)
    }
    refused = EMPTY_WORDS | FOREIGN_WORDS.keys()
    assert {where: name for where, name in names.items() if refused.intersection(words_of(name))} == {}


@pytest.mark.parametrize(
    ("name", "words"), [("JobManager", ["job", "manager"]), ("_utils", ["utils"]), ("set_quota", ["set", "quota"])]
)
def test_names_are_taken_apart_whatever_their_case(name: str, words: list[str]) -> None:
    assert words_of(name) == words


def test_no_file_names_a_package_registry() -> None:
    named = {name_of(path): host for path, text in texts() for host in REGISTRIES if host in text}
    assert named == {}


def test_no_file_contains_a_path_of_the_machine_it_was_written_on() -> None:
    here = f"{ROOT}/"
    named = {
        f"{name_of(path)}:{number}": line.strip()
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if here in line or HOME_OF_SOMEBODY.search(line)
    }
    assert named == {}


@pytest.mark.parametrize("line", ["cd {}home/li/heliu", '"{}Users/wang/x"', "see {}root/.cache"])
def test_a_path_into_somebodys_home_is_recognised(line: str) -> None:
    assert HOME_OF_SOMEBODY.search(line.format("/"))


def test_tests_wait_for_conditions_and_never_just_sleep() -> None:
    sleeps = [
        f"{name_of(path)}:{node.lineno}"
        for path in python_files()
        if path.name.startswith(("test_", "conftest")) and not name_of(path).startswith("tests/support/")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("sleep") and ast.unparse(node) != "sleep(0)"
        if ast.unparse(node.args[0]) != "0"
    ]
    assert sleeps == []
