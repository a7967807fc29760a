"""Takes from this process what reading a stranger's bytes does not need; what is gone cannot be had back.

Limits of the kernel on memory, processor time, files and processes hold on any Linux. On x86-64 and 64-bit Arm a filter
of system calls follows: the process may compute, use the pipes and files that are open already, and end. It can open no file
(or, where it must read some, none for writing), no socket and no process, start no program and signal nobody. A refused call
fails with EPERM. On other machines, or where the kernel has no filters, the limits alone hold, and `confine` says so.
"""

import ctypes
import os
import platform
import resource
import signal
import struct

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_FILTER = 2  # SECCOMP_MODE_FILTER
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050001, 0x80000000  # refuse: EPERM
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06  # BPF: load a word, compare, test bits, answer
_NUMBER, _ARCH, _THIRD = 0, 4, 32  # where these words lie in what the filter sees
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# fmt: off
_CALLS: dict[str, tuple[int, dict[str, int]]] = {  # by machine: its number in the filter, and the calls that stay
    "x86_64": (0xC000003E, {
        "read": 0, "write": 1, "close": 3, "fstat": 5, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12,
        "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17, "readv": 19, "writev": 20,
        "sched_yield": 24, "mremap": 25, "madvise": 28, "getpid": 39, "exit": 60, "gettimeofday": 96, "getrusage": 98, "futex": 202,
        "restart_syscall": 219, "clock_gettime": 228, "exit_group": 231, "getrandom": 318,
    }),
    "aarch64": (0xC00000B7, {
        "close": 57, "lseek": 62, "read": 63, "write": 64, "readv": 65, "writev": 66, "pread64": 67, "fstat": 80,
        "exit": 93, "exit_group": 94, "futex": 98, "clock_gettime": 113, "sched_yield": 124, "restart_syscall": 128,
        "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "getrusage": 165, "gettimeofday": 169, "getpid": 172, "brk": 214,
        "munmap": 215, "mremap": 216, "mmap": 222, "mprotect": 226, "madvise": 233, "getrandom": 278,
    }),
}
_READING = {  # calls that reading a folder takes besides; the first one is allowed for reading only
    "x86_64": {"openat": 257, "getdents64": 217, "newfstatat": 262, "statx": 332},
    "aarch64": {"openat": 56, "getdents64": 61, "newfstatat": 79, "statx": 291},
}
# fmt: on


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def end_with(parent: int) -> None:
    """Ask for a kill when the parent ends; end now if it already did."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def confine(memory: int, seconds: int, *, opens_files: bool = False) -> bool:
    """At most `memory` bytes of address space and `seconds` of processor time from now on; whether calls are filtered."""
    files = 16 if opens_files else 0  # what is open stays open
    for limit, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, files),
    ):
        resource.setrlimit(limit, (most, most))
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    program = _program(platform.machine(), opens_files)
    filtered = _Program(len(program) // 8, program)
    return bool(program) and libc.prctl(PR_SET_SECCOMP, _FILTER, ctypes.byref(filtered), 0, 0) == 0


def _program(machine: str, opens_files: bool) -> bytes:
    """The filter as the kernel reads it; empty for a machine whose calls are not listed here."""
    if machine not in _CALLS:
        return b""
    arch, calls = _CALLS[machine]
    program = _step(_LOAD, _ARCH) + _step(_EQUAL, arch, 1, 0) + _step(_RETURN, _KILL) + _step(_LOAD, _NUMBER)
    reading = dict(_READING[machine]) if opens_files else {}
    opening = reading.pop("openat", None)
    for number in (*calls.values(), *reading.values()):
        program += _step(_EQUAL, number, 0, 1) + _step(_RETURN, _ALLOW)
    if opening is not None:
        program += _step(_EQUAL, opening, 0, 3) + _step(_LOAD, _THIRD) + _step(_ANY_BIT, _WRITING, 1, 0)
        program += _step(_RETURN, _ALLOW)
    return program + _step(_RETURN, _REFUSE)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
