"""One step of `fit`: a rollout, the update that uses it, and what is logged."""

import functools

import keras
from keras import ops

from keras_reward import advantages
from keras_reward.nests import (
    first_of,
    first_samples,
    repeat_rows,
    samples_per_input,
    split_rows,
    with_sample,
)
from keras_reward.objective import (
    gains_over_drawn,
    input_weights,
    parts_loss,
    reward_loss,
)
from keras_reward.policies.choices import choices_for
from keras_reward.ragged import dense
from keras_reward.rewards.checks import check_shapes
from keras_reward.rewards.credit import reward_to_go
from keras_reward.terms.update import Rollout, Update
from keras_reward.tuning import metrics
from keras_reward.tuning.compiled_metrics import check_compiled_metrics
from keras_reward.valid_inputs import as_weights, split_valid, where_valid


class TrainingStep:
    """Mixin for `RewardTuning`: what a step does, the same on every backend.

    The order is that of the method: encode, sample, decode, reward, advantage,
    likelihood, loss. An input with NaN or an infinity takes no part: the model gets
    zeros in its place, its samples have no reward, and its weight is 0.
    """

    def training_step(self, data, descend):
        """One step of `fit`: one rollout, and one update that takes it.

        Args:
            data: a batch: `x`, `(x, y)` or `(x, y, sample_weight)`.
            descend: differentiates a loss and takes a step of the optimizer. The loss
                is a function of `no_gradient` that returns a scalar and what `descend`
                is to return.

        Returns:
            What to log: a dict of scalars.
        """
        self.refuse_compiled_loss()
        rollout, likelihood, losses = descend(
            functools.partial(self.rollout_and_loss, data)
        )
        if not self.built:
            self.built = True  # by this step; on TensorFlow, Keras has not seen a call
        # TensorFlow's first evaluation, which would say it, may come hours later.
        y = keras.utils.unpack_x_y_sample_weight(data)[1]
        check_compiled_metrics(self, dense(y), rollout.outputs)
        trackers = {"loss": self.loss_tracker, **self.trackers}
        metrics.record_losses(trackers, losses, ops.shape(rollout.rewards)[0])
        metrics.record_samples(trackers, rollout, likelihood)
        return {name: tracker.result() for name, tracker in trackers.items()}

    def rollout_and_loss(self, data, no_gradient):
        """Makes a rollout, and computes the loss of the first update that uses it.

        Both use one pass of the encoder.

        Args:
            data: a batch: `x`, `(x, y)` or `(x, y, sample_weight)`.
            no_gradient: calls a function, without gradient.

        Returns:
            The loss, a float32 scalar, and a tuple of the `Rollout`, the `Likelihood`
            of its samples by the model that drew them, and a dict of all losses by
            name.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y = dense(y)
        self.see_inputs(x)
        x, valid = split_valid(x)
        context = self.policy.encode(x, training=self.model_training)
        rollout = no_gradient(self.rollout, context, x, y, valid)
        likelihood, losses = self.update_losses(
            rollout, context, x, y, sample_weight, no_gradient
        )
        return losses["loss"], (rollout, likelihood, losses)

    def rollout(self, context, x, y, valid=None):
        """Draws samples and computes their rewards and advantages.

        Args:
            context: what `policy.encode(x)` returned.
            x: the model's inputs.
            y: targets, or None.
            valid: which inputs are finite, `(batch,)` bool. Default: all.

        Returns:
            A `Rollout`.
        """
        n = self.num_samples
        samples = self.policy.sample(context, n, seed=self.seed_generator)
        drawn = samples
        if self.uses_baseline and self.baseline.uses_greedy:
            drawn = with_sample(samples, self.policy.mode(context))
        given = context, x, y, drawn
        outputs, earned, components, credit = self.credit_samples(*given, self.by_parts)
        earned, components = metrics.of_valid(valid, earned, components)
        advantage = alternatives = None
        if credit is None:
            advantage = self.advantages(earned, samples)
        else:
            part_rewards = self.policy.part_rewards(credit)
            if part_rewards is not None:
                part_rewards = where_valid(valid, part_rewards, float("nan"))
                advantage = self.part_advantages(part_rewards)
        kept = 1 if self.update == "first" else n
        first = first_of(samples, kept)
        if credit is not None and credit.alternatives is not None:
            chosen = self.policy.choices_of(first)
            alternatives = gains_over_drawn(credit.alternatives[:, :kept], chosen)
        return Rollout(
            first,
            first_samples(outputs, samples_per_input(drawn), kept),
            None if advantage is None else advantage[:, :kept],
            earned[:, :n],
            {name: values[:, :n] for name, values in components.items()},
            alternatives,
            valid,
        )

    def reward_samples(self, context, x, y, samples):
        """The outputs that samples decode to, and their rewards.

        Args:
            context: what `policy.encode(x)` returned.
            x: the model's inputs.
            y: targets, or None.
            samples: nest of `(batch, n, ...)`.

        Returns:
            Outputs, a nest of `(batch * n, ...)`, rewards `(batch, n)`, and a dict of
            components, `(batch, n)` each.
        """
        return self.credit_samples(context, x, y, samples, by_parts=False)[:-1]

    def credit_samples(self, context, x, y, samples, by_parts):
        """As `reward_samples`, and also returns what parts were worth, if `by_parts`.

        Returns:
            Outputs, rewards and components, and a `Credit`, `(batch, n, ...)`, or None.
        """
        n = samples_per_input(samples)
        outputs = self.policy.sampled_outputs(x, context, samples)
        targets = repeat_rows(self.reward.prepare(y), n)
        inputs = repeat_rows(x, n) if self.reward.uses_inputs else None
        check_shapes(self.reward, targets, outputs, inputs, multiple=n)
        given = targets, outputs, inputs
        if by_parts and self.policy.ordered:
            *results, added = self.reward.evaluate_gains(*given)
            credit = reward_to_go(added, results[0], self.policy.part_of_token)
            results = (*results, credit)
        elif by_parts:
            choices = choices_for(self.policy, x, context, samples)
            positions = tuple(self.policy.choices_of(samples).shape[2:])
            results = self.reward.evaluate_parts(*given, choices, positions)
        else:
            results = (*self.reward.evaluate(*given), None)
        earned, components, credit = split_rows(results, n)
        return outputs, earned, components, credit

    def advantages(self, earned, samples):
        """The advantages of samples, from the baseline.

        Args:
            earned: rewards `(batch, num_samples)`; if the baseline uses the rewards of
                the greedy outputs, they are in one more column at the end.
            samples: nest of `(batch, num_samples, ...)`.
        """
        own = earned[:, : self.num_samples]
        greedy = {"greedy_rewards": earned[:, -1]} if self.baseline.uses_greedy else {}
        result = self.baseline.advantages(own, **greedy)
        return advantages.checked(self.baseline.name, result, own, samples)

    def part_advantages(self, part_rewards):
        """The advantages of parts: the baseline compares those at the same position.

        Args:
            part_rewards: `(batch, num_samples, *positions)`; if the baseline uses the
                greedy outputs, theirs come last.

        Returns:
            `(batch, num_samples, *positions)`.
        """
        batch, n, *positions = ops.shape(part_rewards)
        parts = ops.moveaxis(ops.reshape(part_rewards, (batch, n, -1)), 1, 2)
        parts = ops.reshape(parts, (-1, n))
        parts = self.advantages(parts, parts[:, : self.num_samples])
        parts = ops.reshape(parts, (batch, -1, self.num_samples))
        shape = (batch, self.num_samples, *positions)
        return ops.reshape(ops.moveaxis(parts, 2, 1), shape)

    def update_losses(self, rollout, context, x, y, sample_weight, no_gradient):
        """The loss of an update: the loss of the reward plus the terms.

        Args:
            rollout: a `Rollout`.
            context: what `policy.encode(x)` returned, with gradient.
            x, y, sample_weight: the batch.
            no_gradient: calls a function, without gradient.

        Returns:
            The `Likelihood` of the samples, and a dict of float32 scalars: `"loss"`,
            and what the terms log.
        """
        likelihood, choices = self.likelihood(context, rollout.samples, rollout.valid)
        weights = input_weights(sample_weight, likelihood.log_prob)
        weights = as_weights(rollout.valid, weights)
        loss, losses = self.loss_of_reward(rollout, context, likelihood, weights), {}
        for term, own in zip(self.terms, choices, strict=True):
            given = likelihood._replace(choice_log_probs=own)
            value, logged = term.evaluate(
                Update(self.policy, x, y, context, rollout, given, weights, no_gradient)
            )
            if term.weight:
                loss = loss + term.weight * value
            losses |= logged
        for penalty in self.losses:  # regularisers of the model's layers
            loss = loss + ops.cast(ops.sum(penalty), "float32")
        return likelihood, {"loss": loss, **losses}

    def loss_of_reward(self, rollout, context, likelihood, sample_weight):
        """The part of the loss that raises the reward.

        Args:
            rollout: a `Rollout`, with advantages, alternatives or both.
            context: what `policy.encode(x)` returned, with gradient.
            likelihood: the `Likelihood` of the samples.
            sample_weight: `(batch,)` or None.
        """
        loss = 0.0
        if rollout.advantages is not None:
            loss += reward_loss(likelihood, rollout.advantages, sample_weight)
        if rollout.alternatives is not None:
            probabilities = self.policy.choice_probabilities(context)
            loss += parts_loss(probabilities, rollout.alternatives, sample_weight)
        return loss

    def likelihood(self, context, samples, valid=None):
        """The likelihood of samples, computed once for all terms.

        That of inputs that are not valid is 0, without gradient.

        Returns:
            A `Likelihood`, and for each term the log-probabilities of its `choices`.
        """
        asked = [tuple(t.choices(self.policy, samples)) for t in self.terms]
        likelihood = self.policy.likelihood(
            context,
            samples,
            choices=[choice for choices in asked for choice in choices],
            entropy_gradient=any(t.uses_entropy and t.weight for t in self.terms),
        ).of_valid(valid)
        given, start = [], 0
        for choices in asked:
            end = start + len(choices)
            given.append(likelihood.choice_log_probs[start:end])
            start = end
        return likelihood, given
