"""The policy of KerasHub's language models, which answer a prompt."""

import keras
from keras import ops

from keras_reward.categorical import draw_tokens, likeliest
from keras_reward.nests import host_array, repeat_rows
from keras_reward.policies.keras_hub_tasks import task_of
from keras_reward.policies.tokens import TokenPolicy
from keras_reward.sequences.references import check_vocabulary
from keras_reward.sequences.writing import loop, put_token


@keras.saving.register_keras_serializable(package="keras_reward")
class CausalLMPolicy(TokenPolicy):
    """The text that a KerasHub `CausalLM` or `Seq2SeqLM` generates after a prompt.

    Works with text-only tasks (GPT-2, Gemma, Llama, ...), PaliGemma and Gemma 3 with
    images, and Bart. `RewardTuning` takes the inputs that the task's own `generate`
    takes, such as `{"images": photos, "prompts": prompts}`, or what the task's own
    preprocessor makes of them:

    ```text
    x = model.preprocessor.generate_preprocess({"images": photos, "prompts": prompts})
    ```

    The policy gets the latter. This is a dict of `token_ids` and `padding_mask`
    `(batch, L)`, True in the prompt (for Bart, both of the decoder and of the encoder),
    and of images if the task has them. L is the maximum length of prompt and answer
    together; prompts may differ in length.

    A sample is the answer alone: `(batch, n, T)` token ids that start at the left, end
    with the first end token, and are padded after it. An answer that has not ended
    after T tokens, or at position L, is cut there. The prompt does not count in the
    likelihood.

    An image is encoded once for all samples and their likelihood. Sampling uses the
    task's cache, prefilled once per prompt; the likelihood is computed in one pass over
    the whole sequences. Dropout in the decoder is always off, so that both use the same
    distribution. Only trainable weights are tuned: after `backbone.enable_lora(rank)`
    these are the adapters.

    Args:
        max_new_tokens: T, the maximum length of an answer in tokens. Default: L - 1.
        end_token_ids: ids of the tokens that end an answer, an empty tuple if there
            are none. Default: those at which the task's own `generate` stops, from its
            tokenizer.
        pad_token_id: id that samples are padded with. Default: the tokenizer's, or 0.
        logits_chunk: number of positions whose logits are in memory at once when the
            likelihood of samples is computed. Default None: all of them,
            `(batch * n, T, vocabulary)`. A smaller number needs less memory, but the
            logits are recomputed for the gradient.
        codec: how token ids become what a reward sees, see `Policy`. Default: the
            reward sees the token ids, `(rows, T)`.
        name: optional name.

    Raises:
        ValueError: in `bind`, for a model that is not such a task or has no end token;
            in `encode`, for missing keys, images of the wrong size, token ids outside
            the vocabulary, an empty prompt, and a prompt that leaves no room for an
            answer. The last three are only checked outside of compiled functions:
            `fit`, `train_on_batch`, `evaluate` and `predict` check arrays and tensors
            before they start, and strings batch by batch. For a dataset of token ids,
            call `check_inputs` with a batch of it.

    Example:

    ```python
    from keras_reward import CausalLMPolicy

    policy = CausalLMPolicy(max_new_tokens=32)
    ```

    ```text
    model = keras_hub.models.PaliGemmaCausalLM.from_preset("pali_gemma_3b_224")
    model.backbone.enable_lora(rank=8)
    tuned = RewardTuning(model, reward=CIDErReward(end_id=1), policy=policy)
    ```
    """

    def __init__(
        self,
        max_new_tokens=None,
        end_token_ids=None,
        pad_token_id=None,
        logits_chunk=None,
        codec=None,
        name=None,
        **kwargs,
    ):
        super().__init__(logits_chunk, codec=codec, name=name, **kwargs)
        if max_new_tokens is not None and max_new_tokens < 1:
            raise ValueError(
                "`max_new_tokens` must be a positive number, or None. "
                f"Received: max_new_tokens={max_new_tokens}"
            )
        if end_token_ids is not None:
            end_token_ids = tuple(int(token) for token in end_token_ids)
        self.max_new_tokens = max_new_tokens
        self.end_token_ids = end_token_ids
        self.pad_token_id = pad_token_id
        self._untracked(task=None, end_ids=None, pad_id=None)

    def bind(self, model, temperature=1.0):
        task = task_of(model)
        tokenizer = getattr(model.preprocessor, "tokenizer", None)
        end_ids, pad_id = self.end_token_ids, self.pad_token_id
        if end_ids is None:
            end_ids = end_tokens_of(tokenizer, task, model)
        if pad_id is None:
            pad_id = getattr(tokenizer, "pad_token_id", None) or 0
        super().bind(model, temperature)
        self._untracked(task=task, end_ids=end_ids, pad_id=pad_id)
        return self

    def check_inputs(self, x):
        """Raises a ValueError if `x` is not what the model can answer.

        Args:
            x: inputs, see the class. Shapes are always checked, values only outside of
                compiled functions.
        """
        keys = (*self.task.keys, *self.task.other_keys)
        missing = [key for key in keys if not isinstance(x, dict) or key not in x]
        if missing:
            received = sorted(x) if isinstance(x, dict) else type(x).__name__
            raise ValueError(
                f"Model {self.model.name!r} takes a dict with the keys {sorted(keys)}: "
                "make it with `model.preprocessor.generate_preprocess`. "
                f"Missing: {missing}. Received: {received}"
            )
        self.task.check(x)
        token_ids, mask = (x[key] for key in self.task.keys)
        if len(token_ids.shape) != 2 or token_ids.shape[1] != mask.shape[1]:
            raise ValueError(
                "Token ids and their padding mask must have one shape (batch, L). "
                f"Received: shapes {tuple(token_ids.shape)} and {tuple(mask.shape)}"
            )
        if token_ids.shape[1] is None:
            raise ValueError(
                "The length L of the prompts' arrays must be known while a step is "
                "compiled, since it bounds the answers and the task's cache. Make all "
                "batches with one `sequence_length` of `generate_preprocess`. "
                f"Received: token ids of shape {tuple(token_ids.shape)}"
            )
        check_prompts(host_array(mask))
        for key in keys:
            if key.endswith("token_ids"):
                check_vocabulary(key, x[key], self.vocabulary_size)

    def encode(self, x, training=False):
        """The prompts, and the encoded images or input texts.

        Args:
            x: a dict, see the class.
            training: the `training` flag of the image encoder.

        Returns:
            A dict of tensors with a leading batch axis.
        """
        self.check_inputs(x)
        token_ids, mask = (x[key] for key in self.task.keys)
        mask = ops.cast(mask, "bool")
        token_ids = ops.where(mask, ops.cast(token_ids, "int32"), self.pad_id)
        return {
            **self.task.encode(x, training),
            "token_ids": token_ids,
            "padding_mask": mask,
            "lengths": count(mask),
        }

    @property
    def vocabulary_size(self):
        return self.task.backbone.vocabulary_size

    def length_limit(self, context=None):
        if context is None:
            return self.max_new_tokens
        room = context["token_ids"].shape[1] - 1
        return min(self.max_new_tokens or room, room)

    def noise(self, context, num_samples, seed):
        """Uniform numbers in [0, 1): `(batch, n, L)`, one per position of each row."""
        batch, length = ops.shape(context["token_ids"])
        shape = (batch, num_samples, length)
        return keras.random.uniform(shape, dtype="float32", seed=seed)

    def sample(self, context, num_samples, seed=None, noise=None):
        if noise is None:
            noise = self.noise(context, num_samples, seed)
        noise = ops.convert_to_tensor(noise, "float32")
        noise = ops.reshape(noise, (-1, noise.shape[-1]))

        def draw(logits, position):
            uniform = ops.take(noise, position, axis=1)[:, None]
            return draw_tokens(self.scaled(logits), uniform)[:, 0]

        return self.generate(context, num_samples, draw)

    def mode(self, context):
        return self.generate(context, 1, lambda logits, _: likeliest(logits))[:, 0]

    def generate(self, context, num_samples, choose):
        """Generates answers token by token, with the task's cache.

        Args:
            context: what `encode` returned.
            num_samples: number of answers to each prompt.
            choose: called with logits `(rows, vocabulary)` and the position of the
                token to choose; returns `(rows,)` int32.

        Returns:
            `(batch, num_samples, T)` int32, the generated tokens.
        """
        rows = repeat_rows(context, num_samples)
        cache = repeat_rows(self.task.prefill(context), num_samples)
        lengths, token_ids = rows["lengths"], rows["token_ids"]
        length = token_ids.shape[1]
        limits = ops.minimum(lengths + self.length_limit(context), length)

        def unfinished(position, token_ids, done, cache):
            return ops.logical_and(position < length, ops.logical_not(ops.all(done)))

        def write(position, token_ids, done, cache):
            last = ops.take(token_ids, position - 1, axis=1)
            logits, cache = self.task.step(rows, cache, last[:, None], position - 1)
            in_prompt = position < lengths
            token = ops.where(done, self.pad_id, choose(logits, position))
            token = ops.where(in_prompt, ops.take(token_ids, position, axis=1), token)
            token_ids = put_token(token_ids, token, position)
            ended = ops.logical_and(self.is_end(token), ops.logical_not(in_prompt))
            full = position + 1 >= limits
            done = ops.logical_or(done, ops.logical_or(ended, full))
            return position + 1, token_ids, done, cache

        start = ops.maximum(ops.min(lengths), 1)
        state = (start, token_ids, lengths >= limits, cache)
        _, token_ids, _, _ = loop(unfinished, write, state, range(1, length))
        return self.answers(token_ids, lengths, num_samples)

    def answers(self, token_ids, lengths, num_samples):
        """The tokens after the prompts, moved to the left: `(batch, n, T)`."""
        room = token_ids.shape[1]
        steps = ops.arange(self.length_limit({"token_ids": token_ids}), dtype="int32")
        places = lengths[:, None] + steps
        tokens = ops.take_along_axis(token_ids, ops.minimum(places, room - 1), axis=1)
        tokens = ops.where(places < room, tokens, self.pad_id)
        return ops.reshape(tokens, (-1, num_samples, steps.shape[0]))

    def is_end(self, tokens):
        """Which tokens end an answer: bool, of the shape of `tokens`."""
        found = ops.zeros_like(tokens, dtype="bool")
        for end_id in self.end_ids:
            found = ops.logical_or(found, tokens == end_id)
        return found

    def mask(self, context, samples):
        ends = ops.cast(self.is_end(samples), "int32")
        open_still = ops.cumsum(ends, axis=-1) - ends == 0
        room = context["token_ids"].shape[1] - context["lengths"]
        steps = ops.arange(ops.shape(samples)[2], dtype="int32")
        return ops.logical_and(open_still, steps < room[:, None, None])

    def states(self, context, samples):
        """Hidden states `(batch, n, T, width)` at the position before each token."""
        batch, n, steps = ops.shape(samples)
        rows = repeat_rows(context, n)
        lengths = rows["lengths"][:, None]
        length = rows["token_ids"].shape[1]
        answers = ops.reshape(samples, (batch * n, steps))
        mask = ops.reshape(self.mask(context, samples), (batch * n, steps))
        written = count(mask)
        # The index of each position in the answer; negative within the prompt.
        places = ops.arange(length, dtype="int32") - lengths
        inside = ops.clip(places, 0, steps - 1)
        token_ids = ops.where(
            places < 0,
            rows["token_ids"],
            ops.take_along_axis(answers, inside, axis=1),
        )
        hidden = self.task.hidden_states(rows, token_ids, places < written[:, None])
        before = lengths - 1 + ops.arange(steps, dtype="int32")
        before = ops.clip(before, 0, length - 1)
        hidden = ops.take_along_axis(hidden, before[:, :, None], axis=1)
        return (ops.reshape(hidden, (batch, n, steps, hidden.shape[-1])),)

    def token_logits(self, hidden):
        return self.scaled(self.task.logits(hidden))

    def scaled(self, logits):
        """Logits in float32, divided by the temperature."""
        return ops.cast(logits, "float32") / self.temperature

    def get_config(self):
        # After `bind`, the ids that were found: when Keras loads a file, the tokenizer
        # has no vocabulary yet when the policy is made and bound.
        bound = self.task is not None
        return {
            **super().get_config(),
            "max_new_tokens": self.max_new_tokens,
            "end_token_ids": self.end_ids if bound else self.end_token_ids,
            "pad_token_id": self.pad_id if bound else self.pad_token_id,
        }


