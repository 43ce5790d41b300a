"""Timing of functions side by side."""

import statistics
import time


def in_turns(functions, rounds):
    """Median seconds of each function, called in turns after a call to warm up.

    In turns, so that whatever slows the machine for a while slows all of them.

    Args:
        functions: list of functions without arguments, which return when they are
            done.
        rounds: how often each one is timed.
    """
    seconds = [[] for _ in functions]
    for function in functions:
        function()
    for _ in range(rounds):
        for function, times in zip(functions, seconds, strict=True):
            begin = time.perf_counter()
            function()
            times.append(time.perf_counter() - begin)
    return [statistics.median(times) for times in seconds]
