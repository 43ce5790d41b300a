"""RewardTuning as its users meet it."""

import io
import re

import keras
import numpy as np
import pytest
from keras import ops
from tiny import classifier, inputs, randomize, to_numpy, weights_of

from keras_reward import (
    KL,
    BernoulliPolicy,
    CategoricalPolicy,
    ColorfulnessReward,
    ColorPalette,
    Entropy,
    GaussianPolicy,
    Reward,
    RewardTuning,
    StandardizedBaseline,
    SumReward,
    Term,
    VividnessReward,
)

BACKEND = keras.config.backend()
ALWAYS = {"loss", "reward", "no_reward", "invalid_inputs"}


@keras.saving.register_keras_serializable(package="keras_reward_tests")
def chose_three(y_true, y_pred):
    """1 where the class 3 was chosen. Needs no targets."""
    return ops.cast(y_pred == 3, "float32")


@keras.saving.register_keras_serializable(package="keras_reward_tests")
def correct(y_true, y_pred):
    """1 where the target's class was chosen."""
    return ops.cast(ops.equal(y_pred, ops.cast(y_true, "int32")), "float32")


def tuner(model=None, reward=chose_three, learning_rate=0.1, **arguments):
    arguments = {"num_samples": 4, "seed": 0, **arguments}
    tuned = RewardTuning(model or classifier(), reward=reward, **arguments)
    tuned.compile(keras.optimizers.Adam(learning_rate))
    return tuned


def reward_of(tuned, *data):
    return tuned.evaluate(*data, verbose=0, return_dict=True)["reward"]


def test_both_ways_to_bind_are_the_same_thing():
    runs = []
    for bind in (
        lambda model: RewardTuning(model, reward=chose_three, seed=1),
        lambda model: RewardTuning(reward=chose_three, seed=1)(model),
    ):
        model = classifier()
        tuned = bind(model)
        assert isinstance(tuned, RewardTuning)
        assert tuned.model is model
        tuned.compile(keras.optimizers.Adam(0.1))
        tuned.fit(inputs(), shuffle=False, verbose=0)
        runs.append(weights_of(model))
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_unbound_tuner_tunes_any_number_of_models():
    recipe = RewardTuning(reward=chose_three)
    first, second = recipe(classifier()), recipe(classifier())
    assert first is not second
    assert "waiting for a model" in repr(recipe)


@pytest.mark.chance
def test_tuning_raises_the_reward_of_the_same_model():
    model = classifier()
    tuned = tuner(model)
    x = inputs(1280)
    before = reward_of(tuned, x)
    history = tuned.fit(x, epochs=4, validation_data=inputs(64, seed=1), verbose=0)
    assert reward_of(tuned, x) > max(0.9, before)
    assert history.history["val_reward"][-1] > 0.9
    assert tuned.model is model
    greedy = to_numpy(model(x)).argmax(-1)
    np.testing.assert_array_equal(tuned.predict(x, verbose=0), greedy)


def test_metrics_of_training_and_of_evaluation():
    tuned = tuner(reward=SumReward([chose_three], name=None) + 0.0 * TwoParts())
    tuned.fit(inputs(), verbose=0)
    components = {"chose_three", "two_parts", "left", "right"}
    logs = tuned.train_on_batch(inputs(), return_dict=True)
    training_only = {"reward_std", "entropy", "no_signal"}
    assert set(logs) == ALWAYS | training_only | components
    logs = tuned.evaluate(inputs(), verbose=0, return_dict=True)
    assert set(logs) == ALWAYS | components
    assert logs["loss"] == pytest.approx(-logs["reward"])


class TwoParts(Reward):
    component_names = ("left", "right")

    def call(self, y_true, y_pred):
        left = ops.cast(y_pred, "float32")
        return left, {"left": left, "right": 2.0 * left}


