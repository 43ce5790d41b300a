"""A term that keeps the tuned model close to a reference model."""

import types

import keras
from keras import ops

from keras_reward import objective
from keras_reward.saved_objects import deserialized, entry, serialized
from keras_reward.terms.lora_base import LoRABase
from keras_reward.terms.reference_model import MISSING, ReferenceModel, copy_model
from keras_reward.terms.term import Term
from keras_reward.valid_inputs import where_valid

REFERENCE_MODELS = ("copy", "lora_base")


@keras.saving.register_keras_serializable(package="keras_reward")
class KL(Term):
    """The Kullback-Leibler divergence of the tuned model from a reference model.

    The reference model is frozen. It costs one more forward pass; nothing is sampled
    from it. Logged as `kl`, in nats per output, also with weight 0. See
    `kl_weights` in this module for the estimate of the gradient.

    Args:
        reference_model: what the model is kept close to. `"copy"` (default): a copy of
            the model, made when `RewardTuning` is. `"lora_base"`: the model with its
            LoRA adapters off, which needs no second copy. Or a built `keras.Model`
            with the same outputs.
        weight: factor of the term. Default 0.05.
        save: if True, a copy or model is saved in the checkpoint. Default False: after
            loading, set it with `set_reference_model` before training continues.
            `"lora_base"` is always restored from the checkpoint.
        name: name in the logs. Default `"kl"`.

    Raises:
        ValueError: if the weight is negative; in `bind`, if `reference_model` is none
            of these.

    Example:

    ```python
    import keras
    from keras_reward import KL, RewardTuning

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)])
    tuned = RewardTuning(
        model, reward=lambda y_true, y_pred: y_pred * 1.0, terms=[KL("copy", 0.1)]
    )
    ```
    """

    def __init__(
        self, reference_model="copy", weight=0.05, save=False, name="kl", **kwargs
    ):
        super().__init__(weight, name=name, **kwargs)
        self.save = save
        # Keras tracks models in attributes, but not inside this one: the weights of a
        # frozen model are not the tuner's, nor part of its files.
        self.held = types.SimpleNamespace(
            given=reference_model, reference_model=None, tuner=None
        )

    @property
    def reference_model(self):
        """The `ReferenceModel`; None before `bind`."""
        return self.held.reference_model

    def bind(self, tuner):
        other = self.held.tuner
        if other is not None and other is not tuner:
            raise ValueError(
                f"This {type(self).__name__} belongs to another RewardTuning already. "
                "Make a new one for each RewardTuning. "
                f"Received: terms for model {tuner.model.name!r}, with one of model "
                f"{other.model.name!r}"
            )
        if not tuner.policy.fixed_positions:
            raise ValueError(
                f"{type(self).__name__} compares the probabilities of two models at "
                "the same positions, and the positions of a "
                f"{type(tuner.policy).__name__} are what its own model proposes. Leave "
                f"out this term. Received: model {tuner.model.name!r}"
            )
        self.held.tuner = tuner
        self.set_reference_model(self.held.given)

    def make_reference_model(self, identifier):
        """The `ReferenceModel` that an identifier stands for."""
        model, policy = self.held.tuner.model, self.held.tuner.policy
        if isinstance(identifier, str) and identifier == MISSING:
            return ReferenceModel(None, None, self.save)
        if isinstance(identifier, str) and identifier == "lora_base":
            return LoRABase(model, policy)
        if isinstance(identifier, str) and identifier == "copy":
            identifier = copy_model(model)
        moving = identifier is model
        if moving or not isinstance(identifier, keras.Model) or not identifier.built:
            raise ValueError(
                f"`reference_model` must be one of {REFERENCE_MODELS}, or a built "
                "keras.Model that is not the tuned one itself. "
                f"Received: reference_model={identifier!r}"
            )
        return ReferenceModel(identifier, policy.twin(identifier), self.save)

    def set_reference_model(self, reference_model):
        """Sets the reference model, for example after loading a file without it.

        Args:
            reference_model: as in the constructor.
        """
        self.held.reference_model = self.make_reference_model(reference_model)
        # The compiled step reads the variables of the previous reference model.
        self.held.tuner.train_function = None

    def loss(self, update):
        """A scalar whose gradient estimates that of the divergence, but whose value has
        no meaning, and an estimate of the divergence itself, without gradient."""
        samples = update.rollout.samples
        log_probs = update.likelihood.position_log_probs
        known = update.no_gradient(
            self.reference_model.position_log_probs, update.x, samples
        )
        ratios = ops.stop_gradient(log_probs) - known
        ratios = where_valid(update.rollout.valid, ratios)
        weights = kl_weights(ratios, update.policy.ordered)
        surrogate = -objective.weighted_likelihood_loss(
            log_probs, weights, None, update.sample_weight
        )
        return surrogate, {self.name: ops.mean(kl_estimate(ratios))}

    @property
    def frozen_variables(self):
        return self.reference_model.variables

    @property
    def saved_variables(self):
        return self.reference_model.saved_variables

    @property
    def run_variables(self):
        return self.reference_model.run_variables

    def before_training(self):
        self.reference_model.ready()

    def before_saving(self):
        self.reference_model.restore()

    def before_loading(self):
        self.reference_model.begin_loading()

    def get_config(self):
        given = (
            self.reference_model.get_config()
            if self.reference_model
            else self.held.given
        )
        if isinstance(given, keras.Model):
            given = serialized(given)
        return {**super().get_config(), "reference_model": given, "save": self.save}

    @classmethod
    def from_config(cls, config):
        given = deserialized(entry(config, "reference_model"))
        return cls(**{**config, "reference_model": given})


