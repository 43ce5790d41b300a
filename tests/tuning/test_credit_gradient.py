"""Credit by parts: the gradient of a step against enumeration of all outputs.

A batch holds every output that a tiny model can draw, each weighted by its probability.
One step of SGD with learning rate 1 then moves the weights by the exact expectation of
the estimate, which must be the gradient of the expected reward.
"""

import numpy as np
import pytest
from keras import ops
from pixels import (
    INPUTS,
    MAPS,
    MASKS,
    every_output,
    exact_gradient,
    given,
    linear_model,
    match_of_rows,
    step_gradient,
)

from keras_reward import (
    BernoulliPolicy,
    BoundaryReward,
    CategoricalPolicy,
    ColorfulnessReward,
    DiceReward,
    FBetaReward,
    HueEntropyReward,
    MeanIoUReward,
    Reward,
    RewardTuning,
    VividnessReward,
)

REWARDS = {
    "iou": (lambda classes: MeanIoUReward(classes)),
    "dice": (lambda classes: DiceReward(classes)),
    "f2": (lambda classes: FBetaReward(classes, beta=2.0)),
    "sum": (lambda classes: 0.5 * DiceReward(classes) - 2.0 * MeanIoUReward(3) + 1.0),
    "product": (lambda classes: DiceReward(classes) * (MeanIoUReward(3) + 0.5)),
    "monitor": (lambda classes: DiceReward(classes) + 0.0 * match_of_rows),
    "boundary": (lambda classes: BoundaryReward(1.0, masks=classes > 1)),
    "boundary of masks": (lambda classes: BoundaryReward(0, masks=True)),
    "overlap and boundary": (
        lambda classes: DiceReward(classes) * BoundaryReward(1.0, masks=True) + 0.1
    ),
}


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("policy", [BernoulliPolicy, CategoricalPolicy])
def test_a_step_ascends_the_expected_reward(policy, name):
    temperature = 0.7
    binary = policy is BernoulliPolicy
    targets, reward = (MASKS, MAPS)[not binary], REWARDS[name](1 if binary else 3)
    exact = exact_gradient(policy, targets, reward, temperature)
    tuned = RewardTuning(
        linear_model(2, 2) if binary else linear_model(2, 2, 3),
        reward=reward,
        policy=given(policy)(),
        num_samples=1,
        temperature=temperature,
    )
    assert tuned.by_parts
    estimate = step_gradient(tuned, *every_output(policy, targets, temperature))
    np.testing.assert_allclose(estimate, exact, atol=2e-6)
    assert np.abs(exact).max() > 0.01


class Paints:
    """Each pixel in one of three colours: red, dark grey, light blue."""

    independent_positions = True
    colors = np.array([[1.0, 0, 0], [0.2, 0.2, 0.2], [0.5, 0.6, 1.0]], "float32")

    def decode(self, inputs, samples):
        return ops.take(ops.convert_to_tensor(self.colors), samples, axis=0)


class OfClasses(Reward):
    """A reward of what `Paints` makes of class indices."""

    def __init__(self, reward):
        super().__init__()
        self.reward = reward

    def call(self, y_true, y_pred):
        return self.reward(None, Paints().decode(None, y_pred))


COLORS = {
    "vividness": VividnessReward(),
    "hue entropy": HueEntropyReward(),
    "colorfulness": ColorfulnessReward(),
    "product": VividnessReward() * (0.5 * HueEntropyReward() + 1.0),
}


@pytest.mark.parametrize("name", COLORS)
def test_a_step_ascends_the_expected_reward_of_what_is_painted(name):
    reward = COLORS[name]
    exact = exact_gradient(CategoricalPolicy, MAPS, OfClasses(reward), 0.7)
    tuned = RewardTuning(
        linear_model(2, 2, 3),
        reward=reward,
        policy=given(CategoricalPolicy)(codec=Paints()),
        num_samples=1,
        temperature=0.7,
    )
    assert tuned.by_parts
    x, y, weights = every_output(CategoricalPolicy, MAPS, 0.7)
    weights = np.where(y[:, 0, 0] == 0.5, 0.0, weights)
    np.testing.assert_allclose(step_gradient(tuned, x, y, weights), exact, atol=2e-6)
    assert np.abs(exact).max() > 0.01


def test_a_step_with_several_samples_is_their_mean():
    args = BernoulliPolicy, MASKS, 1.0
    exact = exact_gradient(*args[:2], DiceReward(1), 1.0)
    for update in ("all", "first"):
        tuned = RewardTuning(
            linear_model(2, 2),
            reward=DiceReward(1),
            policy=given(BernoulliPolicy)(),
            num_samples=2,
            update=update,
        )
        estimate = step_gradient(tuned, *every_output(*args, num_samples=2))
        np.testing.assert_allclose(estimate, exact, atol=2e-6)


def test_the_first_sample_alone_counts_if_asked_for():
    samples = np.random.default_rng(5).integers(0, 2, (3, 2, 2, 2)).astype("int32")
    features, weights = INPUTS.astype("float32"), np.ones(3, "float32")
    moved = []
    for n, update in ((2, "first"), (1, "all")):
        tuned = RewardTuning(
            linear_model(2, 2),
            reward=DiceReward(1),
            policy=given(BernoulliPolicy)(),
            num_samples=n,
            update=update,
        )
        x = {"features": features, "samples": samples[:, :n]}
        moved.append(step_gradient(tuned, x, MASKS.astype("float32"), weights))
    np.testing.assert_allclose(*moved, atol=1e-6)
