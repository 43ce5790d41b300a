"""Workers that call a function of the user, which may hang.

A thread cannot be ended, so one that hangs is left to itself and does not keep the
process from exiting, as those of `concurrent.futures` would. A process is killed.
"""

import collections
import concurrent.futures
import math
import multiprocessing
import multiprocessing.context
import os
import queue
import signal
import threading
import time
import weakref

from keras_reward import interrupts
from keras_reward.backend import without_recording

POLL_SECONDS = 0.1  # how often a waiting call looks for Ctrl-C and the time
GRACE_SECONDS = 1.0  # after Ctrl-C, for calls that do not hang


class Late(TimeoutError):
    """A call that took longer than its timeout."""


class Interrupted(Exception):
    """A call that had not ended when Ctrl-C was pressed."""


class Threads:
    """A pool of threads.

    Args:
        function: what they call.
        number: how many.
    """

    def __init__(self, function, number):
        self.function = function
        self.tasks = queue.SimpleQueue()
        for _ in range(number):
            threading.Thread(target=work, args=(self.tasks,), daemon=True).start()
        self.end = weakref.finalize(self, end_threads, self.tasks, number)

    def submit(self, *arguments):
        """A `Future` of a call of the function."""
        future = concurrent.futures.Future()
        self.tasks.put((future, self.function, arguments))
        return future

    def close(self):
        """Ends the threads, those that are busy when they are done."""
        self.end()


def work(tasks):
    """What a thread does: all tasks of a queue, until one is None."""
    while (task := tasks.get()) is not None:
        future, function, arguments = task
        try:
            future.set_result(without_recording(function, *arguments))
        except BaseException as error:
            future.set_exception(error)
        del task, future, arguments  # not until the next one comes


def end_threads(tasks, number):
    for _ in range(number):
        tasks.put(None)


class Processes:
    """A pool of processes, as `Threads`.

    They load the function's own module and nothing of this library.

    Args:
        function: what they call.
        number: how many.
        wait: if True, waits until all of them have loaded the function, which may take
            seconds, so that their first calls do not take longer than others.
    """

    def __init__(self, function, number, wait=False):
        self.function = function
        self.started = []
        # A fork would copy the locks of the backend's threads.
        context = multiprocessing.context.SpawnContext()
        context.Process = self.process
        self.pool = concurrent.futures.ProcessPoolExecutor(
            number,
            mp_context=context,
            # A terminal sends Ctrl-C to all processes; the first one decides.
            initializer=signal.signal,
            initargs=(signal.SIGINT, signal.SIG_IGN),
        )
        if wait:
            self.wait_for_all(number)

    def process(self, *args, **kwargs):
        """Makes a process, and remembers it, which the executor does not tell."""
        self.started.append(multiprocessing.context.SpawnProcess(*args, **kwargs))
        return self.started[-1]

    def wait_for_all(self, number):
        started = set()
        while len(started) < number:
            calls = [self.pool.submit(os.getpid) for _ in range(number)]
            started.update(call.result() for call in calls)
        # Whatever comes first to a process loads the module of the function.
        given = self.function, "__name__", None
        calls = [self.pool.submit(getattr, *given) for _ in range(number)]
        concurrent.futures.wait(calls)

    def submit(self, *arguments):
        """A `Future` of a call of the function."""
        return self.pool.submit(self.function, *arguments)

    def close(self):
        """Kills the processes."""
        for process in self.started:
            if process.is_alive():
                process.kill()
        self.pool.shutdown(wait=False, cancel_futures=True)


class Calls:
    """Calls of a function, by workers that are replaced when they hang or die.

    Args:
        make_pool: makes a `Threads` or a `Processes`.
        number: the number of its workers.
        timeout: seconds that a call may take, or None.
    """

    def __init__(self, make_pool, number, timeout=None):
        self.make_pool = make_pool
        self.number = number
        self.timeout = timeout
        self.pool = None

    def close(self):
        """Ends all workers; new ones start with the next call."""
        pool, self.pool = self.pool, None
        if pool is not None:
            pool.close()

    def outcomes(self, batches):
        """Calls the function with each of some batches.

        Args:
            batches: list of tuples of arguments.

        Returns:
            A list of what it returned or raised; `Late` for a call that took too long,
            `Interrupted` for those that Ctrl-C has cut short.
        """
        outcomes = [Interrupted() for _ in batches]
        waiting = collections.deque(enumerate(batches))
        running, late, end = {}, set(), None
        try:
            while waiting or running:
                while waiting and len(running) + len(late) < self.number:
                    index, batch = waiting.popleft()
                    future = self.submit(batch)  # which may start a pool
                    running[future] = index, time.monotonic()
                self.collect(running, late, outcomes)
                if late and not running and len(late) == self.number:
                    self.close()
                    late.clear()
                if end is None and interrupts.is_wanted():
                    end = time.monotonic() + GRACE_SECONDS
                if end is not None and time.monotonic() > end:
                    break
        except BaseException:
            self.close()
            raise
        if running or late:
            self.close()
        return outcomes

    def submit(self, batch):
        """A `Future` of a call; replaces workers that have died."""
        if self.pool is None:
            self.pool = self.make_pool()
        try:
            return self.pool.submit(*batch)
        except concurrent.futures.BrokenExecutor:
            self.close()
            self.pool = self.make_pool()
            return self.pool.submit(*batch)

    def collect(self, running, late, outcomes):
        """Waits a moment, and moves calls that are done or late out of `running`."""
        first = concurrent.futures.FIRST_COMPLETED
        moment = min(POLL_SECONDS, (self.timeout or math.inf) / 10)
        done, _ = concurrent.futures.wait(running, moment, first)
        for future in done:
            index, _ = running.pop(future)
            error = future.exception()
            outcomes[index] = future.result() if error is None else error
        if self.timeout is None:
            return
        now = time.monotonic()
        for future, (index, start) in list(running.items()):
            if now - start > self.timeout:
                outcomes[index] = Late()
                late.add(future)
                del running[future]
