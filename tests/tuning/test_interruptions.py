"""Ctrl-C ends a run after the step, with all weights."""

import os
import signal
import threading

import keras
import numpy as np
import pytest
from backends import trains
from keras import ops
from tiny import classifier, inputs, to_numpy, weights_of

from keras_reward import HostReward, RewardTuning, interrupts

pytestmark = [
    trains,
    # It says that the reward is NaN where it was cut short.
    pytest.mark.filterwarnings("ignore:The reward is NaN"),
]


@pytest.fixture(autouse=True)
def python_handles_interrupts():
    """Python's own handler, which a shell turns off for what runs behind it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.set_wakeup_fd(-1) == -1
    signal.signal(signal.SIGINT, before)


def press():
    os.kill(os.getpid(), signal.SIGINT)


def class_three(y_true, y_pred):
    return ops.cast(y_pred == 3, "float32")


def tuner(reward=class_three):
    tuned = RewardTuning(classifier(), reward=reward, seed=0)
    tuned.compile(keras.optimizers.Adam(0.1))
    return tuned


X = inputs(32)


def after(steps, reward=class_three):
    """The tuner after some steps of 8 inputs, without an interrupt."""
    tuned = tuner(reward)
    tuned.fit(X[: 8 * steps], batch_size=8, shuffle=False, verbose=0)
    return tuned


def state(tuned):
    """What the next step starts from."""
    own = tuned.trainable_variables + tuned.optimizer.variables
    return [*own, tuned.seed_generator.state]


def assert_same(tuned, other):
    """Weights and optimizer are those of another tuner, and go on together."""
    for _ in range(2):
        for one, same in zip(state(tuned), state(other), strict=True):
            np.testing.assert_allclose(to_numpy(one), to_numpy(same), atol=1e-6)
        tuned.fit(X, batch_size=8, shuffle=False, verbose=0)
        other.fit(X, batch_size=8, shuffle=False, verbose=0)


class Data(keras.utils.PyDataset):
    """Four batches; Ctrl-C is pressed while the third one is read."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 2:
            press()
        return (X[8 * index : 8 * index + 8],)


class Press(keras.callbacks.Callback):
    """Presses Ctrl-C in one of its methods, some number of times."""

    def __init__(self, method, times=1):
        super().__init__()
        self.times = times
        self.ended = False
        setattr(self, method, self.press)

    def press(self, index, logs=None):
        if index == 2:
            for _ in range(self.times):
                press()
            self.ended = True


@pytest.mark.parametrize("where", ["data", "callback", "last step", "validation"])
def test_fit_ends_after_the_step(where, tmp_path):
    tuned, callback, given = tuner(), None, {}
    x, steps = X, 3
    if where == "data":
        x = Data()
    elif where == "validation":
        callback, given = Press("on_test_batch_end"), {"validation_data": (X, None)}
        steps = 4
    else:
        callback = Press("on_train_batch_end")
        x = X[:24] if where == "last step" else X
    with pytest.raises(KeyboardInterrupt) as caught:
        tuned.fit(
            x, batch_size=8, shuffle=False, verbose=0, callbacks=callback, **given
        )
    if where == "data":  # which may be read ahead
        steps = int(tuned.optimizer.iterations)
        assert steps <= 3
    assert not getattr(caught.value, "__notes__", [])
    assert int(tuned.optimizer.iterations) == steps
    tuned.save_weights(tmp_path / "w.weights.h5")
    if steps:
        assert_same(tuned, after(steps))


@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_evaluate_and_predict_keep_the_weights(method):
    tuned = after(1)
    before = weights_of(tuned.model)
    callback = Press(f"on_{'test' if method == 'evaluate' else 'predict'}_batch_end")
    with pytest.raises(KeyboardInterrupt):
        getattr(tuned, method)(X, batch_size=8, verbose=0, callbacks=[callback])
    for one, other in zip(before, weights_of(tuned.model), strict=True):
        np.testing.assert_array_equal(one, other)
    assert callback.ended


def test_a_second_one_interrupts_at_once(capsys):
    callback = Press("on_train_batch_end", times=2)
    with pytest.raises(KeyboardInterrupt):
        tuner().fit(X, batch_size=8, verbose=0, callbacks=[callback])
    assert not callback.ended
    assert capsys.readouterr().err.count("the run ends after this step") == 1


def test_handlers_of_others_and_other_threads_are_left_alone():
    seen = []

    def own(signum, frame):
        seen.append("own")

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append(signal.getsignal(signal.SIGINT))

    def fit():
        tuner().fit(X, batch_size=8, verbose=0, callbacks=[Look()])

    signal.signal(signal.SIGINT, own)
    try:
        fit()
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=fit)
    thread.start()
    thread.join()
    fit()
    assert seen[:2] == [own, signal.default_int_handler]
    assert isinstance(seen[2], interrupts.Deferral)


def test_a_list_of_callbacks_that_is_ready_ends_too():
    tuned = tuner()
    given = [Press("on_train_batch_end")]
    callbacks = keras.callbacks.CallbackList(given, add_history=True, model=tuned)
    with pytest.raises(KeyboardInterrupt):
        tuned.fit(X, batch_size=8, verbose=0, callbacks=callbacks)
    assert int(tuned.optimizer.iterations) == 3


def test_another_error_is_not_replaced():
    with pytest.raises(ValueError, match="mine"), interrupts.deferred():
        press()
        raise ValueError("mine")
    with pytest.raises(KeyboardInterrupt), interrupts.deferred():
        press()
        assert interrupts.is_wanted()
    assert not interrupts.is_wanted()


# What hangs until the test is over, in the third step.


class Hanging:
    def __init__(self):
        self.calls, self.go_on = 0, threading.Event()

    def __call__(self, y_true, y_pred):
        self.calls += 1
        if self.calls == 3:
            threading.Timer(0.2, press).start()
            self.go_on.wait(60)
        return (y_pred == 3).astype("float32")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [{}, {"workers": 2, "batch_size": 16}, {"timeout": 60.0}],
    ids=str,
)
def test_fit_ends_while_a_reward_hangs(arguments):
    function = Hanging()
    tuned = tuner(HostReward(function, name="hanging", **arguments))
    try:
        with pytest.raises(KeyboardInterrupt):
            tuned.fit(X, batch_size=8, shuffle=False, verbose=0)
        assert int(tuned.optimizer.iterations) == 3
        assert_same(tuned, reference_without_third())
    finally:
        function.go_on.set()


def reference_without_third():
    """As after an interrupt in the third step: its rows have no reward."""
    calls = []

    def function(y_true, y_pred):
        calls.append(1)
        values = (y_pred == 3).astype("float32")
        return np.full_like(values, np.nan) if len(calls) == 3 else values

    return after(3, HostReward(function))


@pytest.mark.slow
def test_a_reward_that_only_takes_a_moment_counts_after_an_interrupt():
    def function(y_true, y_pred):
        calls.append(1)
        if len(calls) == 3:
            press()
            threading.Event().wait(0.3)
        return (y_pred == 3).astype("float32")

    calls = []
    tuned = tuner(HostReward(function))
    with pytest.raises(KeyboardInterrupt):
        tuned.fit(X, batch_size=8, shuffle=False, verbose=0)
    assert int(tuned.optimizer.iterations) == 3
    assert_same(tuned, after(3))
