"""Credit by parts: when, with what, and how a step behaves.

Its gradient is tested in `test_credit_gradient.py`.
"""

import keras
import numpy as np
import pytest
from keras import ops
from pixels import INPUTS, MASKS, linear_model, match_of_rows, neighbours_agree
from tiny import weights_of

from keras_reward import (
    BernoulliPolicy,
    CategoricalPolicy,
    DiceReward,
    Entropy,
    GaussianPolicy,
    MapReward,
    MeanIoUReward,
    ProductReward,
    Reward,
    RewardTuning,
    SumReward,
    Term,
)

# Which it is


def tuner(reward, policy="bernoulli", shape=(2, 2), **arguments):
    return RewardTuning(linear_model(*shape), reward=reward, policy=policy, **arguments)


class Mixes:
    """A codec that says nothing of positions, and one that does."""

    def decode(self, inputs, samples):
        return samples


class KeepsApart(Mixes):
    independent_positions = True


class OtherDice(DiceReward):
    def call(self, y_true, y_pred):
        return super().call(y_true, y_pred) ** 2


class OtherSum(SumReward):
    def merge(self, values):
        return super().merge(values) ** 2


class OtherProduct(ProductReward):
    def call(self, y_true, y_pred, inputs=None):
        reward, components = super().call(y_true, y_pred, inputs)
        return reward**2, components


class MixesAfterAll(KeepsApart):
    def decode(self, inputs, samples):
        return ops.flip(samples, axis=-1)


class OneNumberForAll(BernoulliPolicy):
    def noise(self, context, num_samples, seed):
        noise = super().noise(context, num_samples, seed)
        return ops.broadcast_to(noise[..., :1, :1], ops.shape(noise))


class DrawsAnew(BernoulliPolicy):
    def sample(self, context, num_samples, seed=None, noise=None):
        return super().sample(2.0 * context, num_samples, seed, noise)


def test_auto_credits_parts_where_both_can():
    dice, unknown = DiceReward(1), match_of_rows
    assert tuner(dice).by_parts
    assert tuner(dice + 0.0 * unknown).by_parts
    assert tuner(dice, BernoulliPolicy(codec=KeepsApart())).by_parts
    assert tuner(MapReward(neighbours_agree), GaussianPolicy()).by_parts
    assert not tuner(dice, credit="output").by_parts
    # No alternatives; of one factor, of one summand.
    for reward in (unknown, dice * unknown, dice + unknown, OtherDice(1)):
        assert not tuner(reward).by_parts
    assert not tuner(dice * MapReward(neighbours_agree)).by_parts
    assert not tuner(0.0 * dice).by_parts
    assert not tuner(OtherSum([dice])).by_parts
    assert not tuner(OtherProduct([dice, MeanIoUReward(1)])).by_parts
    # No choices, or not independent ones.
    assert not tuner(dice, GaussianPolicy()).by_parts
    assert not tuner(dice, BernoulliPolicy(codec=Mixes())).by_parts
    assert not tuner(dice, BernoulliPolicy(codec=MixesAfterAll())).by_parts
    assert not tuner(dice, OneNumberForAll()).by_parts
    assert not tuner(dice, DrawsAnew()).by_parts


