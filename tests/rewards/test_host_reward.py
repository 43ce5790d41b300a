"""Rewards in plain Python, called from the compiled step."""

import os
import threading
import time
import warnings

import keras
import numpy as np
import pytest
from backends import trains
from keras import ops
from tiny import classifier, compiled, inputs, to_numpy, weights_of

from keras_reward import CategoricalPolicy, FunctionReward, HostReward, RewardTuning

BACKEND = keras.config.backend()
# How a step can be compiled: on TensorFlow, XLA cannot call the host.
COMPILATIONS = [{}, {"run_eagerly": True}, {"jit_compile": True}]
COMPILATIONS = COMPILATIONS[:2] if BACKEND == "torch" else COMPILATIONS


@keras.saving.register_keras_serializable(package="keras_reward_tests")
def matches(y_true, y_pred):
    """1 where the class is the target's; in Python, and it changes its arguments."""
    assert isinstance(y_pred, np.ndarray)
    scores = [float(a == b) for a, b in zip(y_true, y_pred, strict=True)]
    y_true[:], y_pred[:] = -1, -1
    return scores


def matches_in_ops(y_true, y_pred):
    return ops.cast(ops.equal(ops.cast(y_true, "int32"), y_pred), "float32")


def process_of(y_true, y_pred):
    """The id of the process that scores."""
    return np.full(len(y_pred), os.getpid(), "float32")


def tuner(reward, compilation=(), **arguments):
    tuned = RewardTuning(classifier(), reward=reward, seed=0, **arguments)
    tuned.compile(keras.optimizers.SGD(0.5), **dict(compilation))
    return tuned


TARGETS = np.arange(16) % 5