@pytest.mark.slow
def test_metric_values_by_hand():
    """One input, a reward that counts the rows: 0, 1, 2, 3."""

    def count(y_true, y_pred):
        return ops.cast(ops.arange(y_pred.shape[0]), "float32")

    model = classifier(classes=4)
    model.set_weights([0 * w for w in model.get_weights()])
    tuned = RewardTuning(model, reward=count, num_samples=4, seed=0)
    tuned.compile("sgd", run_eagerly=True)
    logs = tuned.train_on_batch(inputs(1), return_dict=True)
    assert float(logs["reward"]) == 1.5
    assert float(logs["reward_std"]) == pytest.approx(np.std(range(4), ddof=1))
    assert float(logs["entropy"]) == pytest.approx(np.log(4))
    assert float(logs["no_signal"]) == 0.0
    assert float(logs["no_reward"]) == 0.0
    # All log-probabilities are -log 4 and advantages sum to 0.
    assert float(logs["loss"]) == pytest.approx(0.0, abs=1e-6)


def test_a_model_compiled_for_its_own_loss_keeps_its_metrics_to_itself():
    model = classifier()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    x = inputs()
    model.fit(x, np.zeros(16), verbose=0)
    tuned = tuner(model)
    history = tuned.fit(x, validation_data=x, epochs=2, verbose=0).history
    names = [metric.name for metric in tuned.metrics]
    assert names.count("loss") == 1
    assert history["val_loss"] == pytest.approx([-r for r in history["val_reward"]])
    assert len(tuned.trainable_variables) == len(model.trainable_variables)
    model.evaluate(x, np.zeros(16), verbose=0)