REFUSED = {
    "reward": (match_of_rows, "bernoulli", "no `alternatives` in reward 'match_of"),
    "factor": (DiceReward(1) * match_of_rows, "bernoulli", "'match_of_rows'"),
    "inherited": (OtherDice(1), "bernoulli", "'other_dice'"),
    "codec": (DiceReward(1), BernoulliPolicy(codec=Mixes()), "codec Mixes"),
    "gaussian": (DiceReward(1), "gaussian", "'dice' is not a `MapReward`"),
    "policy": (DiceReward(1), DrawsAnew(), "DrawsAnew draws or decodes in a way"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_parts_are_refused_with_what_is_missing(name):
    reward, policy, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"credit='parts', but.*{message}"):
        tuner(reward, policy, credit="parts")


def test_an_unknown_credit_is_refused():
    with pytest.raises(ValueError, match="credit='pixels'"):
        tuner(DiceReward(1), credit="pixels")
    with pytest.raises(ValueError, match="credit='pixels'"):
        RewardTuning(reward=DiceReward(1), credit="pixels")


def test_outputs_need_several_samples_and_parts_do_not():
    assert tuner(DiceReward(1), num_samples=1).by_parts
    RewardTuning(reward=DiceReward(1), policy="bernoulli", num_samples=1)(
        linear_model(2, 2)
    )
    for given in ({"credit": "output"}, {"reward": match_of_rows}):
        with pytest.raises(ValueError, match="num_samples=1"):
            tuner(**{"reward": DiceReward(1), "num_samples": 1, **given})
    with pytest.raises(ValueError, match="num_samples=1"):
        tuner(MapReward(neighbours_agree), num_samples=1)


def test_the_log_says_once_which_it_is(capsys):
    x, y = INPUTS.astype("float32"), MASKS
    for reward, line in (
        (
            DiceReward(1),
            "Credit by parts: each part of an output gets its own, without",
        ),
        (match_of_rows, "Credit by outputs: one reward for the whole of each (no `alt"),
    ):
        tuned = tuner(reward)
        tuned.compile(keras.optimizers.SGD(0.1))
        tuned.fit(x, y, verbose=0)
        assert "Credit" not in capsys.readouterr().out
        for times in (1, 0):
            tuned.fit(x, y, verbose=2)
            assert capsys.readouterr().out.count(line) == times


class WrongShape(Reward):
    def call(self, y_true, y_pred):
        return match_of_rows(y_true, y_pred)

    def alternatives(self, y_true, y_pred, choices):
        return ops.cast(y_pred, "float32")


class WrongDtype(WrongShape):
    def alternatives(self, y_true, y_pred, choices):
        return ops.stack([y_pred, y_pred], axis=-1)


def far_away(y_true, y_pred):
    return ops.cast(y_pred, "float32")


def one_number(y_true, y_pred):
    return ops.mean(ops.cast(y_pred, "float32"), axis=(1, 2))


def one_row(y_true, y_pred):
    return ops.mean(ops.cast(y_pred, "float32"), axis=0, keepdims=True)


def in_numpy(y_true, y_pred):
    return y_pred.astype("float32").numpy()


class AlternativesInNumPy(WrongShape):
    def alternatives(self, y_true, y_pred, choices):
        return y_pred.numpy()[..., None]


def larger(y_true, y_pred):
    return ops.repeat(ops.cast(y_pred, "float32"), 2, axis=1)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (WrongShape(), r"'wrong_shape'.*Expected: shape .*2, 2, 2\)\. Received: shape"),
        (WrongDtype(), r"'wrong_dtype' must return floats.*Received: int"),
        (MapReward(far_away, reach=2), r"`reach`.*'far_away'.*reach=2, a map of 2x2"),
        (MapReward(one_number), r"'one_number'.*\(rows, height, width\)"),
        (MapReward(larger), r"'larger'.*a map of shape \(4, 2\)"),
        (MapReward(one_row), r"'one_row'.*Expected: 6 rows.*shape \(1, 2, 2\)"),
        (MapReward(in_numpy), r"`reward=MapReward\(HostReward\(in_numpy\)\)`"),
        (
            AlternativesInNumPy(),
            "`alternatives` of reward 'alternatives_in_num",
        ),
    ],
)
def test_what_does_not_fit_is_refused(reward, message):
    tuned = tuner(reward, credit="parts")
    tuned.compile(keras.optimizers.SGD(0.1))
    with pytest.raises(ValueError, match=message):
        tuned.train_on_batch(INPUTS.astype("float32"), MASKS)


def test_wrong_arguments_of_map_rewards():
    with pytest.raises(ValueError, match="reach=-1"):
        MapReward(far_away, reach=-1)
    with pytest.raises(ValueError, match="reduction='max'"):
        MapReward(far_away, reduction="max")
    with pytest.raises(ValueError, match="function=3"):
        MapReward(3)


class UsesAdvantages(Term):
    def loss(self, update):
        good = ops.cast(update.rollout.advantages > 0, "float32")
        return -ops.mean(good * update.likelihood.log_prob)


def test_a_term_that_needs_advantages_is_told_to_go_by_outputs():
    x, y = INPUTS.astype("float32"), MASKS
    for credit in ("auto", "output"):
        tuned = tuner(DiceReward(1), terms=[UsesAdvantages()], credit=credit)
        tuned.compile(keras.optimizers.SGD(0.1))
        if credit == "output":
            tuned.train_on_batch(x, y)
            continue
        with pytest.raises(ValueError, match=r"'uses_advantages'.*credit=.output"):
            tuned.train_on_batch(x, y)


