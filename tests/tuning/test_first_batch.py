"""A policy sees the first batch of any data, once, and nothing of it is lost."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops
from tiny import classifier, inputs, to_numpy

from keras_reward import CategoricalPolicy, RewardTuning
from keras_reward.evaluation import reward_distribution
from keras_reward.tuning.first_batch import first_batch

BACKEND = keras.config.backend()
READS = "ignore:CategoricalPolicy reads"


@keras.saving.register_keras_serializable(package="keras_reward_tests")
class Softmaxed(keras.Model):
    """Its layers do not tell that it returns probabilities. It counts its rows."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(5)
        self.seen = []

    def call(self, x):
        self.seen.append(x.shape[0])
        return ops.softmax(self.dense(x))


@keras.saving.register_keras_serializable(package="keras_reward_tests")
def class_is_3(y_true, y_pred):
    return ops.cast(y_pred == 3, "float32")


def tuner(model=None, **arguments):
    tuned = RewardTuning(model or Softmaxed(), reward=class_is_3, seed=0, **arguments)
    tuned.compile("sgd")
    return tuned


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return inputs(4, seed=index), np.zeros(4, "int32")


def batches():
    yield from (Batches()[index] for index in range(2))


def tensorflow_dataset():
    import tensorflow as tf

    return tf.data.Dataset.from_generator(
        batches,
        output_signature=(
            tf.TensorSpec((None, 3), "float32"),
            tf.TensorSpec((None,), "int32"),
        ),
    )


def torch_loader():
    import torch

    rows = [torch.from_numpy(inputs(8)), torch.zeros(8, dtype=torch.int32)]
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*rows), 4)


DATA = {"arrays": lambda: inputs(8), "generator": batches, "PyDataset": Batches}
if BACKEND == "tensorflow":
    DATA["tf.data"] = tensorflow_dataset
if BACKEND == "torch":
    DATA["DataLoader"] = torch_loader


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_a_run_sees_its_first_batch(kind, method):
    tuned = tuner()
    assert tuned.policy.from_logits == "auto"
    with pytest.warns(UserWarning, match="as probabilities") as caught:
        getattr(tuned, method)(DATA[kind](), verbose=0)
    assert len([w for w in caught if "as probabilities" in str(w.message)]) == 1
    assert tuned.policy.from_logits is False
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # once, not once a run
        tuned.predict(inputs(4), verbose=0)


@pytest.mark.filterwarnings(READS)
@pytest.mark.parametrize(
    "method", ["train_on_batch", "test_on_batch", "predict_on_batch", "__call__"]
)
def test_a_single_batch_is_seen(method):
    tuned = tuner()
    getattr(tuned, method)(inputs(4))
    assert tuned.policy.from_logits is False


@pytest.mark.filterwarnings(READS)
def test_samples_of_a_tuner_that_has_not_run():
    tuned = tuner()
    reward_distribution(tuned, (inputs(4), None), num_samples=2, verbose=0)
    assert tuned.policy.from_logits is False


@pytest.mark.filterwarnings(READS)
def test_no_batch_of_a_generator_is_lost():
    expected = np.concatenate([x for x, _ in batches()])
    tuned = tuner(Softmaxed())
    greedy = tuned.predict(batches(), verbose=0)
    logits = to_numpy(tuned.model.dense(expected))
    np.testing.assert_array_equal(greedy, logits.argmax(-1))


def test_first_batch_and_the_rest():
    batch, again = first_batch(batches())
    np.testing.assert_array_equal(batch[0], inputs(4, seed=0))
    found = [x for x, _ in again]
    np.testing.assert_array_equal(found, [inputs(4, seed=0), inputs(4, seed=1)])
    x = {"a": inputs(4), "b": None}
    assert first_batch(x) == ((x,), x)
    assert first_batch(None) == (None, None)
    assert first_batch(i for i in ())[0] is None
    data = Batches()
    np.testing.assert_array_equal(first_batch(data)[0][0], inputs(4, seed=0))
    assert first_batch(data)[1] is data


def test_a_known_activation_needs_no_batch():
    model, calls = classifier(activation="softmax"), []
    tuned = tuner(model)
    tuned.policy.check_first_batch = calls.append
    tuned.evaluate(inputs(4), verbose=0)
    assert calls == []


@pytest.mark.filterwarnings(READS)
def test_few_rows_are_enough_but_a_fixed_batch_is_kept():
    tuned = tuner()
    tuned.predict(inputs(64), batch_size=64, verbose=0)
    assert tuned.model.seen[0] == 8
    x = keras.Input(batch_shape=(16, 3))
    inner = Softmaxed()
    tuned = tuner(keras.Model(x, inner(x)))
    inner.seen.clear()
    tuned.predict(inputs(16), batch_size=16, verbose=0)
    assert inner.seen[0] == 16


@pytest.mark.filterwarnings(READS)
def test_what_was_found_is_saved(tmp_path):
    tuned = tuner()
    before = tuned.predict(inputs(4), verbose=0)
    tuned.save(tmp_path / "tuned.keras")
    loaded = keras.models.load_model(tmp_path / "tuned.keras")
    assert loaded.policy.from_logits is False
    np.testing.assert_array_equal(loaded.predict(inputs(4), verbose=0), before)


@pytest.mark.filterwarnings(READS)
def test_a_run_is_that_of_the_same_model_with_logits():
    """The distribution is the same, so the metrics of a step are."""
    logs = []
    for function in (ops.softmax, lambda x: x):
        inner, x = classifier(), keras.Input((3,))
        function = layers.Lambda(function, output_shape=(5,))
        tuned = tuner(keras.Model(x, function(inner(x))), num_samples=8)
        logs.append(tuned.train_on_batch(inputs(), return_dict=True))
    for name in ("reward", "entropy", "loss"):
        assert float(logs[0][name]) == pytest.approx(float(logs[1][name]), rel=1e-4)
    assert isinstance(tuned.policy, CategoricalPolicy)