@pytest.mark.slow
@trains
@pytest.mark.filterwarnings("ignore:Model doesn't support")
@pytest.mark.parametrize("compilation", COMPILATIONS, ids=str)
def test_training_with_it_equals_training_with_the_same_in_ops(compilation):
    runs = []
    # On TensorFlow, XLA would draw other random numbers.
    in_ops = FunctionReward(matches_in_ops), {"jit_compile": False}
    for reward, arguments in [(HostReward(matches), compilation), in_ops]:
        tuned = tuner(reward, arguments)
        history = tuned.fit(
            inputs(), TARGETS, batch_size=8, epochs=3, shuffle=False, verbose=0
        )
        runs.append((history.history["reward"], weights_of(tuned.model)))
    np.testing.assert_allclose(runs[0][0], runs[1][0])
    for one, other in zip(runs[0][1], runs[1][1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_tensorflow_leaves_xla_off_even_where_keras_would_choose_it():
    tuned = tuner(HostReward(matches) + 0.0 * FunctionReward(matches_in_ops))
    assert tuned.supports_jit is (BACKEND != "tensorflow")
    assert tuner(FunctionReward(matches_in_ops)).supports_jit
    if BACKEND == "tensorflow":
        with pytest.warns(UserWarning, match="jit_compile=False"):
            tuned.compile(keras.optimizers.SGD(0.5), jit_compile=True)
        assert not tuned.jit_compile


def test_rows_come_in_batches_and_in_order():
    sizes = []

    def place(y_true, y_pred):
        sizes.append(len(y_pred))
        return y_pred[:, 0]

    outputs = np.arange(20, dtype="float32").reshape(10, 2)
    for workers, batch_size, expected in [
        (1, None, [10]),
        (1, 4, [4, 4, 2]),
        (3, None, [4, 4, 2]),
        (2, 3, [3, 3, 3, 1]),
        (16, None, [1] * 10),
    ]:
        sizes.clear()
        reward = HostReward(place, workers=workers, batch_size=batch_size)
        np.testing.assert_array_equal(to_numpy(reward(None, outputs)), outputs[:, 0])
        assert sorted(sizes, reverse=True) == expected


def test_threads_score_at_the_same_time():
    meeting = threading.Barrier(3, timeout=30)  # breaks unless all three are there

    def meet(y_true, y_pred):
        meeting.wait()
        return np.ones(len(y_pred))

    reward = HostReward(meet, workers=3)
    np.testing.assert_array_equal(to_numpy(reward(None, np.zeros((3, 1)))), [1, 1, 1])


@pytest.mark.slow
def test_processes_score_too():
    reward = HostReward(process_of, workers=2, use_multiprocessing=True)
    assert os.getpid() not in to_numpy(reward(None, np.zeros((4, 1)))).astype(int)
    reward.calls.close()


def test_nests_inputs_and_missing_targets_arrive_as_arrays():
    seen = {}

    def look(y_true, y_pred, inputs):
        seen.update(y_true=y_true, y_pred=y_pred, inputs=inputs)
        return np.zeros(len(inputs))

    outputs = {"boxes": ops.ones((2, 3, 4)), "labels": ops.ones((2, 3), "int32")}
    HostReward(look)(None, outputs, inputs=ops.ones((2, 5), "bfloat16"))
    assert seen["y_true"] is None
    assert seen["y_pred"]["boxes"].shape == (2, 3, 4)
    assert seen["y_pred"]["labels"].dtype == np.int32
    assert seen["inputs"].dtype == np.float32


@trains
def test_none_and_nan_are_unscored():
    def partly(y_true, y_pred):
        return [None, float("nan"), *[1.0] * (len(y_pred) - 2)]

    scores = to_numpy(HostReward(partly)(None, np.zeros((4, 1))))
    np.testing.assert_array_equal(scores, [np.nan, np.nan, 1, 1])
    tuned = tuner(HostReward(partly))
    history = tuned.fit(inputs(), batch_size=16, verbose=0).history
    assert history["no_reward"] == [2 / 32]
    assert history["reward"] == [1.0]


@trains
def test_its_time_is_a_metric():
    def slow(y_true, y_pred):
        time.sleep(0.05)
        return np.zeros(len(y_pred))

    history = tuner(HostReward(slow)).fit(
        inputs(), batch_size=8, validation_data=(inputs(),), verbose=0
    )
    assert 0.05 <= history.history["reward_seconds"][0] < 5.0
    assert 0.05 <= history.history["val_reward_seconds"][0] < 5.0
    both = HostReward(slow, name="one") + HostReward(slow, name="two")
    assert "two_reward_seconds" in both.component_names


class ServiceError(Exception):
    pass


def fails_on_sevens(y_true, y_pred):
    if 7 in y_true:
        raise ServiceError("no answer")
    return np.ones(len(y_pred))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_surfaces_as_itself_with_its_rows(workers):
    reward = HostReward(fails_on_sevens, batch_size=2, workers=workers)
    with pytest.raises(ServiceError, match="no answer") as caught:
        reward(np.arange(10), np.zeros((10, 1)))
    (note,) = caught.value.__notes__
    assert "'fails_on_sevens' on rows 6 to 7 of 10" in note
    reward(np.zeros(10), np.zeros((10, 1)))  # and is over with


@pytest.mark.slow
@trains
@pytest.mark.filterwarnings("ignore:Model doesn't support")
@pytest.mark.parametrize("compilation", COMPILATIONS, ids=str)
@pytest.mark.parametrize("where", ["fit", "evaluate", "train_on_batch", "validation"])
def test_an_exception_in_a_step_loses_no_weights(compilation, where):
    tuned = tuner(HostReward(fails_on_sevens) * 1.0, compilation)
    good, bad = np.zeros(16), np.arange(16)
    tuned.fit(inputs(), good, batch_size=8, verbose=0)
    before = weights_of(tuned.model)
    with pytest.raises(ServiceError, match="no answer") as caught:
        if where == "fit":
            # The second batch fails; the first one earns the same for every sample.
            tuned.fit(inputs(), bad[::-1].copy() % 8, 8, shuffle=False, verbose=0)
        elif where == "validation":
            data = (inputs(), bad)
            tuned.fit(inputs(), good, 8, validation_data=data, verbose=0)
        elif where == "evaluate":
            tuned.evaluate(inputs(), bad, batch_size=8, verbose=0)
        else:
            tuned.train_on_batch(inputs(), bad)
    assert "rows" in caught.value.__notes__[0]
    for one, other in zip(before, weights_of(tuned.model), strict=True):
        np.testing.assert_array_equal(one, other)
    tuned.fit(inputs(), good, batch_size=8, verbose=0)  # and training can go on


def test_a_wrong_length_is_an_error():
    reward = HostReward(lambda y_true, y_pred: np.zeros(3), name="mine")
    with pytest.raises(ValueError, match=r"'mine'.*\(4,\). Received: shape \(3,\)"):
        reward(None, np.zeros((4, 1)))


def test_compiled_call_equals_eager_call():
    reward = HostReward(matches)
    outputs = np.arange(6) % 4
    target = np.arange(6) % 3
    eager = to_numpy(reward(target, outputs))
    call = compiled(lambda y, out: reward.evaluate(y, out)[0])
    np.testing.assert_array_equal(
        to_numpy(call(ops.convert_to_tensor(target), ops.convert_to_tensor(outputs))),
        eager,
    )
    np.testing.assert_array_equal(eager, [1, 1, 1, 0, 0, 0])


def test_large_arrays_pass():
    rows = np.random.default_rng(0).random((8, 256, 256, 3)).astype("float32")
    call = compiled(lambda out: HostReward(mean_of).evaluate(None, out)[0])
    np.testing.assert_allclose(
        to_numpy(call(ops.convert_to_tensor(rows))), rows.mean((1, 2, 3)), rtol=1e-5
    )


def mean_of(y_true, y_pred):
    return y_pred.mean((1, 2, 3))


def test_serialisation():
    reward = HostReward(matches, batch_size=3, workers=2, name="own")
    config = keras.saving.serialize_keras_object(reward)
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.function is matches
    assert copy.get_config() == reward.get_config()


@pytest.mark.parametrize("argument", ["batch_size", "workers"])
@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_bad_arguments(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}` must be a positive integer"):
        HostReward(matches, **{argument: value})


@trains
def test_no_warning_without_a_host_reward():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tuner(FunctionReward(matches_in_ops)).fit(inputs(), TARGETS, verbose=0)


def by_numpy(y_true, y_pred):
    return np.equal(y_true, y_pred).astype("float32")


def by_float(y_true, y_pred):
    return ops.cast(y_pred, "float32") * float(y_pred[0])


def by_method(y_true, y_pred):
    return y_pred.astype("float32")


# On PyTorch, tensors in the host's memory have values, but not NumPy's methods.
IN_NUMPY = [by_numpy, by_method] if BACKEND == "torch" else [by_numpy, by_float]


@trains
@pytest.mark.parametrize("function", IN_NUMPY)
@pytest.mark.parametrize("y", [TARGETS, None], ids=["targets", "none"])
def test_a_reward_in_numpy_is_told_of_it(function, y):
    name = function.__name__
    line = rf"'{name}' asks for the values.*`reward=HostReward\({name}\)`.*Received"
    for reward in (function, HostReward(matches) + FunctionReward(function)):
        tuned = tuner(reward)
        with pytest.raises(ValueError, match=line):
            tuned.fit(inputs(), y, verbose=0)


@pytest.mark.slow
@trains
def test_the_line_that_it_is_told_mends_it():
    tuned = tuner(HostReward(by_numpy))
    history = tuned.fit(inputs(), TARGETS, shuffle=False, verbose=0).history
    again = tuner(matches_in_ops).fit(inputs(), TARGETS, shuffle=False, verbose=0)
    assert history["reward"] == again.history["reward"]


@trains
def test_codecs_and_baselines_in_numpy_are_told_of_it():
    in_numpy = lambda *tensors: tensors[-1].astype("float32")  # noqa: E731
    if BACKEND == "jax":  # whose tensors have this method
        in_numpy = lambda *tensors: np.array(tensors[-1])  # noqa: E731
    codec = CategoricalPolicy(codec=in_numpy)
    cases = {
        "The policy's codec": {"policy": codec},
        "Baseline": {"baseline": in_numpy},
    }
    for what, arguments in cases.items():
        message = f"{what}.*asks for the values.*`keras.ops`. Received"
        with pytest.raises(ValueError, match=message):
            tuner(matches_in_ops, **arguments).fit(inputs(), TARGETS, verbose=0)
