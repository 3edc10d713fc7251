"""Clocks of one process that run wrong: faster, slower, or an hour off.

`libfaketime` cannot do it: it replaces functions of libc, and leases go by a clock that is read without libc. All of
them end in one function of the kernel's vDSO (vdso(7)), which each process has a copy-on-write mapping of;
so it is replaced there, while the process stands still. The new function asks the kernel by a system call
and then bends the answer.
"""

import os
import platform
import signal
import struct
import time
from pathlib import Path

from .patience import eventually_now

_S = 1_000_000_000


def bend(process_id, rate=(1, 1), wall_s=0, slept_s=0):
    """From now on CLOCK_MONOTONIC and CLOCK_BOOTTIME of the process run at `rate`, a fraction, its wall clock is off by
    `wall_s`, and CLOCK_BOOTTIME says that the machine was suspended for `slept_s`."""
    if platform.machine() != "x86_64":
        raise RuntimeError("the clock of a process can be bent on x86-64 only: the new function is machine code")
    start, end, image = _vdso(process_id)
    function = _symbol(image, b"__vdso_clock_gettime")
    # Zeros behind the last section: the mapping is whole pages.
    room = len(image.rstrip(b"\0")) + 16 & ~15
    code = _function(rate, wall_s, slept_s)
    assert room + len(code) <= len(image), "the vDSO has no room"
    jump = b"\xe9" + struct.pack("<i", room - (function + 5))
    os.kill(process_id, signal.SIGSTOP)
    try:
        # Nobody may stand in the function while it changes under him.
        eventually_now("no thread reads a clock", lambda: _stopped_outside(process_id, start, end))
        with open(f"/proc/{process_id}/mem", "r+b", buffering=0) as memory:
            for place, content in ((room, code), (function, jump)):
                memory.seek(start + place)
                memory.write(content)
    finally:
        os.kill(process_id, signal.SIGCONT)


def _vdso(process_id):
    for line in Path(f"/proc/{process_id}/maps").read_text().splitlines():
        if line.endswith("[vdso]"):
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            with open(f"/proc/{process_id}/mem", "rb", buffering=0) as memory:
                memory.seek(start)
                return start, end, memory.read(end - start)
    raise RuntimeError("the process has no vDSO")


def _symbol(image, name):
    """The offset of a function in an ELF image (elf(5)): by its section of dynamic symbols."""
    (sections,) = struct.unpack_from("<Q", image, 0x28)
    size, count = struct.unpack_from("<HH", image, 0x3A)
    headers = [struct.unpack_from("<IIQQQQII", image, sections + number * size) for number in range(count)]
    for kind, offset, length, names in ((header[1], header[4], header[5], header[6]) for header in headers):
        if kind == 11:  # SHT_DYNSYM
            texts = headers[names][4]
            for symbol in range(offset, offset + length, 24):
                text, _, _, _, value, _ = struct.unpack_from("<IBBHQQ", image, symbol)
                begin = texts + text
                if image[begin : image.index(b"\0", begin)] == name:
                    return value
    raise RuntimeError(f"the vDSO has no {name.decode()}")


def _stopped_outside(process_id, start, end):
    """Whether every thread has stopped, and none of them at an instruction of the vDSO."""
    for thread in Path(f"/proc/{process_id}/task").iterdir():
        state = (thread / "stat").read_text().rpartition(")")[2].split()[0]
        at = int((thread / "syscall").read_text().split()[-1], 16) if state == "T" else start
        if start <= at < end:
            if state == "T":
                # Let it get out.
                os.kill(process_id, signal.SIGCONT)
                os.kill(process_id, signal.SIGSTOP)
            return False
    return True


def _function(rate, wall_s, slept_s):
    """`int clock_gettime(clockid_t edi, struct timespec *rsi)`. All registers that it writes are the caller's to save."""
    numerator, denominator = rate
    monotonic, boottime = time.clock_gettime_ns(time.CLOCK_MONOTONIC), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    bent = b"".join(
        [
            b"\x48\x69\x06" + struct.pack("<i", _S),  # imul rax, [rsi], 10^9
            b"\x48\x03\x46\x08",  # add rax, [rsi+8]: nanoseconds
            b"\x48\x29\xc8",  # sub rax, rcx: since the bending
            b"\x48\x69\xc0" + struct.pack("<i", numerator),  # imul rax, rax, numerator
            b"\x48\x99",  # cqo
            b"\x49\xc7\xc0" + struct.pack("<i", denominator),  # mov r8, denominator
            b"\x49\xf7\xf8",  # idiv r8
            b"\x48\x01\xc8",  # add rax, rcx
            b"\x4c\x01\xc8",  # add rax, r9: the sleep
            b"\x41\xb8" + struct.pack("<I", _S),  # mov r8d, 10^9
            b"\x31\xd2",  # xor edx, edx
            b"\x49\xf7\xf0",  # div r8
            b"\x48\x89\x06",  # mov [rsi], rax
            b"\x48\x89\x56\x08",  # mov [rsi+8], rdx
            b"\x31\xc0\xc3",  # xor eax, eax; ret
        ]
    )
    of_monotonic = b"\x48\xb9" + struct.pack("<q", monotonic) + b"\x4d\x31\xc9"  # mov rcx, then; xor r9, r9
    of_boottime = b"\x48\xb9" + struct.pack("<q", boottime) + b"\x49\xb9" + struct.pack("<q", slept_s * _S)
    of_boottime += b"\xeb" + struct.pack("b", len(of_monotonic))  # jmp over the other
    of_wall = b"\x48\xb8" + struct.pack("<q", wall_s) + b"\x48\x01\x06" + b"\x31\xc0\xc3"  # add [rsi], seconds; ret
    return b"".join(
        [
            b"\xb8\xe4\x00\x00\x00\x0f\x05",  # mov eax, 228; syscall
            b"\x85\xc0\x74\x01\xc3",  # test eax, eax; je +1; ret
            b"\x85\xff\x75" + struct.pack("b", len(of_wall)) + of_wall,  # CLOCK_REALTIME
            b"\x83\xff\x01\x74" + struct.pack("b", 6 + len(of_boottime)),  # CLOCK_MONOTONIC
            b"\x83\xff\x07\x74\x01\xc3",  # CLOCK_BOOTTIME; else ret
            of_boottime,
            of_monotonic,
            bent,
        ]
    )