def count(mask):
    """Number of True in the last axis, int32."""
    return ops.cast(ops.sum(ops.cast(mask, "int32"), axis=-1), "int32")


def end_tokens_of(tokenizer, task, model):
    """Ids of the tokens at which the task's own `generate` stops."""
    first = getattr(tokenizer, "end_token_id", None)
    if first is None:
        raise ValueError(
            f"Model {model.name!r} has no tokenizer with an `end_token_id`, so it is "
            "unknown where an answer ends. Pass "
            "`policy=CausalLMPolicy(end_token_ids=[...])`, with an empty list if "
            f"answers have no end. Received: preprocessor={model.preprocessor!r}"
        )
    second = getattr(tokenizer, "end_token2_id", None)  # Llama 3 has two
    others = [tokenizer.token_to_id(token) for token in task.end_tokens]
    return (first, *([] if second is None else [second]), *others)


def check_prompts(mask):
    """Raises if a prompt is empty or fills all positions."""
    if mask is None:
        return
    lengths = mask.astype("int32").sum(-1)
    if (lengths == mask.shape[1]).any():
        raise ValueError(
            f"A prompt fills all {mask.shape[1]} positions: no room is left for an "
            "answer. Pass a larger `sequence_length` to `generate_preprocess`, or "
            f"shorten the prompt. Received: prompt lengths {lengths}"
        )
    if (lengths == 0).any():
        raise ValueError(
            "A prompt must have at least one token, such as a start token. "
            f"Received: prompt lengths {lengths}"
        )
