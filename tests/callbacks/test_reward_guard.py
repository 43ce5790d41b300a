"""The guard: which rule fires, when, and what the model is afterwards."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops
from tiny import classifier, inputs, randomize, to_numpy, weights_of

from keras_reward import FunctionReward, RewardTuning
from keras_reward.callbacks import RewardGuard

X = inputs(64)
Y = np.random.default_rng(1).integers(0, 5, (64, 4)).astype("int32")


def match(y_true, y_pred):
    """Share of positions that agree with the target."""
    return ops.mean(ops.cast(y_pred == y_true, "float32"), axis=-1)


def tuner(rate, reward=match, **arguments):
    tuned = RewardTuning(
        classifier(positions=4), reward=reward, num_samples=4, seed=0, **arguments
    )
    tuned.compile(keras.optimizers.SGD(rate))
    return tuned


def fit(tuned, guard, epochs=3, y=Y, **arguments):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = tuned.fit(
            *(X, y),
            batch_size=16,
            epochs=epochs,
            shuffle=False,
            callbacks=[guard],
            verbose=0,
            **arguments,
        )
    return history.history, [str(w.message) for w in caught if "Guard" in str(w)]


def greedy_reward(tuned, y):
    return tuned.evaluate(X, y, verbose=0, return_dict=True)["reward"]


def teach():
    """A good model: that which made the targets, a little disturbed."""
    teacher = randomize(classifier(positions=4), seed=9, scale=1.0)
    targets = to_numpy(teacher(X)).argmax(-1).astype("int32")
    generator = np.random.default_rng(3)
    weights = [w + generator.normal(0, 0.1, w.shape) for w in teacher.get_weights()]
    return weights, targets


@pytest.mark.chance
def test_a_learning_rate_100_times_too_high_ends_at_the_best_validation_reward():
    weights, y = teach()

    def tune(rate, *callbacks):
        tuned = tuner(rate)
        tuned.compile(keras.optimizers.Adam(rate))
        tuned.model.set_weights(weights)
        start = greedy_reward(tuned, y)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tuned.fit(
                *(X, y),
                batch_size=16,
                epochs=3,
                shuffle=False,
                callbacks=list(callbacks),
                verbose=0,
            )
        end = greedy_reward(tuned, y)
        return start, end, [str(w.message) for w in caught if "Guard" in str(w)]

    start, good, _ = tune(0.03)
    assert good > start - 0.05  # a rate that is right
    _, ruined, _ = tune(3.0)
    assert ruined < 0.9 * start  # without the guard
    guard = RewardGuard(validation_data=(X, y), tolerance=0.05, every_steps=1)
    _, end, messages = tune(3.0, guard)
    assert guard.fired.rule == "fall" and guard.fired.step <= 12
    assert end >= 0.99 * guard.best_value and guard.best_value >= start - 1e-6
    assert f"stopped at step {guard.fired.step} (epoch" in messages[0]
    assert "rule 'fall': val_reward is" in messages[0]
    assert "Try a learning rate 10 times lower" in messages[0]


@pytest.mark.chance
def test_the_start_may_be_the_best():
    """A good model, and a rate that only ruins it."""
    weights, y = teach()
    tuned = tuner(1e4)
    tuned.model.set_weights(weights)
    before = weights_of(tuned.model)
    start = greedy_reward(tuned, y)
    guard = RewardGuard(validation_data=(X, y), tolerance=0.01, every_steps=1)
    guard_only_falls(guard)
    fit(tuned, guard, y=y)
    assert guard.fired.step > guard.fired.restored_step == 0
    for a, b in zip(before, weights_of(tuned.model), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(guard.best_value, start, rtol=1e-5)


def guard_only_falls(guard):
    guard.entropy_floor = guard.no_signal_share = None


def test_own_validation_equals_that_of_fit():
    tuned = tuner(0.5)
    guard = RewardGuard(validation_data=(X[:50], Y[:50]), batch_size=16)
    history, _ = fit(tuned, guard, validation_data=(X[:50], Y[:50]))
    assert guard.fired is None
    np.testing.assert_allclose(guard.best_value, max(history["val_reward"]), rtol=1e-5)


def test_logs_of_fit_serve_without_own_validation():
    tuned = tuner(0.5)
    values = iter([0.5, 0.8, 0.1])
    guard = RewardGuard()
    kept = []

    class Says(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["val_reward"] = next(values)
            kept.append(weights_of(tuned.model))

    tuned.fit(X, Y, epochs=5, callbacks=[Says(), guard], verbose=0)
    assert guard.fired.rule == "fall" and guard.fired.epoch == 2
    assert guard.fired.limit == pytest.approx(0.8 - 0.1 * 0.8)
    assert guard.fired.restored_step == 4  # of 2 steps an epoch
    for a, b in zip(kept[1], weights_of(tuned.model), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(kept) == 3


def test_a_monitor_of_weight_0_that_falls():
    """The reward asks for class 4; the monitor counts what is then given up."""

    def share_of_4(y_true, y_pred):
        return ops.mean(ops.cast(y_pred == 4, "float32"), axis=-1)

    others = FunctionReward(lambda t, p: 1.0 - share_of_4(t, p), name="others")
    asked = FunctionReward(share_of_4, name="fours")
    tuned = tuner(2.0, reward=asked + 0.0 * others)
    guard = RewardGuard(("val_reward", "val_others"), validation_data=(X, Y))
    _, messages = fit(tuned, guard, epochs=20)
    assert guard.fired.rule == "monitor" and guard.fired.name == "val_others"
    assert "not meant" in messages[0]
    values = tuned.evaluate(X, Y, verbose=0, return_dict=True)
    assert values["others"] >= guard.fired.limit
    np.testing.assert_allclose(values["reward"], guard.best_value, rtol=1e-5)


@pytest.mark.parametrize("every_steps", [None, 1])
def test_entropy_that_collapses(every_steps):
    tuned = tuner(500.0)
    guard = RewardGuard(every_steps=every_steps, entropy_floor=0.05)
    guard.no_signal_share = None
    before = weights_of(tuned.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(tuned, guard, epochs=8)
    assert guard.fired.rule == "entropy" and guard.fired.value < 0.05
    # Without any validation the weights at the start are the best that is known.
    for a, b in zip(before, weights_of(tuned.model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_policy_that_starts_below_the_floor_is_left_alone():
    tuned = tuner(0.0)
    guard = RewardGuard(entropy_floor=100.0, validation_data=(X, Y))
    fit(tuned, guard)
    assert guard.fired is None


def test_samples_that_all_earn_the_same():
    def same(y_true, y_pred):
        return ops.zeros_like(y_pred[:, 0], dtype="float32")

    guard = RewardGuard(validation_data=(X, Y), every_steps=2)
    _, messages = fit(tuner(0.1, reward=same), guard)
    assert guard.fired.rule == "no_signal" and guard.fired.step == 2
    assert "no_signal is 1, above 0.95" in messages[0]
    assert "num_samples" in messages[0]


def test_a_reward_that_is_no_number_is_a_fall():
    guard = RewardGuard()
    guard_of_logs(guard, [{"val_reward": 1.0}, {"val_reward": float("nan")}])
    assert guard.fired.rule == "fall" and guard.fired.epoch == 1


def guard_of_logs(guard, epochs):
    tuned = tuner(0.0)
    guard.set_model(tuned)
    guard.on_train_begin()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for epoch, logs in enumerate(epochs):
            guard.on_epoch_begin(epoch)
            guard.on_epoch_end(epoch, logs)


def test_negative_rewards_may_fall_by_a_share_of_their_size():
    guard = RewardGuard(tolerance=0.1)
    values = [-10.0, -2.0, -2.9, -3.1]  # the scale is 10, the best -2
    guard_of_logs(guard, [{"val_reward": v} for v in values])
    assert guard.fired.epoch == 3 and guard.fired.limit == pytest.approx(-3.0)


def test_windows_are_means_since_the_last_check():
    guard = RewardGuard(every_steps=2)
    guard.set_model(tuner(0.0))
    guard.on_train_begin()
    values = np.array([1.0, 3.0, 0.0, 2.0, 7.0, 1.0])
    found = [
        guard.since_last_check({"entropy": values[:n].mean()}, n)["entropy"]
        for n in (2, 4, 6)
    ]
    np.testing.assert_allclose(found, [2.0, 1.0, 4.0])


def test_what_the_guard_says_of_wrong_arguments():
    with pytest.raises(ValueError, match="tolerance=0"):
        RewardGuard(tolerance=0)
    with pytest.raises(ValueError, match="`every_steps` must be a positive int"):
        RewardGuard(every_steps=0)
    with pytest.raises(ValueError, match=r"Known: val_reward\. Received: 'val_x'"):
        fit(tuner(0.1), RewardGuard("val_x", validation_data=(X, Y)))
    _, messages = fit(tuner(0.1), RewardGuard())
    assert "does not find 'val_reward'" in messages[0] and len(messages) == 1