def kl_estimate(log_ratios):
    """Estimates the Kullback-Leibler divergence from a reference model, by sample.

    Let `d = log p - log q` be the log-ratio at a position, with p the policy's
    probability and q the reference model's. The estimate is the sum over positions of

        exp(-d) - 1 + d.

    It is an unbiased estimate of `KL(p || q)`, since `E[exp(-d)] = 1` under p given the
    earlier positions. It is never negative. Near the reference model its variance is
    far lower than that of d alone, since `exp(-d)` and d are negatively correlated
    (Schulman 2020, "Approximating KL Divergence", the estimator k3). Far from it, where
    q is large for outputs that p rarely draws, rare samples dominate the mean.

    Args:
        log_ratios: `(batch, samples, ...)`, 0 where a position does not count.

    Returns:
        `(batch, samples)`, in nats.

    Example:

    ```python
    import numpy as np
    from keras_reward.terms import kl

    kl.kl_estimate(np.array([[[0.0, 0.7]]], "float32"))  # [[0.197]]
    ```
    """
    return objective.sequence_log_prob(_kl_of_positions(log_ratios))


def _kl_of_positions(log_ratios):
    log_ratios = ops.cast(log_ratios, "float32")
    return ops.expm1(-log_ratios) + log_ratios


def kl_weights(log_ratios, ordered=False):
    """Weights of log-probabilities that give the gradient of the divergence.

    The gradient of `KL(p || q)` is the mean over samples of `sum_t G_t grad log p_t`,
    with `d_t = log p_t - log q_t` and

        G_t = d_t + sum over later positions s of (exp(-d_s) - 1 + d_s).

    Earlier positions do not depend on position t and are left out, and later ones are
    estimated as in `kl_estimate`. Both lower the variance without changing the mean. So
    does subtracting the mean of the other samples of the input, as in
    `advantages.leave_one_out`. Differentiating `kl_estimate` itself would give the
    gradient of another divergence (Tang & Munos 2025, "On a few pitfalls in KL
    divergence gradient estimation for RL"). If the policy equals the reference model,
    every weight is exactly 0.

    Args:
        log_ratios: `(batch, samples, ...)`, 0 where a position does not count.
        ordered: whether the positions in the last axis are drawn one after the other,
            each given the earlier ones. Default False: they are independent.

    Returns:
        Weights of the shape of `log_ratios`.

    Example:

    ```python
    import numpy as np
    from keras_reward.terms import kl

    ratios = np.array([[[0.2], [0.6]]], "float32")
    kl.kl_weights(ratios)  # [[[-0.4], [0.4]]]
    ```
    """
    weights = ops.cast(log_ratios, "float32")
    if ordered:
        terms = _kl_of_positions(weights)
        total = ops.sum(terms, axis=-1, keepdims=True)
        weights = weights + total - ops.cumsum(terms, axis=-1)
    n = ops.cast(ops.shape(weights)[1], "float32")
    others = ops.sum(weights, axis=1, keepdims=True) - weights
    return weights - others / ops.maximum(n - 1.0, 1.0)
