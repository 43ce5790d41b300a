"""Nothing depends on `keras.config.floatx`, the dtype of what has no dtype."""

import functools

import keras
import numpy as np
import pytest
from backends import trains
from every_part import PARTS, SEQUENCES, sequence_part
from keras import ops
from tiny import classifier, compiled, inputs, to_numpy

from keras_reward import (
    KL,
    MaximumLikelihood,
    PanopticQualityReward,
    PSNRReward,
    RewardTuning,
)
from keras_reward.nests import to_tensor

X = np.zeros((2, 3), "float32")
OTHERS = {
    "jax": ["float16"],  # float64 is float32 there, unless JAX is told otherwise
    "numpy": ["float64"],
    "tensorflow": ["float16", "bfloat16", "float64"],
    "torch": ["float16", "bfloat16", "float64"],
}[keras.config.backend()]
REFUSED = [name for name in ("float16", "bfloat16") if name not in OTHERS]


@pytest.fixture
def set_floatx():
    """Sets `floatx`, and the dtype policy that follows it where nobody sets one."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()

    def use(name):
        keras.config.set_floatx(name)
        keras.config.set_dtype_policy(name)

    yield use
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)


def results(function, arguments):
    """The leaves of what a function returns, in NumPy, with their paths.

    Compiled on JAX, where one function compiles sooner than each of its operations.
    """
    if keras.config.backend() == "jax":
        function = compiled(functools.partial(function))
    found = keras.tree.flatten_with_path(function(*to_tensor(arguments)))
    return {path: np.array(to_numpy(leaf)) for path, leaf in found if leaf is not None}


def check_results(part, set_floatx):
    function, *arguments = part
    expected = results(function, arguments)
    for other in OTHERS:
        set_floatx(other)
        found = results(function, arguments)
        assert found.keys() == expected.keys()
        for path, value in found.items():
            assert value.dtype == expected[path].dtype, (other, path)
            np.testing.assert_allclose(value, expected[path], 1e-6, 1e-6, err_msg=other)


@pytest.mark.parametrize("name", PARTS)
def test_results_are_those_of_float32(name, set_floatx):
    check_results(PARTS[name], set_floatx)


@pytest.mark.parametrize("name", REFUSED)
def test_what_rounds_integers_is_refused(name, set_floatx):
    """Keras makes other numbers of them there."""
    model, reward = classifier(), PSNRReward()
    set_floatx(name)
    for use in (lambda: reward(X, X), lambda: RewardTuning(model, reward=reward)):
        with pytest.raises(ValueError, match=f"set_dtype_policy.*floatx='{name}' on"):
            use()


def test_every_pixel_of_a_large_map_counts(set_floatx):
    """More pixels than an int16 or a float16 can number."""
    maps = np.ones((1, 300, 300, 2), "int32")
    maps[:, 150:, :, 1] = 2
    for other in OTHERS:
        set_floatx(other)
        (found,) = results(PanopticQualityReward(), (maps, maps)).values()
        assert found.tolist() == [2.0]


@trains
@pytest.mark.slow
@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_are_those_of_float32(name, set_floatx):
    check_results(sequence_part(name), set_floatx)


def is_large(y_true, y_pred):
    return 4096.0 + ops.cast(y_pred > 2, "float32")


@trains
@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_a_step_and_its_metrics_are_those_of_float32(name, set_floatx):
    """Metrics over 4,000 inputs, where half precision counts to 2,048, or 256."""

    def run():
        model = classifier(dtype="float32")
        tuned = RewardTuning(
            model, reward=is_large, terms=[MaximumLikelihood(0.1), KL("copy")], seed=0
        )
        tuned.compile(keras.optimizers.SGD(1e-6))
        history = tuned.fit(many, labels, batch_size=1000, shuffle=False, verbose=0)
        history = history.history
        values = tuned.evaluate(many, labels, verbose=0, return_dict=True)
        return {**{k: v[0] for k, v in history.items()}, **values}

    # Keras casts inputs to `floatx`: these are the same in all.
    many = np.round(inputs(4000) * 4) / 4
    labels = np.arange(4000) % 5
    expected = run()
    set_floatx(name)
    found = run()
    expected.pop("loss"), found.pop("loss")  # Keras's own metric, see its `floatx`
    np.testing.assert_allclose(
        list(found.values()), list(expected.values()), 1e-3, 1e-6
    )
