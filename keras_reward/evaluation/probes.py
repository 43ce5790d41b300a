"""Compiled functions for the rewards of a tuner's samples and greedy outputs."""

import keras
import numpy as np

from keras_reward.batches import first_rows
from keras_reward.compiled import CompiledFunction

STATE_BITS = 2**30 - 1  # fits the seed's dtype on every backend


class Probe(CompiledFunction):
    """Base class: runs a tuner's model without changing the metrics of a run.

    Args:
        owner: a `RewardTuning`.
    """

    def run(self, x, y):
        """Calls the compiled function on a batch; returns a nest of NumPy arrays."""
        x, y, _ = self.owner.preprocessed(x, y)
        y = self.owner.read_targets(y)
        policy = self.owner.policy
        if policy.needs_first_batch:
            with self.owner.variable_scope():
                policy.check_first_batch(first_rows(x, self.owner.model))
        result = self.predict_on_batch({"x": x} if y is None else {"x": x, "y": y})
        self.owner.reward.raise_failure()
        return result


class Sampler(Probe):
    """Draws samples of each input, and computes their rewards and log-probabilities.

    Args:
        owner: a `RewardTuning`.
        num_samples: number of samples of each input that one call draws.
        with_outputs: whether to return what the samples decode to as well.
    """

    def __init__(self, owner, num_samples, with_outputs=False):
        super().__init__(owner)
        self.num_samples = num_samples
        self.with_outputs = with_outputs
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, inputs):
        x, y = inputs["x"], inputs.get("y")
        policy = self.owner.policy
        context = policy.encode(x, training=False)
        samples = policy.sample(context, self.num_samples, seed=self.seed_generator)
        outputs, rewards, _ = self.owner.reward_samples(context, x, y, samples)
        result = {"rewards": rewards, "log_probs": policy.log_prob(context, samples)}
        return {**result, "outputs": outputs} if self.with_outputs else result

    def draw(self, x, y, seeds):
        """Rewards and log-probabilities `(batch, num_samples)` of new samples.

        Args:
            x: inputs.
            y: targets, or None.
            seeds: list of non-negative ints; the same seeds draw the same samples.
        """
        state = np.random.SeedSequence(seeds).generate_state(2) & STATE_BITS
        variable = self.seed_generator.state
        variable.assign(state.astype(variable.dtype))
        return self.run(x, y)


class Greedy(Probe):
    """The greedy output of each input, as the reward sees it, and its reward."""

    def call(self, inputs):
        x, y = inputs["x"], inputs.get("y")
        reward = self.owner.reward
        outputs = self.owner.policy.rewarded(self.owner(x, training=False))
        inputs = x if reward.uses_inputs else None
        earned, components = reward.evaluate(reward.prepare(y), outputs, inputs)
        return {"outputs": outputs, "rewards": {"reward": earned, **components}}
