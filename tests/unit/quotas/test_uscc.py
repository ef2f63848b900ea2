"""The USCC check against codes that were worked out by hand and codes that were really issued."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.errors import InvalidInput
from quotas.uscc import ALPHABET, LENGTH, check_character, check_uscc

bodies = st.text(ALPHABET, min_size=LENGTH - 1, max_size=LENGTH - 1)


@pytest.mark.parametrize("issued", ["91350100M000100Y43", "91110000802100433B", "914403001922038216"])
def test_codes_that_were_issued_pass(issued: str) -> None:
    assert check_uscc(issued).is_certain


def test_a_sum_of_zero_gives_the_character_zero() -> None:
    assert check_character("0" * 17) == "0"  # the common snippet looks up position 31 here and breaks


def test_weights_are_powers_of_three_modulo_31() -> None:
    assert check_character("1" + "0" * 16) == ALPHABET[31 - 1]
    assert check_character("0" * 16 + "1") == ALPHABET[31 - pow(3, 16, 31)]


@given(bodies)
def test_exactly_one_of_the_31_characters_completes_a_code(body: str) -> None:
    certain = [last for last in ALPHABET if check_uscc(body + last).is_certain]
    assert certain == [check_character(body)]


@given(bodies, st.integers(0, LENGTH - 2), st.sampled_from(ALPHABET))
def test_one_wrong_character_is_always_noticed(body: str, place: int, typed: str) -> None:
    code = body + check_character(body)
    wrong = code[:place] + typed + code[place + 1 :]
    assert check_uscc(wrong).is_certain == (wrong == code)


def test_a_doubt_names_both_characters() -> None:
    doubt = check_uscc("91350100M000100Y44").doubt
    assert doubt is not None
    assert "is 4" in doubt and "gives 3" in doubt


@pytest.mark.parametrize("typed", ["  91350100m000100y43 ", "91350100M000100Y43\n"])
def test_case_and_outer_spaces_do_not_matter(typed: str) -> None:
    assert check_uscc(typed).uscc == "91350100M000100Y43"


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        ("", "uscc_length"),
        ("91350100M000100Y4", "uscc_length"),
        ("91350100M000100Y433", "uscc_length"),
        ("9135 0100M000100Y4", "uscc_alphabet"),
        ("91350100M000100YO3", "uscc_alphabet"),
        ("９1350100M000100Y43", "uscc_alphabet"),
    ],
)
def test_what_cannot_be_a_code_is_refused(typed: str, code: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        check_uscc(typed)
    assert refusal.value.code == code
