"""Some threads of a process stand still while the others go on, as when a runtime is blocked."""

import ctypes
import os
import threading
from contextlib import contextmanager
from pathlib import Path

from .patience import eventually_now

_PTRACE_SEIZE, _PTRACE_INTERRUPT, _PTRACE_DETACH = 0x4206, 0x4207, 17  # linux/ptrace.h
_WALL = 0x4000_0000  # linux/wait.h: threads of other processes too
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


def _ptrace(request, thread):
    if _libc.ptrace(request, thread, None, None) != 0:
        raise OSError(ctypes.get_errno(), f"ptrace({request:#x}) of thread {thread}")


def _threads(process_id):
    """The threads of a process, by id, with their names."""
    tasks = Path(f"/proc/{process_id}/task").iterdir()
    return {int(task.name): (task / "comm").read_text().strip() for task in tasks}


@contextmanager
def frozen_but(process_id, *names):
    """Every thread of a process stands still meanwhile, but those of these names.

    The kernel counts the tracing by thread, so one thread of this process does all of it.
    """
    stop, stopped, failed = threading.Event(), threading.Event(), []

    def hold():
        held = []
        try:
            threads = _threads(process_id)
            missing = set(names) - set(threads.values())
            assert not missing, f"no thread is called {missing}: {sorted(set(threads.values()))}"
            for thread in (thread for thread, called in threads.items() if called not in names):
                _ptrace(_PTRACE_SEIZE, thread)
                held.append(thread)
                _ptrace(_PTRACE_INTERRUPT, thread)
                os.waitpid(thread, _WALL)
        except Exception as error:
            failed.append(error)
        stopped.set()
        stop.wait()
        for thread in held:
            # A process that was ended meanwhile has nothing left to detach from, and its remains are to be taken.
            if _libc.ptrace(_PTRACE_DETACH, thread, None, None) != 0:
                _take_the_remains(thread)

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    stopped.wait()
    try:
        if failed:
            raise failed[0]
        yield
    finally:
        stop.set()
        eventually_now("the threads are let go", lambda: not holder.is_alive())


def _take_the_remains(thread):
    try:
        os.waitpid(thread, _WALL | os.WNOHANG)
    except ChildProcessError:
        pass