# Steps


def segmenter(dtype="float32"):
    keras.config.set_dtype_policy(dtype)
    try:
        model = linear_model(2, 2, 3, dtype=dtype)
    finally:
        keras.config.set_dtype_policy("float32")
    return model


def data(batch=24):
    generator = np.random.default_rng(3)
    x = generator.normal(size=(batch, 2)).astype("float32")
    return x, generator.integers(0, 3, (batch, 2, 2)).astype("int32")


@keras.saving.register_keras_serializable(package="keras_reward_tests")
class GivenNoise(CategoricalPolicy):
    """Takes its random numbers from the data: `x = {"features", "noise"}`."""

    independent_parts = True  # although it draws in a way of its own
    choice_probabilities = CategoricalPolicy.choice_probabilities

    def encode(self, x, training=False):
        self.given = x["noise"]
        return super().encode(x["features"], training=training)

    def noise(self, context, num_samples, seed):
        return self.given


@pytest.mark.slow
def test_compiled_equals_eager():
    features, y = data()
    noise = np.random.default_rng(4).random((24, 2, 2, 2)).astype("float32")
    x = {"features": features, "noise": noise}
    modes = [{"run_eagerly": True}, {"run_eagerly": False}]
    if keras.config.backend() == "tensorflow":
        modes.append({"jit_compile": True})
    runs = []
    for mode in modes:
        tuned = RewardTuning(
            segmenter(), MeanIoUReward(3), GivenNoise(), 2, terms=[Entropy(0.1)]
        )
        tuned.compile(keras.optimizers.Adam(0.05), **mode)
        logs = tuned.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history
        runs.append((logs, weights_of(tuned.model)))
    for logs, weights in runs[1:]:
        for name, values in runs[0][0].items():
            np.testing.assert_allclose(logs[name], values, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(weights[0], runs[0][1][0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_run_that_is_saved_and_continued_equals_the_uninterrupted_one(tmp_path):
    def start():
        tuned = RewardTuning(segmenter(), MeanIoUReward(3), num_samples=1, seed=3)
        tuned.compile(keras.optimizers.Adam(0.05))
        return tuned

    def fit(tuned, epochs):
        tuned.fit(*data(), batch_size=8, epochs=epochs, shuffle=False, verbose=0)

    whole, first = start(), start()
    fit(whole, 3)
    fit(first, 1)
    first.save(tmp_path / "tuned.keras")
    resumed = keras.models.load_model(tmp_path / "tuned.keras")
    assert resumed.by_parts
    fit(resumed, 2)
    np.testing.assert_allclose(
        weights_of(resumed.model)[0], weights_of(whole.model)[0], rtol=1e-6
    )


def test_earlier_files_go_on_by_outputs():
    tuned = RewardTuning(segmenter(), MeanIoUReward(3), seed=3)
    config = tuned.get_config()
    assert RewardTuning.from_config(config).by_parts
    del config["credit"]
    assert not RewardTuning.from_config(config).by_parts


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(dtype):
    tuned = RewardTuning(segmenter(dtype), MeanIoUReward(3), num_samples=1, seed=0)
    tuned.compile(keras.optimizers.Adam(0.02))
    x, y = data(64)
    before = tuned.evaluate(x, y, verbose=0, return_dict=True)["reward"]
    history = tuned.fit(x, y, epochs=10, verbose=0).history
    for name, values in history.items():
        assert np.isfinite(values).all(), name
    assert tuned.evaluate(x, y, verbose=0, return_dict=True)["reward"] > before + 0.02


def test_no_signal_where_no_other_choice_would_earn_anything_else():
    x, y = data(4)
    y[:2] = 255  # all void
    # Both samples of an input are the same, and earn the same.
    noise = np.random.default_rng(0).random((4, 1, 2, 2)).repeat(2, axis=1)
    x = {"features": x, "noise": noise.astype("float32")}
    tuned = RewardTuning(segmenter(), MeanIoUReward(3), GivenNoise(), num_samples=2)
    tuned.compile(keras.optimizers.SGD(0.0))
    logs = tuned.train_on_batch(x, y, return_dict=True)
    assert float(logs["no_signal"]) == 0.5
    assert float(logs["reward_std"]) == 0.0
