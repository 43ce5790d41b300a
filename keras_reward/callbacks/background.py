"""Work in a thread: one piece at a time, whose failure is told and not lost."""

import threading


class Background:
    """Runs one function at a time in a thread of its own."""

    def __init__(self):
        self.thread = None
        self.error = None

    def start(self, function, *arguments):
        """Calls a function in the thread, when the one before has ended.

        Returns:
            The exception with which the one before failed, or None.
        """
        error = self.wait()
        # Not a daemon: Python waits for it before it ends.
        self.thread = threading.Thread(target=self.run, args=(function, *arguments))
        self.thread.start()
        return error

    def run(self, function, *arguments):
        try:
            function(*arguments)
        except BaseException as error:
            self.error = error

    def failure(self):
        """The exception of a function that has failed, once; None if there is none."""
        error, self.error = self.error, None
        return error

    def wait(self):
        """Waits for the thread to end, and returns what `failure` returns."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        return self.failure()
