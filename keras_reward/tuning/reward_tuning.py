"""RewardTuning: a Keras model, its policy and a reward, trained by `fit`."""

import functools

import keras
from keras import ops

from keras_reward import advantages, baselines, policies, rewards
from keras_reward.backend import RewardTrainer
from keras_reward.nests import deserialized, repeat_rows
from keras_reward.objective import input_weights, reward_loss
from keras_reward.policies.likelihood import Likelihood
from keras_reward.policies.policy import refuse_truncation
from keras_reward.rewards.reward import check_shapes
from keras_reward.rollout import Rollout, Update, check_advantages, first_samples
from keras_reward.tuning import metrics, own_variables
from keras_reward.tuning.arguments import check_arguments, refuse_renamed
from keras_reward.tuning.checked_fitting import CheckedFitting
from keras_reward.tuning.without_model import TuningWithoutModel


@keras.saving.register_keras_serializable(package="keras_reward")
class RewardTuning(RewardTrainer, CheckedFitting, keras.Model):
    """Tunes a trained Keras model for a reward, by Reinforce.

    Reward tuning is maximum likelihood on the model's own samples, each weighted by
    how much better than its baseline it did (Pinto et al. 2023, "Tuning computer
    vision models with task rewards"). Each step of `fit` runs the model once, draws
    `num_samples` outputs for each input, computes their rewards, subtracts a baseline,
    and ascends the mean of `advantage * log_prob(sample)`.

    `RewardTuning(model, reward=...)` and `RewardTuning(reward=...)(model)` are
    equivalent. `tuned.model` is the model that was passed in, not a copy.

    `predict`, `evaluate` and validation use the greedy output, decoded to what the
    reward sees; `val_reward` is its mean reward. In `evaluate`, `loss` is minus the
    reward, so callbacks that monitor `val_loss` keep the best model too.

    Args:
        model: any built or unbuilt `keras.Model`, trained as usual. If omitted, call
            the result with a model.
        reward: a `Reward`, a function `(y_true, y_pred) -> (rows,)`, or a name such as
            `"colorfulness"`.
        policy: how the model's output defines a distribution. `"auto"` (default): a
            model that has the methods of the policy protocol is its own policy, a
            sequence model such as `VisionEncoderDecoder` is sampled token by token,
            and any other model's output is read as logits over its last axis. Or
            `"categorical"`, `"bernoulli"`, `"gaussian"`, `"autoregressive"`, or a
            `Policy`.
        num_samples: outputs drawn for each input in a training step. Default 2, as in
            the paper; more samples lower the variance of the gradient.
        baseline: what is subtracted from a reward. `"leave_one_out"` (default): the
            mean of the other samples. `"greedy"`: the reward of the greedy output.
            `"mean"`: the mean of all samples. `"moving_average"`: an average over
            earlier batches. `"standardized"`: leave-one-out, divided by the standard
            deviation of the input's rewards, which biases the gradient. `None`:
            nothing. Or a function from rewards `(batch, samples)` to advantages, or a
            `Baseline`.
        update: `"all"` (default) changes the likelihood of every sample. `"first"`
            changes that of the first one only, with the others as its baseline, as the
            paper does.
        temperature: divides the logits, for samples and their likelihood. Default 1.0.
        terms: list of further terms of the loss, each logged under its name:
            `Entropy`, `MaximumLikelihood`, `KL`, `ConfidenceLoss`, or your own `Term`.
            Default: none, as in the paper.
        model_training: the `training` flag of the model in a step. Default False, so
            that dropout is off and batch normalisation uses its moving averages.
        seed: int, seed of the samples' random numbers. Default: random.
        name: optional name.

    Raises:
        ValueError: for an unknown policy, baseline, update, reward or term, for numbers
            out of range, for terms that do not fit the policy, and for truncated
            sampling (`top_k`, `top_p`).

    Example:

    ```python
    import keras
    import numpy as np
    from keras import ops
    from keras_reward import RewardTuning

    def share_of_class_3(y_true, y_pred):
        return ops.cast(y_pred == 3, "float32")

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)])
    tuned = RewardTuning(reward=share_of_class_3, num_samples=4, seed=0)(model)
    tuned.compile(optimizer=keras.optimizers.Adam(0.1))
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    tuned.fit(x, epochs=5, verbose=0)
    tuned.evaluate(x, verbose=0, return_dict=True)  # reward of the greedy output
    tuned.predict(x, verbose=0)                     # (64,) greedy classes
    tuned.model                                     # the tuned model
    ```
    """

    def __new__(cls, model=None, *args, **kwargs):
        refuse_truncation(cls.__name__, kwargs)
        refuse_renamed(kwargs, cls.__name__)
        if model is None:
            return TuningWithoutModel(cls, kwargs)
        return super().__new__(cls, model, *args, **kwargs)

    def __init__(
        self,
        model=None,
        reward=None,
        policy="auto",
        num_samples=2,
        baseline="leave_one_out",
        update="all",
        temperature=1.0,
        terms=(),
        model_training=False,
        seed=None,
        name=None,
    ):
        if not isinstance(model, keras.Model):
            raise ValueError(
                f"RewardTuning tunes a keras.Model. Received: {model!r} "
                f"(of type {type(model).__name__})"
            )
        check_arguments(num_samples, baseline, update, temperature, terms)
        # The model's dtype policy decides on loss scaling. The model casts its inputs.
        super().__init__(name=name, dtype=model.dtype_policy, autocast=False)
        self.model = model
        self.reward = rewards.get(reward)
        self.supports_jit = self.reward.supports_jit
        self.policy = policies.get(policy, model, temperature)
        self.num_samples = num_samples
        self.baseline = baselines.get(baseline)
        self.update = update
        self.temperature = temperature
        self.model_training = model_training
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.terms = list(terms)
        for term in self.terms:
            term.bind(self)
        self.term_names = [name for term in self.terms for name in term.log_names]
        self.trackers = metrics.make_trackers(
            self.reward.component_names, num_samples, self.term_names
        )
        self.built = model.built

    @property
    def non_trainable_variables(self):
        """Those of the model and the tuner, and what the reward and terms read."""
        own = {id(variable) for variable in self.variables}
        read = [*self.reward.variables]
        for term in self.terms:
            read += term.frozen_variables
        return super().non_trainable_variables + [v for v in read if id(v) not in own]

    def call(self, inputs, training=None):
        """The greedy output of each input, decoded to what the reward sees."""
        context = self.policy.encode(inputs, training=bool(training))
        return self.policy.greedy_outputs(inputs, context)

    # Training. The order is that of the method: encode, sample, decode, reward,
    # advantage, likelihood, loss.

    def training_step(self, data, descend):
        """One step of `fit`: one rollout, and one update that takes it.

        Args:
            data: a batch: `x`, `(x, y)` or `(x, y, sample_weight)`.
            descend: differentiates a loss, a function of `no_gradient`, and takes a
                step of the optimizer.

        Returns:
            What to log: a dict of scalars.
        """
        descend(functools.partial(self.training_loss, data))
        trackers = {"loss": self.loss_tracker, **self.trackers}
        return {name: tracker.result() for name, tracker in trackers.items()}

    def training_loss(self, data, no_gradient):
        """The loss of one step: a rollout, and an update that uses it.

        Args:
            data: a batch: `x`, `(x, y)` or `(x, y, sample_weight)`.
            no_gradient: calls a function, without gradient.

        Returns:
            Scalar, float32.
        """
        self.refuse_compiled_loss()
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        context = self.policy.encode(x, training=self.model_training)
        rollout = no_gradient(self.rollout, context, x, y)
        return self.update_loss(rollout, context, x, y, sample_weight, no_gradient)

    def rollout(self, context, x, y):
        """Draws samples and computes their rewards and advantages.

        Args:
            context: what `policy.encode(x)` returned.
            x: the model's inputs.
            y: targets, or None.

        Returns:
            A `Rollout`.
        """
        n = self.num_samples
        samples = self.policy.sample(context, n, seed=self.seed_generator)
        drawn = samples
        if self.baseline.uses_greedy:
            greedy = ops.cast(self.policy.mode(context), samples.dtype)
            drawn = ops.concatenate([samples, greedy[:, None]], axis=1)
        outputs, earned, components = self.reward_samples(x, y, drawn)
        advantage = self.advantages(earned, samples)
        kept = 1 if self.update == "first" else n
        return Rollout(
            samples[:, :kept],
            first_samples(outputs, drawn.shape[1], kept),
            advantage[:, :kept],
            earned[:, :n],
            {name: values[:, :n] for name, values in components.items()},
        )

    def reward_samples(self, x, y, samples):
        """The outputs that samples decode to, and their rewards.

        Args:
            x: the model's inputs.
            y: targets, or None.
            samples: `(batch, n, ...)`.

        Returns:
            Outputs, a nest of `(batch * n, ...)`, rewards `(batch, n)`, and a dict of
            components, `(batch, n)` each.
        """
        n = samples.shape[1]
        outputs = self.policy.decode(x, samples)
        targets = repeat_rows(self.reward.prepare(y), n)
        inputs = repeat_rows(x, n) if self.reward.uses_inputs else None
        check_shapes(self.reward, targets, outputs, inputs, multiple=n)
        earned, components = self.reward.evaluate(targets, outputs, inputs)
        shape = (ops.shape(samples)[0], n)
        components = {k: ops.reshape(v, shape) for k, v in components.items()}
        return outputs, ops.reshape(earned, shape), components

    def advantages(self, earned, samples):
        """The advantages of samples, from the baseline.

        Args:
            earned: rewards `(batch, num_samples)`; if the baseline uses the rewards of
                the greedy outputs, they are in one more column at the end.
            samples: `(batch, num_samples, ...)`.
        """
        own = earned[:, : self.num_samples]
        greedy = {"greedy_rewards": earned[:, -1]} if self.baseline.uses_greedy else {}
        result = self.baseline.advantages(own, **greedy)
        return check_advantages(self.baseline.name, result, own, samples)

    def update_loss(self, rollout, context, x, y, sample_weight, no_gradient):
        """The loss of an update: the loss of the reward plus the terms.

        Args:
            rollout: a `Rollout`.
            context: what `policy.encode(x)` returned, with gradient.
            x, y, sample_weight: the batch.
            no_gradient: calls a function, without gradient.

        Returns:
            Scalar, float32.
        """
        likelihood, choices = self.likelihood(context, rollout.samples)
        weights = input_weights(sample_weight, likelihood.log_prob)
        loss = reward_loss(likelihood, rollout.advantages, weights)
        batch = ops.shape(likelihood.log_prob)[0]
        for term, own in zip(self.terms, choices, strict=True):
            given = Likelihood(*likelihood[:-1], own)
            value, logged = term.evaluate(
                Update(self.policy, x, y, context, rollout, given, weights, no_gradient)
            )
            if term.weight:
                loss = loss + term.weight * value
            for name, number in logged.items():
                metrics.record_loss(self.trackers[name], number, batch)
        for penalty in self.losses:  # regularisers of the model's layers
            loss = loss + ops.cast(ops.sum(penalty), "float32")
        metrics.record_samples(
            self.trackers, rollout.rewards, rollout.components, likelihood.entropy
        )
        metrics.record_loss(self.loss_tracker, loss, batch)
        return loss

    def likelihood(self, context, samples):
        """The likelihood of samples, computed once for all terms.

        Returns:
            A `Likelihood`, and for each term the log-probabilities of its `choices`.
        """
        asked = [tuple(t.choices(self.policy, samples)) for t in self.terms]
        likelihood = self.policy.likelihood(
            context,
            samples,
            choices=[choice for choices in asked for choice in choices],
            entropy_gradient=any(t.uses_entropy and t.weight for t in self.terms),
        )
        given, start = [], 0
        for choices in asked:
            end = start + len(choices)
            given.append(likelihood.choice_log_probs[start:end])
            start = end
        return likelihood, given

    def refuse_compiled_loss(self):
        if getattr(self, "loss", None) is not None:
            raise ValueError(
                "The objective is the reward: compile RewardTuning with an optimizer "
                f"and without a loss. Received: loss={self.loss!r}"
            )

    @property
    def loss_tracker(self):
        """The metric `loss`, which `compile` makes."""
        return next(metric for metric in self.metrics if metric.name == "loss")

    # Evaluation: Keras's own step, whose `y_pred` is what `call` returns.

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Minus the mean reward of the greedy outputs; updates the reward's metrics."""
        del training
        self.refuse_compiled_loss()
        targets = self.reward.prepare(y)
        inputs = x if self.reward.uses_inputs else None
        check_shapes(self.reward, targets, y_pred, inputs)
        earned, components = self.reward.evaluate(targets, y_pred, inputs)
        metrics.record_rewards(self.trackers, earned, components)
        earned, _ = advantages.split_finite(earned)
        weights = input_weights(sample_weight, earned)
        return -ops.mean(earned if weights is None else earned * weights)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Updates the metrics given to `compile`; omits those of training alone."""
        results = super().compute_metrics(x, y, y_pred, sample_weight)
        hidden = (*metrics.TRAINING_ONLY, *self.term_names)
        return {k: v for k, v in results.items() if k not in hidden}

    def get_metrics_result(self):
        """Results of all metrics, except those that are not built yet."""
        results = {}
        for metric in self.metrics:
            if getattr(metric, "built", True):
                result = metric.result()
                results.update(
                    result if isinstance(result, dict) else {metric.name: result}
                )
        return results

    # Saving.

    def save_own_variables(self, store):
        own_variables.write(self, store)
        super().save_own_variables(store)

    def load_own_variables(self, store):
        super().load_own_variables(own_variables.read(self, store))

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            "model": serialize(self.model),
            "reward": serialize(self.reward),
            "policy": serialize(self.policy),
            "num_samples": self.num_samples,
            "baseline": serialize(self.baseline),
            "update": self.update,
            "temperature": self.temperature,
            "terms": [serialize(term) for term in self.terms],
            "model_training": self.model_training,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        refuse_renamed(config, "The file or config")
        config = dict(config)
        for name in ("model", "reward", "policy", "baseline"):
            config[name] = deserialized(config[name], custom_objects)
        terms = [deserialized(term, custom_objects) for term in config["terms"]]
        return cls(**{**config, "terms": terms})
