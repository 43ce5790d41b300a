"""A frozen Keras model as a reward."""

import os

import keras
import numpy as np
import pytest
from backends import trains
from keras import ops
from tiny import classifier, inputs, randomize, to_numpy, weights_of

from keras_reward import FunctionReward, ModelReward, RewardTuning

# With dropout and batch normalisation, which a call with training=True would show.
CLASSES = 5


def reward_model(seed=1, trainable=True):
    """Scores `(rows, 3)` inputs with `(rows,)` classes."""
    x, chosen = keras.Input((3,)), keras.Input((), dtype="int32")
    hidden = keras.layers.Concatenate()([x, keras.layers.Embedding(CLASSES, 2)(chosen)])
    hidden = keras.layers.BatchNormalization()(hidden)
    hidden = keras.layers.Dropout(0.5, seed=3)(hidden)
    score = keras.layers.Dense(1)(hidden)
    model = randomize(keras.Model([x, chosen], score), seed)
    for weight in model.non_trainable_weights:  # a variance is not negative
        weight.assign(ops.abs(weight))
    model.trainable = trainable
    return model


def by_hand(model, x, chosen):
    """The reward model's arithmetic in NumPy."""
    embeddings, gamma, beta, mean, variance, kernel, bias = (
        dict(zip([w.path.split("/")[-1] for w in model.weights], weights, strict=True))[
            name
        ]
        for weights in [weights_of(model)]
        for name in (
            *("embeddings", "gamma", "beta", "moving_mean", "moving_variance"),
            *("kernel", "bias"),
        )
    )
    hidden = np.concatenate([x, embeddings[chosen]], axis=-1)
    hidden = (hidden - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    return (hidden @ kernel + bias)[:, 0]


def tuner(reward, **arguments):
    tuned = RewardTuning(classifier(), reward=reward, seed=0, **arguments)
    tuned.compile(keras.optimizers.Adam(0.05))
    return tuned


def test_it_scores_as_the_model_does():
    model, chosen = reward_model(), np.arange(16) % CLASSES
    score = to_numpy(ModelReward(model)(None, chosen, inputs=inputs()))
    np.testing.assert_allclose(score, by_hand(model, inputs(), chosen), rtol=1e-4)


def test_a_reward_model_of_outputs_alone():
    layers = [keras.Input((4,)), keras.layers.Dense(1), keras.layers.Reshape(())]
    model = randomize(keras.Sequential(layers))
    outputs = inputs(features=4)
    kernel, bias = weights_of(model)
    np.testing.assert_allclose(
        to_numpy(ModelReward(model, with_inputs=False)(None, outputs)),
        outputs @ kernel[:, 0] + bias,
        rtol=1e-5,
    )


@trains
@pytest.mark.chance
@pytest.mark.parametrize("trainable", [True, False])
def test_tuning_raises_the_reward_and_leaves_the_reward_model_alone(trainable):
    model = reward_model(trainable=trainable)
    flags = [layer.trainable for layer in model.layers]
    before = weights_of(model)
    tuned = tuner(1.0 * ModelReward(model), num_samples=8)
    own = len(tuned.model.trainable_variables)
    first = tuned.evaluate(inputs(), verbose=0, return_dict=True)["reward"]
    every = [by_hand(model, inputs(), np.full(16, c)) for c in range(CLASSES)]
    best = np.max(every, axis=0).mean()  # of the best class of each input
    tuned.fit(np.tile(inputs(), (20, 1)), batch_size=16, epochs=3, verbose=0)
    last = tuned.evaluate(inputs(), verbose=0, return_dict=True)["reward"]
    assert best - last < 0.5 * (best - first)
    assert model.trainable is trainable
    assert [layer.trainable for layer in model.layers] == flags
    for one, other in zip(before, weights_of(model), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(tuned.trainable_variables) == own
    assert {v.path for v in tuned.trainable_variables}.isdisjoint(
        {v.path for v in model.variables}
    )


def test_its_weights_are_arguments_of_the_step_not_constants():
    model = reward_model()
    tuned = tuner(ModelReward(model))
    passed = {id(variable) for variable in tuned.non_trainable_variables}
    assert passed >= {id(variable) for variable in model.variables}
    # So a reward model that changes between two steps counts, without compiling again.
    before = tuned.evaluate(inputs(), verbose=0, return_dict=True)["reward"]
    step = tuned.test_function
    model.set_weights([0.0 * weight for weight in weights_of(model)])
    after = tuned.evaluate(inputs(), verbose=0, return_dict=True)["reward"]
    assert tuned.test_function is step
    assert before != 0.0
    assert after == 0.0


@trains
def test_a_reward_model_that_shares_the_tuned_model_is_held_once():
    model = classifier()
    x, chosen = keras.Input((3,)), keras.Input((), dtype="int32")
    picked = ops.sum(model(x) * ops.one_hot(chosen, CLASSES), axis=-1)
    tuned = RewardTuning(
        model, reward=ModelReward(keras.Model([x, chosen], picked)), seed=0
    )
    tuned.compile(keras.optimizers.Adam(0.05))
    tuned.fit(inputs(), verbose=0)
    names = [v.path for v in tuned.trainable_variables + tuned.non_trainable_variables]
    assert len(set(names)) == len(names)


@pytest.mark.slow
@trains
@pytest.mark.parametrize("save_model", [False, True])
def test_the_checkpoint_holds_the_reward_model_only_if_asked(tmp_path, save_model):
    path = str(tmp_path / "tuned.keras")
    x, chosen = keras.Input((3,)), keras.Input((), dtype="int32")
    embedded = keras.layers.Embedding(CLASSES, 20_000)(chosen)
    wide = keras.layers.Dense(1)(keras.layers.Concatenate()([x, embedded]))
    model = randomize(keras.Model([x, chosen], wide), 2)
    tuned = tuner(FunctionReward(zero) + ModelReward(model, save_model=save_model))
    tuned.fit(inputs(), verbose=0)
    tuned.save(path)
    assert (os.path.getsize(path) > 400_000) is save_model
    loaded = keras.saving.load_model(path)
    np.testing.assert_array_equal(
        loaded.predict(inputs(), verbose=0), tuned.predict(inputs(), verbose=0)
    )
    if not save_model:
        with pytest.raises(ValueError, match=r"no model.*save_model=True"):
            loaded.evaluate(inputs(), verbose=0)
        loaded.reward.rewards[1].model = model
    assert loaded.evaluate(inputs(), verbose=0) == tuned.evaluate(inputs(), verbose=0)
    histories = [
        t.fit(inputs(), shuffle=False, verbose=0).history["reward"]
        for t in (tuned, loaded)
    ]
    assert histories[0] == histories[1]


@keras.saving.register_keras_serializable(package="keras_reward_tests")
def zero(y_true, y_pred):
    return ops.zeros_like(ops.cast(y_pred, "float32"))


def test_wrong_models_are_refused():
    with pytest.raises(ValueError, match=r"must be a built keras.Model.*Received"):
        ModelReward("critic")
    with pytest.raises(ValueError, match="must be a built"):
        ModelReward(keras.Sequential([keras.layers.Dense(1)]))
    wide = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match=r"Received: shape \(16, 2\)"):
        ModelReward(wide, with_inputs=False)(None, inputs())
