"""A system-call filter for scripts: no new user namespaces, no keyrings, no kernel tracing, no io_uring (seccomp(2)).

Root's sandbox has no user namespace of its own in which bubblewrap could forbid them, and each of these has been the
way out of a container before. Refused calls fail with EPERM; clone3, whose flags a filter cannot read, with ENOSYS,
upon which the C library uses clone. Unknown architectures get no filter: the namespaces hold without it.
"""

import platform
import struct

_EPERM, _ENOSYS = 1, 38
_CLONE_NEWUSER = 0x1000_0000
_X32_BIT = 0x4000_0000

_AUDIT_ARCH = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
# Call numbers: x86_64 from arch/x86/entry/syscalls/syscall_64.tbl, aarch64 from include/uapi/asm-generic/unistd.h.
_REFUSED = {
    "x86_64": {
        "mount": 165,
        "umount2": 166,
        "pivot_root": 155,
        "setns": 308,
        "keyctl": 250,
        "add_key": 248,
        "request_key": 249,
        "bpf": 321,
        "perf_event_open": 298,
        "userfaultfd": 323,
        "open_by_handle_at": 304,
        "kexec_load": 246,
        "io_uring_setup": 425,
        "open_tree": 428,
        "move_mount": 429,
        "fsopen": 430,
        "fsmount": 432,
        "mount_setattr": 442,
    },
    "aarch64": {
        "mount": 40,
        "umount2": 39,
        "pivot_root": 41,
        "setns": 268,
        "keyctl": 219,
        "add_key": 217,
        "request_key": 218,
        "bpf": 280,
        "perf_event_open": 241,
        "userfaultfd": 282,
        "open_by_handle_at": 265,
        "kexec_load": 104,
        "io_uring_setup": 425,
        "open_tree": 428,
        "move_mount": 429,
        "fsopen": 430,
        "fsmount": 432,
        "mount_setattr": 442,
    },
}
_CLONE = {"x86_64": 56, "aarch64": 220}
_UNSHARE = {"x86_64": 272, "aarch64": 97}
_CLONE3 = 435

# struct seccomp_data: the call's number, the architecture, and the low half of the first argument.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_LOAD, _IF_EQUAL, _IF_ABOVE, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _FAIL = 0x7FFF_0000, 0x8000_0000, 0x0005_0000


def program(machine: str | None = None) -> bytes | None:
    """The filter as classic BPF for this machine, or None where the architecture is not known."""
    machine = machine or platform.machine()
    architecture = _AUDIT_ARCH.get(machine)
    if architecture is None:
        return None
    steps = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_IF_EQUAL, architecture, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        steps += [_step(_IF_ABOVE, _X32_BIT, 0, 1), _step(_RETURN, _FAIL | _ENOSYS)]
    steps += [_step(_IF_EQUAL, _CLONE3, 0, 1), _step(_RETURN, _FAIL | _ENOSYS)]
    for number in sorted(_REFUSED[machine].values()):
        steps += [_step(_IF_EQUAL, number, 0, 1), _step(_RETURN, _FAIL | _EPERM)]
    for number in (_CLONE[machine], _UNSHARE[machine]):
        steps += [
            _step(_IF_EQUAL, number, 0, 4),
            _step(_LOAD, _FIRST_ARGUMENT),
            _step(_IF_ANY_BIT, _CLONE_NEWUSER, 0, 1),
            _step(_RETURN, _FAIL | _EPERM),
            _step(_RETURN, _ALLOW),
        ]
    return b"".join([*steps, _step(_RETURN, _ALLOW)])


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One struct sock_filter."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
