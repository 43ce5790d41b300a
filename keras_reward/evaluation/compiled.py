"""A tuner's sampling, greedy decoding and scoring, as functions that Keras compiles."""

import keras
import numpy as np

STATE_BITS = 2**30 - 1  # fits the seed's dtype on every backend


class Probe(keras.Model):
    """Base class: what a tuner's model does, without touching a run's metrics.

    A Keras model whose `predict_on_batch` compiles it once for each shape.

    Args:
        tuner: a `RewardTuning`.
    """

    def __init__(self, tuner):
        super().__init__(dtype=tuner.dtype_policy, autocast=False)
        self.tuner = tuner
        self.supports_jit = tuner.supports_jit
        self.built = True

    @property
    def non_trainable_variables(self):
        """With what the reward reads, so that it is no constant in compiled code."""
        own = super().non_trainable_variables
        known = {id(variable) for variable in own}
        tuners = self.tuner.non_trainable_variables
        return own + [v for v in tuners if id(v) not in known]

    def run(self, x, y):
        """Calls the compiled function on a batch; returns a nest of NumPy arrays."""
        result = self.predict_on_batch({"x": x} if y is None else {"x": x, "y": y})
        self.tuner.reward.raise_failure()
        return result


def probe(kind, tuner, *arguments):
    """The `Probe` of a kind for a tuner, the same one each time: compiled once.

    Args:
        kind: `Sampler` or `Greedy`.
        tuner: a `RewardTuning`.
        *arguments: further ones of `kind`.
    """
    probes = tuner.__dict__.get("_probes")
    if probes is None:
        probes = {}
        # Not an attribute that Keras tracks: the probes contain the tuner.
        object.__setattr__(tuner, "_probes", probes)
    key = (kind, *arguments)
    if key not in probes:
        probes[key] = kind(tuner, *arguments)
    return probes[key]


class Sampler(Probe):
    """Draws and scores samples of each input.

    Args:
        tuner: a `RewardTuning`.
        num_samples: number of samples of each input that one call draws.
        with_outputs: whether to return what the samples decode to, too.
    """

    def __init__(self, tuner, num_samples, with_outputs=False):
        super().__init__(tuner)
        self.num_samples = num_samples
        self.with_outputs = with_outputs
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, inputs):
        x, y = inputs["x"], inputs.get("y")
        policy = self.tuner.policy
        context = policy.encode(x, training=False)
        samples = policy.sample(context, self.num_samples, seed=self.seed_generator)
        rewards, _ = self.tuner.score(x, y, samples)
        log_probs, _ = policy.score(context, samples)
        result = {"rewards": rewards, "log_probs": log_probs}
        if self.with_outputs:
            result["outputs"] = policy.decode(x, samples)
        return result

    def draw(self, x, y, seeds):
        """Rewards and log-probabilities `(batch, num_samples)` of new samples.

        Args:
            x: inputs.
            y: targets, or None.
            seeds: list of ints from 0; the same ones draw the same samples.
        """
        state = np.random.SeedSequence(seeds).generate_state(2) & STATE_BITS
        variable = self.seed_generator.state
        variable.assign(state.astype(variable.dtype))
        return self.run(x, y)


class Greedy(Probe):
    """The greedy output of each input, decoded, and its reward with all parts."""

    def call(self, inputs):
        x, y = inputs["x"], inputs.get("y")
        reward = self.tuner.reward
        outputs = self.tuner(x, training=False)
        inputs = x if reward.uses_inputs else None
        rewards, parts = reward.evaluate(reward.prepare(y), outputs, inputs)
        return {"outputs": outputs, "rewards": {"reward": rewards, **parts}}
