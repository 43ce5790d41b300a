"""Rewards in plain Python: any function of NumPy arrays, called in each step."""

import functools
import math
import time

import keras
import numpy as np
from keras import ops

from keras_reward import interrupts
from keras_reward.backend import XLA_CALLS_HOST, host_call
from keras_reward.nests import rows_of, take_rows
from keras_reward.rewards.combination import FunctionReward
from keras_reward.rewards.host_workers import (
    Calls,
    Interrupted,
    Late,
    Processes,
    Threads,
)

ON_TIMEOUT = ("raise", "nan")


@keras.saving.register_keras_serializable(package="keras_reward")
class HostReward(FunctionReward):
    """A Python function on NumPy arrays as a reward: an evaluator, a service, a person.

    The function runs on the host while the compiled step waits for it: on JAX, on
    TensorFlow (which then compiles the step without XLA) and on PyTorch. If a reward
    can be written in `keras.ops`, a plain function or a `Reward` is much faster.

    An exception in the function does not lose the weights. The rows that failed have no
    influence on the step, and then `fit`, `evaluate` or the call raises the exception,
    with a note that says which rows failed. Ctrl-C ends `fit` also while the function
    hangs.

    Args:
        function: `(y_true, y_pred) -> (rows,)` or `(y_true, y_pred, inputs) ->
            (rows,)`, on NumPy arrays (half precision arrives as float32), or nests of
            them. They are copies, so the function may change them. It returns NaN or
            None for a row that has no reward. To load it from a saved file, register
            it with `keras.saving.register_keras_serializable`.
        batch_size: maximum number of rows in one call of the function. Default: all
            rows, divided by `workers`.
        workers: number of calls that run at the same time. Default 1.
        use_multiprocessing: if True, workers are processes, for functions that compute
            in Python. The function must be picklable, and a script that starts
            training needs `if __name__ == "__main__":`. Default False: threads, for
            functions that wait or compute in NumPy.
        timeout: how long a call of the function may take, in seconds. A worker that
            takes longer is replaced; a process is killed, a thread is left to itself.
            Default: any time.
        on_timeout: what becomes of the rows of a call that takes longer. `"raise"`
            (default): they failed, with a `TimeoutError`. `"nan"`: they have no reward,
            and training continues; `no_reward` counts them.
        name: name in the logs. Default: the function's own.

    Call arguments: `y_true`, `y_pred` as the function takes them. Returns `(rows,)`.

    Logs the component `reward_seconds`, the time that the function took in a step.

    Raises:
        ValueError: if the function does not return one number per row.
        TimeoutError: if a call takes longer than `timeout`, unless `on_timeout` is
            `"nan"`.

    Example:

    ```python
    import numpy as np
    from keras_reward import HostReward

    def brightness(y_true, y_pred):
        return [image.mean() for image in y_pred]

    reward = HostReward(brightness, batch_size=8, workers=2)
    reward(None, np.ones((16, 4, 4, 3), "float32"))  # sixteen times 1.0
    ```
    """

    component_names = ("reward_seconds",)
    runs_on_host = True
    supports_jit = XLA_CALLS_HOST

    def __init__(
        self,
        function,
        batch_size=None,
        workers=1,
        use_multiprocessing=False,
        timeout=None,
        on_timeout="raise",
        name=None,
    ):
        super().__init__(function, name=name)
        for argument, value in {"batch_size": batch_size, "workers": workers}.items():
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(
                    f"`{argument}` must be a positive integer. "
                    f"Received: {argument}={value!r}"
                )
        if timeout is not None and not is_positive(timeout):
            raise ValueError(
                "`timeout` must be a positive number of seconds, or None. "
                f"Received: timeout={timeout!r}"
            )
        if on_timeout not in ON_TIMEOUT:
            raise ValueError(
                f"`on_timeout` must be one of {ON_TIMEOUT}. "
                f"Received: on_timeout={on_timeout!r}"
            )
        self.batch_size = batch_size
        self.workers = workers
        self.use_multiprocessing = use_multiprocessing
        self.timeout = timeout
        self.on_timeout = on_timeout
        self.failure = None
        if use_multiprocessing:
            pool = functools.partial(Processes, wait=timeout is not None)
        else:
            pool = Threads
        self.calls = Calls(functools.partial(pool, function, workers), workers, timeout)

    def call(self, y_true, y_pred, inputs=None):
        rewards, seconds = self.values(y_true, y_pred, inputs)
        return rewards, {"reward_seconds": seconds}

    def values(self, y_true, y_pred, inputs, shape=()):
        """What the function returns, with NaN for rows that failed.

        Args:
            y_true, y_pred, inputs: as for `call`.
            shape: shape of what it returns for a row. Default `()`: a number.

        Returns:
            `(rows, *shape)` float32, and the seconds that it took, `(rows,)`.
        """
        arguments = (y_true, y_pred, inputs) if self.uses_inputs else (y_true, y_pred)
        leaves = keras.tree.flatten(arguments)
        tensors = [as_host_dtype(leaf) for leaf in leaves if leaf is not None]

        def run(*arrays):
            arrays = iter(arrays)
            own = [None if leaf is None else np.array(next(arrays)) for leaf in leaves]
            return self.rewards_of(keras.tree.pack_sequence_as(arguments, own), shape)

        rows = rows_of(y_pred)
        result = host_call(run, tensors, (math.prod(shape) + 1, rows))
        values = ops.moveaxis(result[:-1], 0, -1)
        return ops.reshape(values, (*ops.shape(values)[:1], *shape)), result[-1]

    def rewards_of(self, arguments, shape):
        """Calls the function: values and, last, seconds, `(values + 1, rows)`."""
        start = time.perf_counter()
        rows = rows_of(arguments[1])
        rewards = np.full((rows, *shape), np.nan, "float32")
        size = self.batch_size or max(1, -(-rows // self.workers))
        chunks = [slice(i, min(i + size, rows)) for i in range(0, rows, size)]
        outcomes = self.outcomes([take_rows(arguments, chunk) for chunk in chunks])
        failed = []
        for chunk, outcome in zip(chunks, outcomes, strict=True):
            late = isinstance(outcome, Late) and self.on_timeout == "nan"
            if late or isinstance(outcome, Interrupted):
                continue
            try:
                expected = (chunk.stop - chunk.start, *shape)
                values = self.returned(outcome)
                rewards[chunk] = as_rewards(self.name, values, expected)
            except BaseException as error:  # an interrupt must not lose weights either
                failed.append((chunk, error))
        if failed:
            self.keep_failure(failed, rows)
        seconds = np.full((rows,), time.perf_counter() - start, "float32")
        return np.concatenate([rewards.reshape(rows, -1), seconds[:, None]], 1).T

    def outcomes(self, batches):
        """What the function returned or raised for each of some batches."""
        in_workers = self.workers > 1 or self.use_multiprocessing or self.timeout
        try:
            # The main thread could not see Ctrl-C while the function hangs.
            if in_workers or interrupts.is_deferred():
                return self.calls.outcomes(batches)
            return [self.outcome(batch) for batch in batches]
        except BaseException as error:  # such as Ctrl-C in this thread
            return [error] * len(batches)

    def outcome(self, batch):
        try:
            return self.function(*batch)
        except Exception as error:
            return error

    def returned(self, outcome):
        """What the function returned, or raises what it did."""
        if isinstance(outcome, Late):
            raise TimeoutError(
                f"A call of HostReward {self.name!r} took longer than its `timeout`. "
                'Raise that, lower `batch_size`, or pass `on_timeout="nan"` to train '
                f"without the rewards of such calls. Received: timeout={self.timeout}"
            )
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def keep_failure(self, failed, rows):
        """Keeps the first error for `raise_failure`, with the rows of all errors."""
        _, error = failed[0]
        where = ", ".join(f"{chunk.start} to {chunk.stop - 1}" for chunk, _ in failed)
        error.add_note(
            f"Raised by HostReward {self.name!r} on rows {where} of {rows}. "
            "A row is one sample of one input, the samples of an input adjacent."
        )
        self.failure = error

    def raise_failure(self):
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure

    def get_config(self):
        return {
            **super().get_config(),
            "batch_size": self.batch_size,
            "workers": self.workers,
            "use_multiprocessing": self.use_multiprocessing,
            "timeout": self.timeout,
            "on_timeout": self.on_timeout,
        }


def is_positive(value):
    """Whether a value is a finite number above 0."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 < value < math.inf


def as_host_dtype(tensor):
    """A tensor with a dtype that NumPy has."""
    half = keras.backend.standardize_dtype(tensor.dtype) in ("bfloat16", "float16")
    return ops.cast(tensor, "float32") if half else tensor


def as_rewards(name, rewards, shape):
    """What a host function returned, in float32; None becomes NaN."""
    rewards = np.asarray(rewards, "float32")
    if rewards.shape != shape:
        what = "number" if len(shape) == 1 else "map"
        raise ValueError(
            f"Reward {name!r} must return one {what} per row. "
            f"Expected: shape {shape}. Received: shape {rewards.shape}"
        )
    return rewards
