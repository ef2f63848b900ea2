import struct

import pytest

from scheduler.node.recipes.script.seccomp import program

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
X86, ARM = 0xC000003E, 0xC00000B7


def verdict(machine: str, number: int, *, architecture: int, first_argument: int = 0) -> int:
    """What the kernel would do: the filter, interpreted."""
    code = program(machine)
    assert code is not None
    steps = [struct.unpack_from("=HBBI", code, at) for at in range(0, len(code), 8)]
    data = {0: number, 4: architecture, 16: first_argument}
    accumulator, at = 0, 0
    while True:
        operation, if_true, if_false, value = steps[at]
        at += 1
        match operation:
            case 0x20:
                accumulator = data[value]
            case 0x15:
                at += if_true if accumulator == value else if_false
            case 0x35:
                at += if_true if accumulator >= value else if_false
            case 0x45:
                at += if_true if accumulator & value else if_false
            case _:
                return value


@pytest.mark.parametrize(
    ("machine", "architecture", "read", "mount", "bpf", "clone", "unshare"),
    [("x86_64", X86, 0, 165, 321, 56, 272), ("aarch64", ARM, 63, 40, 280, 220, 97)],
)
def test_the_filter_refuses_what_leads_out_and_lets_the_rest_pass(
    machine: str, architecture: int, read: int, mount: int, bpf: int, clone: int, unshare: int
) -> None:
    assert verdict(machine, read, architecture=architecture) == ALLOW
    assert verdict(machine, mount, architecture=architecture) == EPERM
    assert verdict(machine, bpf, architecture=architecture) == EPERM
    assert verdict(machine, 435, architecture=architecture) == ENOSYS, "clone3"
    for number in (clone, unshare):
        assert verdict(machine, number, architecture=architecture, first_argument=0x10000000) == EPERM
        assert verdict(machine, number, architecture=architecture, first_argument=0x00000100) == ALLOW
    assert verdict(machine, read, architecture=architecture ^ 1) == KILL


def test_the_other_calling_convention_of_x86_is_closed() -> None:
    assert verdict("x86_64", 0x40000000 | 165, architecture=X86) == ENOSYS


def test_an_unknown_architecture_gets_no_filter() -> None:
    assert program("sparc64") is None
