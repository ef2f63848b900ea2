import re
import subprocess
import sys

from kit import auth
from tests.support.sources import ROOT


def test_secrets_are_random_and_long_enough_to_be_stored_as_a_plain_hash() -> None:
    made = {auth.new_secret() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"[\w-]{43}", secret) for secret in made), "256 bits in URL-safe base 64"


def test_a_secret_is_recognised_by_its_hash_and_no_other_is() -> None:
    secret = auth.new_secret()
    stored = auth.hash_secret(secret)
    assert len(stored) == 32
    assert auth.same_secret(secret, stored)
    assert not auth.same_secret(secret + "x", stored)
    assert not auth.same_secret("", stored)


def test_a_password_is_kept_as_argon2id_with_a_salt_of_its_own() -> None:
    one, two = auth.hash_password("correct horse"), auth.hash_password("correct horse")
    assert one.startswith("$argon2id$")
    assert one != two
    assert auth.verify_password("correct horse", one)
    assert not auth.verify_password("Correct horse", one)


def test_outside_of_tests_a_password_costs_what_rfc_9106_recommends() -> None:
    look = "from kit import auth; print(auth.hash_password('correct horse'))"
    told = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert told.startswith("$argon2id$v=19$m=65536,t=3,p=4$")


def test_a_malformed_password_hash_matches_nothing() -> None:
    assert not auth.verify_password("anything", "not a hash")


def test_a_signature_holds_for_its_key_and_message_only() -> None:
    signature = auth.sign(b"key", "blob/1")
    assert auth.signature_holds(b"key", "blob/1", signature)
    assert not auth.signature_holds(b"key", "blob/2", signature)
    assert not auth.signature_holds(b"other", "blob/1", signature)
    assert not auth.signature_holds(b"key", "blob/1", signature[:-1] + "!")