def test_no_signal_counts_inputs_whose_samples_earn_the_same():
    def constant(y_true, y_pred):
        return ops.ones_like(ops.cast(y_pred, "float32"))

    model = classifier()
    before = weights_of(model)
    tuned = tuner(model, constant)
    logs = tuned.train_on_batch(inputs(), return_dict=True)
    assert float(logs["no_signal"]) == 1.0
    assert float(logs["reward"]) == 1.0
    for a, b in zip(weights_of(model), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_single_sample_has_no_spread_to_report():
    tuned = tuner(num_samples=1, baseline="greedy")
    logs = tuned.train_on_batch(inputs(), return_dict=True)
    assert set(logs) == ALWAYS | {"entropy"}


@pytest.mark.chance
def test_targets_are_repeated_for_the_samples_of_an_input():
    """A model that can only be right if rows and targets stay in order."""
    tuned = tuner(reward=correct, learning_rate=0.2)
    x = np.repeat(np.eye(3, dtype="float32"), 200, 0)
    y = np.repeat([4, 0, 2], 200)
    tuned.fit(x, y, epochs=6, verbose=0)
    np.testing.assert_array_equal(tuned.predict(np.eye(3), verbose=0), [4, 0, 2])
    assert reward_of(tuned, x, y) == 1.0


def test_sample_weight_in_evaluation_weighs_the_loss():
    tuned = tuner(reward=correct)
    x = inputs(4)
    y = tuned.predict(x, verbose=0)
    y[0] += 1
    weight = np.array([3.0, 1.0, 1.0, 0.0])
    logs = tuned.evaluate(x, y, sample_weight=weight, verbose=0, return_dict=True)
    assert logs["reward"] == pytest.approx(0.75)
    assert logs["loss"] == pytest.approx(-2.0 / 4)


class Squares(keras.utils.PyDataset):
    """Batches of `(x, y, sample_weight)`."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return inputs(8, seed=index), np.full(8, 3), np.ones(8)


def torch_loader():
    import torch

    data = torch.utils.data.TensorDataset(
        torch.tensor(inputs(16)), torch.full((16,), 3)
    )
    return torch.utils.data.DataLoader(data, batch_size=8)


def tf_dataset():
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((inputs(20), np.full(20, 3)))
    return data.batch(8)


def generator():
    while True:
        yield inputs(32), np.full(32, 3)


DATASETS = {
    "arrays": lambda: (inputs(20), np.full(20, 3)),
    "py_dataset": lambda: (Squares(),),
    "generator": lambda: (generator(),),
}
if BACKEND == "torch":
    DATASETS["data_loader"] = lambda: (torch_loader(),)
if BACKEND == "tensorflow":
    DATASETS["tf_data"] = lambda: (tf_dataset(),)


@pytest.mark.chance
@pytest.mark.parametrize("kind", DATASETS)
def test_datasets_of_every_kind(kind):
    tuned = tuner(reward=correct)
    steps = {"steps_per_epoch": 3} if kind == "generator" else {}
    tuned.fit(*DATASETS[kind](), epochs=50, shuffle=False, verbose=0, **steps)
    assert reward_of(tuned, inputs(64, seed=5), np.full(64, 3)) > 0.8


@pytest.mark.chance
def test_checkpoint_keeps_the_model_of_the_best_greedy_reward(tmp_path):
    tuned = tuner(learning_rate=0.5)
    keep = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras", monitor="val_reward", mode="max", save_best_only=True
    )
    x, held_out = inputs(32), inputs(64, seed=1)
    history = tuned.fit(
        x, epochs=6, validation_data=held_out, callbacks=[keep], verbose=0
    ).history
    best = keras.models.load_model(tmp_path / "best.keras")
    assert reward_of(best, held_out) == pytest.approx(max(history["val_reward"]))
    np.testing.assert_allclose(
        np.array(history["val_loss"]), -np.array(history["val_reward"]), rtol=1e-6
    )


def test_saved_tuner_loads_with_all_its_settings(tmp_path):
    policy = GaussianPolicy(stddev=0.2, learn_stddev=True)
    tuned = tuner(
        reward=Negative(),
        policy=policy,
        num_samples=3,
        baseline=StandardizedBaseline("moving_average", epsilon=1e-3),
        update="first",
        temperature=0.5,
        terms=[Entropy(0.01), KL("copy", 0.1)],
        model_training=True,
    )
    x = inputs()
    tuned.fit(x, verbose=0)
    tuned.save(tmp_path / "tuned.keras")
    loaded = keras.models.load_model(tmp_path / "tuned.keras")
    settings, loaded_settings = tuned.get_config(), loaded.get_config()
    assert settings.pop("model")["class_name"] == "Sequential"
    loaded_settings.pop("model")
    assert settings == loaded_settings
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), tuned.predict(x, verbose=0)
    )
    for a, b in zip(weights_of(loaded), weights_of(tuned), strict=True):
        np.testing.assert_array_equal(a, b)


@keras.saving.register_keras_serializable(package="keras_reward_tests")
class Negative(Reward):
    def call(self, y_true, y_pred):
        return -ops.mean(ops.square(y_pred), axis=-1)


def test_tuned_model_is_saved_as_ever(tmp_path):
    tuned = tuner()
    tuned.fit(inputs(), verbose=0)
    tuned.model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        loaded.predict(inputs(), verbose=0), tuned.model.predict(inputs(), verbose=0)
    )


def test_weights_of_a_tuner_round_trip(tmp_path):
    tuned, other = tuner(seed=1), tuner(seed=2)
    tuned.fit(inputs(), verbose=0)
    tuned.save_weights(tmp_path / "tuned.weights.h5")
    other.load_weights(tmp_path / "tuned.weights.h5")
    for a, b in zip(weights_of(other.model), weights_of(tuned.model), strict=True):
        np.testing.assert_array_equal(a, b)


class Subclassed(keras.Model):
    """A user's model, unbuilt, without a `training` argument."""

    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(8, activation="relu")
        self.head = keras.layers.Dense(5)

    def call(self, x):
        return self.head(self.hidden(x))


def functional_with_two_inputs():
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    joined = keras.layers.Concatenate()([a, b])
    return randomize(keras.Model({"a": a, "b": b}, keras.layers.Dense(5)(joined)))


@pytest.mark.chance
def test_subclassed_unbuilt_model():
    tuned = tuner(Subclassed(), learning_rate=0.05)
    x = inputs(640)
    tuned.fit(x, epochs=6, verbose=0)
    assert reward_of(tuned, x) > 0.9
    assert tuned.predict(x, verbose=0).shape == (640,)


@pytest.mark.chance
def test_several_inputs():
    tuned = tuner(functional_with_two_inputs())
    x = {"a": inputs(640), "b": inputs(640, 2, seed=1)}
    tuned.fit(x, epochs=6, verbose=0)
    assert reward_of(tuned, x) > 0.9


def test_probabilities_are_read_as_such():
    """The same distribution as logits and as probabilities: the same run."""
    runs = []
    for activation, from_logits in (("softmax", False), (None, True)):
        model = classifier(activation=activation)
        policy = CategoricalPolicy(from_logits=from_logits)
        tuned = tuner(model, policy=policy)
        tuned.fit(inputs(), epochs=3, shuffle=False, verbose=0)
        runs.append(weights_of(model))
    for a, b in zip(*runs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.chance
def test_bernoulli_probabilities_are_read_as_such():
    @keras.saving.register_keras_serializable(package="keras_reward_tests")
    def count(y_true, y_pred):
        return ops.mean(ops.cast(y_pred, "float32"), axis=-1)

    for activation, from_logits in (("sigmoid", False), (None, True)):
        policy = BernoulliPolicy(from_logits=from_logits)
        tuned = tuner(classifier(activation=activation), count, policy=policy)
        tuned.fit(inputs(640), epochs=5, verbose=0)
        assert reward_of(tuned, inputs(64)) > 0.95


@pytest.mark.chance
def test_regression_model_with_a_reward_that_has_no_gradient():
    def within(y_true, y_pred):
        near = ops.abs(y_pred - y_true) < 0.3
        return ops.mean(ops.cast(near, "float32"), axis=-1)

    x = inputs(1280)
    y = x @ np.random.default_rng(3).normal(size=(3, 5)).astype("float32")
    tuned = tuner(
        classifier(), within, policy=GaussianPolicy(stddev=0.3), learning_rate=0.03
    )
    before = reward_of(tuned, x, y)
    tuned.fit(x, y, epochs=6, verbose=0)
    assert reward_of(tuned, x, y) > before + 0.3


@pytest.mark.chance
@pytest.mark.parametrize("update", ["all", "first"])
@pytest.mark.parametrize(
    "baseline", ["leave_one_out", "greedy", "mean", "moving_average", None]
)
def test_every_baseline_and_update_learns(baseline, update):
    tuned = tuner(baseline=baseline, update=update)
    x = inputs(640)
    tuned.fit(x, epochs=6, verbose=0)
    assert reward_of(tuned, x) > 0.9


@pytest.mark.chance
def test_settings_beside_the_defaults_learn():
    tuned = tuner(baseline="standardized", terms=[Entropy(0.01)], temperature=0.8)
    tuned.fit(inputs(640), epochs=6, verbose=0)
    assert reward_of(tuned, inputs(64)) > 0.9


@pytest.mark.chance
def test_entropy_bonus_keeps_entropy_up():
    final = {}
    for weight in (0.0, 1.0):
        tuned = tuner(terms=[Entropy(weight)])
        final[weight] = tuned.fit(inputs(64), epochs=20, verbose=0).history["entropy"]
    assert final[1.0][-1] > final[0.0][-1] + 0.3


class OwnPolicy(Subclassed):
    """A model that brings the policy protocol."""

    def encode(self, x, training=False):
        return CategoricalPolicy(from_logits=True).bind(self).encode(x)

    def sample(self, context, num_samples, seed=None, noise=None):
        return CategoricalPolicy().sample(context, num_samples, seed, noise)

    def likelihood(self, context, samples, entropy_gradient=False):
        return CategoricalPolicy().likelihood(
            context, samples, entropy_gradient=entropy_gradient
        )

    def mode(self, context):
        return CategoricalPolicy().mode(context)

    def decode(self, x, samples):
        return ops.reshape(samples, (-1,)) + 10


@pytest.mark.chance
def test_a_model_that_brings_the_protocol_is_its_own_policy():
    def chose_thirteen(y_true, y_pred):
        return ops.cast(y_pred == 13, "float32")

    tuned = tuner(OwnPolicy(), chose_thirteen, learning_rate=0.05)
    assert tuned.policy.model is tuned.model
    x = inputs(640)
    tuned.fit(x, epochs=6, verbose=0)
    assert reward_of(tuned, x) > 0.9
    assert tuned.predict(x, verbose=0).min() >= 10
    with pytest.raises(ValueError, match=r"own policy.*temperature=0\.5"):
        tuner(OwnPolicy(), temperature=0.5)

    class Other(Term):
        def choices(self, policy, samples):
            return [samples]

    with pytest.raises(ValueError, match=r"how likely other choices are.*1 choices"):
        tuner(OwnPolicy(), terms=[Other()]).train_on_batch(x)


def test_metrics_given_to_compile_see_greedy_outputs():
    tuned = RewardTuning(classifier(), reward=correct, seed=0)
    tuned.compile("sgd", metrics=[keras.metrics.MeanAbsoluteError(name="distance")])
    x = inputs(16)
    y = tuned.predict(x, verbose=0) + 2
    history = tuned.fit(x, y, validation_data=(x, y), verbose=0).history
    assert "distance" not in history
    logs = tuned.evaluate(x, y, verbose=0, return_dict=True)
    expected = np.abs(tuned.predict(x, verbose=0) - y).mean()
    assert logs["distance"] == pytest.approx(expected)


def test_steps_per_execution():
    runs = []
    for steps in (1, 4):
        tuned = RewardTuning(classifier(), reward=chose_three, seed=0)
        tuned.compile(keras.optimizers.Adam(0.1), steps_per_execution=steps)
        if BACKEND == "torch" and steps > 1:  # Keras has it not
            with pytest.raises(ValueError, match="steps_per_execution"):
                tuned.fit(inputs(64), verbose=0)
            return
        tuned.fit(inputs(64), batch_size=8, shuffle=False, verbose=0)
        runs.append(weights_of(tuned.model))
    for a, b in zip(*runs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_progress_bar_leads_with_the_reward(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr("sys.stdout", shown)
    tuned = tuner()
    tuned.fit(inputs(), validation_data=inputs(), verbose=2)
    tuned.evaluate(inputs(), verbose=1)
    lines = [line for line in re.split(r"[\r\n\x08]", shown.getvalue()) if ":" in line]
    assert lines[0].startswith("Credit by outputs")
    assert re.search(r"step - reward: \S+ - val_reward: \S+ - entropy", lines[1])
    assert re.search(r"step - reward: \S+ - loss", lines[-1])


def test_callbacks_may_be_given_alone_or_not_at_all():
    class Count(keras.callbacks.Callback):
        epochs = 0

        def on_epoch_end(self, epoch, logs=None):
            assert "reward" in logs
            Count.epochs += 1

    tuned = tuner()
    tuned.fit(inputs(), epochs=2, callbacks=Count(), verbose=0)
    tuned.fit(inputs(), epochs=1, callbacks=[Count()], verbose=0)
    assert Count.epochs == 3


@pytest.mark.chance
def test_colorizer_paints_what_the_reward_sees():
    """The library's first use: colour bins on a coarse grid, painted on grey."""
    palette = ColorPalette(spacing=30.0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(palette.num_colors, 4, strides=4),
        ]
    )
    randomize(model, scale=0.1)
    tuned = tuner(
        model,
        ColorfulnessReward() + 0.0 * VividnessReward(name="monitor"),
        policy=CategoricalPolicy(codec=palette),
        learning_rate=0.05,
    )
    gray = np.random.default_rng(0).uniform(0.3, 0.7, (32, 8, 8, 1)).astype("float32")
    history = tuned.fit(gray, epochs=30, shuffle=False, verbose=0).history
    assert history["reward"][-1] > history["reward"][0]
    assert history["monitor"] == pytest.approx(history["vividness"])
    images = tuned.predict(gray, verbose=0)
    assert images.shape == (32, 8, 8, 3)
    # Of a hue on the edge of two bins, which the palette has, rounding decides its bin.
    seen = tuned.evaluate(gray, verbose=0, return_dict=True)["vividness"]
    expected = to_numpy(VividnessReward()(None, images)).mean()
    assert seen == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_dropout_is_off_unless_asked():
    seen = []

    class Spy(keras.layers.Layer):
        def call(self, x, training=None):
            seen.append(training)
            return x

    for flag in (False, True):
        model = keras.Sequential([keras.Input((3,)), Spy(), keras.layers.Dense(5)])
        tuned = RewardTuning(model, reward=chose_three, model_training=flag)
        tuned.compile("sgd", run_eagerly=True)
        seen.clear()
        tuned.train_on_batch(inputs())
        assert bool(seen[-1]) is flag
