"""RewardTuning: a Keras model, its policy and a reward, trained by `fit`."""

import functools
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_reward import advantages, logs, policies, rewards, storage
from keras_reward.backend import RewardTrainer
from keras_reward.fitting import CheckedFitting
from keras_reward.objective import input_weights, weighted_likelihood_loss
from keras_reward.policies.policy import refuse_truncation, repeat_rows
from keras_reward.reference import make_reference, score_parts
from keras_reward.rewards.reward import check_shapes
from keras_reward.unbound import UnboundTuning, check_arguments


class Rollout(NamedTuple):
    """What a step draws and earns, without gradient.

    Attributes:
        samples: `(batch, n, ...)`, the samples whose likelihood is changed.
        advantages: `(batch, n)`.
        rewards: `(batch, num_samples)` of all samples, NaN where unscored.
        parts: dict of `(batch, num_samples)` by the name of the part.
    """

    samples: Any
    advantages: Any
    rewards: Any
    parts: dict


@keras.saving.register_keras_serializable(package="keras_reward")
class RewardTuning(RewardTrainer, CheckedFitting, keras.Model):
    """Tunes a trained Keras model for a reward, by Reinforce.

    Reward tuning is maximum likelihood on the model's own samples, each weighted by
    how much better than its baseline it did (Pinto et al. 2023, "Tuning computer
    vision models with task rewards"). Each step of `fit` runs the model once, draws
    `num_samples` outputs for each input, scores them with the reward, subtracts a
    baseline, and ascends the mean of `advantage * log_prob(sample)`.

    `RewardTuning(model, reward=...)` and `RewardTuning(reward=...)(model)` are the
    same thing. `tuned.model` is the model that was passed in, the same object.

    `predict`, `evaluate` and validation data use the greedy output, decoded to what
    the reward sees; `val_reward` is its mean reward. In `evaluate`, `loss` is minus
    the reward, so that callbacks that watch `val_loss` keep the best model too.

    Args:
        model: any built or unbuilt `keras.Model`, trained as usual. If left out, the
            result waits to be called with one.
        reward: a `Reward`, a function `(y_true, y_pred) -> (rows,)`, or a name such as
            `"colorfulness"`.
        policy: how the model's output is a distribution. `"auto"` (default): a model
            that has the methods of the policy protocol is its own policy, a sequence
            model such as `VisionEncoderDecoder` is read token by token, any other
            model's output as logits over its last axis. Or `"categorical"`,
            `"bernoulli"`, `"gaussian"`, `"autoregressive"`, or a `Policy`.
        num_samples: outputs drawn for each input in a training step. Default 2, as in
            the paper; more lower the variance.
        baseline: what is subtracted from a reward. `"leave_one_out"` (default): the
            mean of the other samples. `"greedy"`: the reward of the greedy output.
            `"mean"`: the mean of all samples. `"moving_average"`: an average over
            earlier batches. `None`: nothing.
        update: `"all"` (default) changes the likelihood of every sample, `"first"` of
            the first one only, with the others as its baseline, as the paper does.
        temperature: divides the logits, in sampling and scoring alike. Default 1.0.
        entropy_weight: weight of the policy's mean entropy per position (nats), added
            to the objective. Default 0.0.
        mle_weight: weight of the negative log-likelihood of the ground truth, added to
            the loss and logged as `mle_loss`. Default 0.0. `y` then has the form of a
            sample: class indices for `"categorical"`, padded token ids
            `(batch, tokens)` or `(batch, references, tokens)` for a sequence model,
            of which padding at the end does not count.
            The sum over tokens, and the mean over references and inputs, under the
            distribution that is sampled: with the temperature.
        auxiliary_loss: a loss on the model's own samples beside the reward, such as
            `ConfidenceLoss()` or an object with the same methods, logged under its
            name. `sample_weight` does not weigh it. Default None. For policies that
            write tokens.
        kl_weight: weight of the divergence from a reference, added to the loss. Default
            0.0, as in the paper. See `objective.kl_weights`.
        reference: what the model is kept close to, frozen. `"copy"`: the model as it is
            now. `"lora_base"`: the model with its LoRA adapters off, which costs no
            second copy. Or a built model of the same outputs. Logged as `kl`, also
            with weight 0, in nats per output. Default None. Costs one more forward
            pass.
        save_reference: if True, a copy or model enters the checkpoint. Default False:
            after loading, give it back by `tuned.set_reference(model)` before training
            goes on. `"lora_base"` is always there again.
        scale_advantages: if True, divides advantages by the standard deviation of the
            rewards of their input. Default False: it biases the gradient.
        model_training: the `training` flag of the model in a step. Default False, so
            that dropout is off and batch normalisation uses its averages.
        seed: int, for the random numbers of the samples. Default: random.
        name: optional name.

    Raises:
        ValueError: for an unknown policy, baseline, update or reward, for numbers out
            of range, and for truncated sampling (`top_k`, `top_p`).

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
        if model is None:
            return UnboundTuning(cls, kwargs)
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
        entropy_weight=0.0,
        mle_weight=0.0,
        auxiliary_loss=None,
        kl_weight=0.0,
        reference=None,
        save_reference=False,
        scale_advantages=False,
        model_training=False,
        seed=None,
        name=None,
    ):
        if not isinstance(model, keras.Model):
            raise ValueError(
                f"RewardTuning tunes a keras.Model. Received: {model!r} "
                f"(of type {type(model).__name__})"
            )
        check_arguments(num_samples, baseline, update, temperature)
        # The model's dtype policy decides about loss scaling. It casts its own inputs.
        super().__init__(name=name, dtype=model.dtype_policy, autocast=False)
        self.model = model
        self.reward = rewards.get(reward)
        self.supports_jit = self.reward.supports_jit
        self.policy = policies.get(policy, model, temperature)
        self.num_samples = num_samples
        self.baseline = baseline
        self.update = update
        self.temperature = temperature
        self.entropy_weight = entropy_weight
        self.mle_weight = mle_weight
        self.auxiliary_loss = auxiliary_loss
        if auxiliary_loss is not None and not hasattr(self.policy, "score_choices"):
            raise ValueError(
                "`auxiliary_loss` is for a policy that writes tokens, such as "
                f"AutoregressivePolicy. Received: {type(self.policy).__name__}"
            )
        self.scale_advantages = scale_advantages
        self.model_training = model_training
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.average_reward = None
        if baseline == "moving_average":
            self.average_reward = self.add_weight(
                shape=(),
                initializer=keras.initializers.Constant(float("nan")),
                trainable=False,
                aggregation="mean",
                name="average_reward",
            )
        self.kl_weight = kl_weight
        self.save_reference = save_reference
        self.reference = make_reference(reference, self, kl_weight, save_reference)
        self.loss_names = ["mle_loss"] if mle_weight else []
        if self.auxiliary_loss is not None:
            self.loss_names.append(self.auxiliary_loss.name)
        if self.reference is not None:
            self.loss_names.append("kl")
        self.trackers = logs.make_trackers(
            self.reward.part_names, num_samples, self.loss_names
        )
        self.built = model.built

    @property
    def non_trainable_variables(self):
        """Those of the model and the tuning, and what reward and reference read."""
        own = {id(variable) for variable in self.variables}
        read = [*self.reward.variables]
        if self.reference is not None:
            read += self.reference.variables
        return super().non_trainable_variables + [v for v in read if id(v) not in own]

    def set_reference(self, reference):
        """Another reference, for example after loading a file without it.

        Args:
            reference: as in the constructor, but not None.
        """
        if self.reference is None or reference is None:
            raise ValueError(
                "A tuning that was made with a `reference` can be given another one. "
                f"Received: reference={reference!r}, tuning with {self.reference!r}"
            )
        self.reference = make_reference(
            reference, self, self.kl_weight, self.save_reference
        )
        self.train_function = None  # compiled for the variables of the one before

    def call(self, inputs, training=None):
        """The greedy output of each input, decoded to what the reward sees."""
        context = self.policy.encode(inputs, training=bool(training))
        return policies.greedy_outputs(self.policy, inputs, context)

    # Training. The order of `training_loss` is that of the method: encode, sample,
    # reward, advantage, log-probability, loss.

    def training_loss(self, data, no_gradient):
        """The loss of one step, with everything that leads to it.

        Args:
            data: a batch: `x`, `(x, y)` or `(x, y, sample_weight)`.
            no_gradient: calls a function and lets no gradient through it.

        Returns:
            Scalar, float32.
        """
        self.refuse_compiled_loss()
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        context = self.policy.encode(x, training=self.model_training)
        rollout = no_gradient(self.rollout, context, x, y)
        log_probs, entropy, parts, auxiliary_loss = self.score_samples(
            context, x, y, rollout.samples, no_gradient
        )
        weights = input_weights(sample_weight, log_probs)
        loss = weighted_likelihood_loss(log_probs, rollout.advantages, None, weights)
        if self.entropy_weight:
            loss = loss - self.entropy_weight * ops.mean(entropy)
        batch = ops.shape(log_probs)[0]
        if self.reference is not None:
            penalty, kl = self.reference.penalty(
                x, rollout.samples, parts, weights, no_gradient
            )
            loss = loss + self.kl_weight * penalty if self.kl_weight else loss
            logs.record_loss(self.trackers["kl"], kl, batch)
        if self.mle_weight:
            mle_loss = self.mle_loss(context, y, weights)
            loss = loss + self.mle_weight * mle_loss
            logs.record_loss(self.trackers["mle_loss"], mle_loss, batch)
        if self.auxiliary_loss is not None:
            loss = loss + self.auxiliary_loss.weight * auxiliary_loss
            tracker = self.trackers[self.auxiliary_loss.name]
            logs.record_loss(tracker, auxiliary_loss, batch)
        for penalty in self.losses:  # regularisers of the model's layers
            loss = loss + ops.cast(ops.sum(penalty), "float32")
        logs.record_samples(self.trackers, rollout.rewards, rollout.parts, entropy)
        logs.record_loss(self.loss_tracker, loss, batch)
        return loss

    def score_samples(self, context, x, y, samples, no_gradient):
        """Log-probability and entropy of samples; log-probabilities of their parts,
        where a reference needs them, and the auxiliary loss, else None."""
        own, gradient = self.auxiliary_loss, bool(self.entropy_weight)
        if own is None and self.reference is not None:
            return *score_parts(self.policy, context, samples, gradient), None
        if own is None:
            scores = self.policy.score(context, samples, entropy_gradient=gradient)
            return *scores, None, None
        others = own.alternatives(self.policy, samples)
        log_probs, entropy, token_log_probs = self.policy.score_choices(
            context, [samples, others], entropy_gradient=gradient
        )
        outputs = no_gradient(self.policy.decode, x, samples)
        targets = map_tensors(functools.partial(repeat_rows, n=samples.shape[1]), y)
        value = own.call(
            self.policy,
            targets,
            samples,
            outputs,
            token_log_probs[0],
            token_log_probs[1],
        )
        counted = self.policy.scored(context, samples)
        parts = ops.where(counted, token_log_probs[0], 0.0)
        return log_probs, entropy, parts, value

    def mle_loss(self, context, y, weights):
        """Negative log-likelihood of the ground truth: a scalar."""
        likelihood = ops.expand_dims(self.policy.target_log_prob(context, y), 1)
        ones = ops.ones_like(likelihood)
        return weighted_likelihood_loss(likelihood, ones, None, weights)

    def rollout(self, context, x, y):
        """Draws samples, scores them and compares them with their baseline."""
        samples = self.policy.sample(
            context, self.num_samples, seed=self.seed_generator
        )
        candidates = samples
        if self.baseline == "greedy":
            greedy = ops.cast(self.policy.mode(context), samples.dtype)
            candidates = ops.concatenate([samples, greedy[:, None]], axis=1)
        scores, parts = self.score(x, y, candidates)
        n = self.num_samples
        advantage = self.advantage(scores)
        if self.update == "first":
            samples, advantage = samples[:, :1], advantage[:, :1]
        parts = {name: values[:, :n] for name, values in parts.items()}
        return Rollout(samples, advantage, scores[:, :n], parts)

    def score(self, x, y, samples):
        """Rewards and parts of samples `(batch, n, ...)`: `(batch, n)` each."""
        outputs = self.policy.decode(x, samples)
        n = samples.shape[1]
        repeat = functools.partial(repeat_rows, n=n)
        targets = map_tensors(repeat, self.reward.prepare(y))
        inputs = map_tensors(repeat, x) if self.reward.uses_inputs else None
        check_shapes(self.reward, targets, outputs, inputs, multiple=n)
        scores, parts = self.reward.evaluate(targets, outputs, inputs)
        shape = (ops.shape(samples)[0], n)
        parts = {name: ops.reshape(part, shape) for name, part in parts.items()}
        return ops.reshape(scores, shape), parts

    def advantage(self, scores):
        """Advantages `(batch, num_samples)` of scores, in which `"greedy"` has the
        greedy output's in a last column."""
        n = self.num_samples
        samples = scores[:, :n]
        if self.baseline == "leave_one_out":
            result = advantages.leave_one_out(samples)
        elif self.baseline == "mean":
            result = advantages.mean(samples)
        elif self.baseline == "greedy":
            result = advantages.greedy(samples, scores[:, n])
        elif self.baseline == "moving_average":
            average = ops.convert_to_tensor(self.average_reward)
            result = advantages.moving_average(samples, average)
            self.average_reward.assign(advantages.update_average(average, samples))
        else:
            result = advantages.moving_average(samples, 0.0)
        if self.scale_advantages:
            result = advantages.scale_by_std(result, samples)
        return result

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

    def training_logs(self):
        """Results of the metrics that a training step updates."""
        trackers = {"loss": self.loss_tracker, **self.trackers}
        return {name: tracker.result() for name, tracker in trackers.items()}

    # Evaluation: Keras's own step, whose `y_pred` is what `call` returns.

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Minus the mean reward of greedy outputs; updates the reward's metrics."""
        del training
        self.refuse_compiled_loss()
        targets = self.reward.prepare(y)
        inputs = x if self.reward.uses_inputs else None
        check_shapes(self.reward, targets, y_pred, inputs)
        scores, parts = self.reward.evaluate(targets, y_pred, inputs)
        logs.record_rewards(self.trackers, scores, parts)
        scores, _ = advantages.split_scored(scores)
        weights = input_weights(sample_weight, scores)
        return -ops.mean(scores if weights is None else scores * weights)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Updates the metrics given to `compile`; results without training's own."""
        results = super().compute_metrics(x, y, y_pred, sample_weight)
        hidden = (*logs.TRAINING_ONLY, *self.loss_names)
        return {k: v for k, v in results.items() if k not in hidden}

    def get_metrics_result(self):
        """Results of all metrics, but for those that no evaluation has built yet."""
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
        if self.reference is not None:
            self.reference.restore()
        super().save_own_variables(store)
        storage.write(self, store)

    def load_own_variables(self, store):
        super().load_own_variables(storage.read(self, store))

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            "model": serialize(self.model),
            "reward": serialize(self.reward),
            "policy": "auto" if self.policy is self.model else serialize(self.policy),
            "num_samples": self.num_samples,
            "baseline": self.baseline,
            "update": self.update,
            "temperature": self.temperature,
            "entropy_weight": self.entropy_weight,
            "mle_weight": self.mle_weight,
            "auxiliary_loss": serialize(self.auxiliary_loss),
            "kl_weight": self.kl_weight,
            "reference": self.reference and self.reference.get_config(),
            "save_reference": self.save_reference,
            "scale_advantages": self.scale_advantages,
            "model_training": self.model_training,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        parts = {
            part: keras.saving.deserialize_keras_object(
                config.get(part), custom_objects=custom_objects
            )
            for part in ("model", "reward", "policy", "auxiliary_loss", "reference")
        }
        return cls(**{**config, **parts})


def map_tensors(function, structure):
    """Applies `function` to the tensors of a nest, and leaves None as it is."""
    return keras.tree.map_structure(
        lambda leaf: None if leaf is None else function(leaf), structure
    )
