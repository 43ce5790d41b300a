"""Ctrl-C that waits until a step is over.

On JAX a step takes the weights and returns new ones, so an interrupt in between would
lose them; elsewhere it would leave some weights updated and others not. And while a
compiled step runs, or a reward on the host within it, Python does not see Ctrl-C at
all.
"""

import contextlib
import signal
import socket
import sys
import threading

MESSAGE = (
    "Ctrl-C: the run ends after this step. Press it again to end at once, which may "
    "lose the weights."
)
_current = None  # the `Deferral` that is in force


@contextlib.contextmanager
def deferred():
    """Within it, Ctrl-C is noted, and `is_wanted` says so; a second one interrupts.

    At the end, a Ctrl-C that was noted raises a `KeyboardInterrupt`, unless there is an
    error already. Outside of the main thread, and where the handler of SIGINT is not
    Python's own, nothing changes.
    """
    global _current
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    before, _current = _current, Deferral()
    try:
        with _current.in_force():
            yield
        wanted = _current.is_wanted()
    finally:
        _current = before
    if wanted:
        raise KeyboardInterrupt


def is_deferred():
    """Whether Ctrl-C is noted instead of raised."""
    return _current is not None


def is_wanted():
    """Whether Ctrl-C was pressed and noted; any thread may ask."""
    return _current is not None and _current.is_wanted()


class Deferral:
    """A handler of SIGINT that notes the first one."""

    def __init__(self):
        self.is_active = False
        self.handled = 0
        self.seen = False  # before the main thread could handle it
        self.reader = None

    def __call__(self, signum, frame):
        self.handled += 1
        if not self.is_active or self.handled > 1:
            signal.default_int_handler(signum, frame)
        with contextlib.suppress(RuntimeError, ValueError, OSError):
            # Fails where the main thread is printing just now, or cannot.
            print(MESSAGE, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def in_force(self):
        """Within it, this is the handler."""
        self.is_active = True
        with self.listening():
            signal.signal(signal.SIGINT, self)
            try:
                yield
            finally:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                self.is_active = False

    @contextlib.contextmanager
    def listening(self):
        """Within it, other threads see a signal while the main thread is blocked.

        Python calls handlers in the main thread, between two of its instructions. What
        arrives here comes at once. If someone else listens already, nobody sees more.
        """
        self.reader, writer = socket.socketpair()
        with self.reader, writer:
            self.reader.setblocking(False)
            writer.setblocking(False)
            before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            if before != -1:
                signal.set_wakeup_fd(before)
            try:
                yield
            finally:
                self.is_wanted()
                if before == -1:
                    signal.set_wakeup_fd(-1)

    def is_wanted(self):
        with contextlib.suppress(OSError):  # nothing arrived, or closed
            self.seen = signal.SIGINT in self.reader.recv(4096) or self.seen
        return self.seen or self.handled > 0
