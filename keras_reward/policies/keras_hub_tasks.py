"""The differences between KerasHub's families of language models.

Each class defines how one family encodes the inputs besides the prompt, fills and uses
its cache of keys and values, and processes whole sequences. KerasHub itself is not
imported: tasks are recognized by the names of their classes and arguments.

`context` and `rows` are dicts with at least `token_ids` `(batch, L)`, the prompts, and
`padding_mask` `(batch, L)`, True in the prompt. In `rows`, each input is repeated for
each of its samples.
"""

import math

from keras import ops

from keras_reward.backend.keras_private import (
    build_cache,
    build_cache_arguments,
    empty_caches,
)


class TextTask:
    """Text-only decoders: GPT-2, Gemma, Llama, Mistral and similar models."""

    keys = ("token_ids", "padding_mask")  # of the prompt, in the model's inputs
    other_keys = ()
    end_tokens = ()  # as text, besides the tokenizer's own end token

    def __init__(self, model):
        self.model = model
        self.backbone = model.backbone

    def check(self, x):
        """Raises if the inputs besides the prompt do not fit the model."""

    def encode(self, x, training):
        """Encodes the inputs besides the prompt, once per input: a dict of tensors."""
        return {}

    def prefill(self, context):
        """The cache with the keys and values of the prompts, rows in axis 0."""
        return build_cache(self.model, context["token_ids"])

    def step(self, rows, cache, tokens, position):
        """Advances by one token.

        Args:
            rows: the context of each row.
            cache: the cache of the rows, filled up to `position`.
            tokens: `(rows, 1)`, the tokens at `position`.
            position: scalar int32.

        Returns:
            Logits of the next token, `(rows, vocabulary)`, and the cache.
        """
        logits, _, cache = self.model.call_with_cache(tokens, cache, position)
        return logits[:, 0], cache

    def hidden_states(self, rows, token_ids, mask):
        """Processes whole sequences at once.

        Args:
            rows: the context of each row.
            token_ids: `(rows, L)`, prompts and their answers.
            mask: `(rows, L)`, True in prompts and answers.

        Returns:
            `(rows, L, width)`. The `logits` at a position predict the next token.
        """
        inputs = {"token_ids": token_ids, "padding_mask": mask}
        return self.backbone(inputs, training=False)

    def logits(self, hidden):
        """`(..., width)` to `(..., vocabulary)`."""
        return self.backbone.token_embedding(hidden, reverse=True)

    def embed(self, token_ids):
        """Token embeddings, scaled as in all Gemma models."""
        embeddings = self.backbone.token_embedding(token_ids)
        scale = math.sqrt(self.backbone.hidden_dim)
        return embeddings * ops.cast(scale, embeddings.dtype)


class PaliGemmaTask(TextTask):
    """An image before the text, with full attention within image and prompt."""

    other_keys = ("images",)

    def check(self, x):
        size = self.backbone.image_size
        check_images(self.model, x["images"], (size, size, 3))

    def encode(self, x, training):
        return {"images": self.backbone.vit_encoder(x["images"], training=training)}

    def prefill(self, context):
        return build_cache(
            self.model,
            context["token_ids"],
            context["images"],
            context["padding_mask"],
        )

    def step(self, rows, cache, tokens, position):
        place = position + self.backbone.image_sequence_length
        logits, _, updated = self.model.call_with_cache(tokens, cache, place)
        # A token of the prompt attends to later ones, which this step does not see. So
        # a row that is still in its prompt keeps what the prefill stored.
        in_prompt = ops.take(rows["padding_mask"], position, axis=1)
        column = ops.reshape(place, (1,))
        kept = ops.where(
            ops.reshape(in_prompt, (-1, 1, 1, 1, 1, 1)),
            ops.take(cache, column, axis=3),
            ops.take(updated, column, axis=3),
        )
        return logits[:, 0], ops.slice_update(updated, (0, 0, 0, place, 0, 0), kept)

    def hidden_states(self, rows, token_ids, mask):
        x = ops.concatenate([rows["images"], self.embed(token_ids)], axis=1)
        answer = ops.logical_and(mask, ops.logical_not(rows["padding_mask"]))
        for layer in self.backbone.transformer_layers:
            x = layer(x, padding_mask=mask, response_mask=answer)
        return self.backbone.layer_norm(x)[:, self.backbone.image_sequence_length :]


class Gemma3Task(TextTask):
    """Images at placeholders in the prompt, with full attention within each image.

    A prompt does not end with a placeholder: KerasHub's preprocessor adds an
    end-of-image token after it.
    """

    other_keys = ("images", "vision_mask", "vision_indices")
    end_tokens = ("<end_of_turn>",)

    def __init__(self, model):
        super().__init__(model)
        if self.backbone.text_only_model:
            self.other_keys = ()

    def check(self, x):
        if self.other_keys:
            size = self.backbone.image_size
            check_images(self.model, x["images"], (None, size, size, 3))

    def encode(self, x, training):
        if not self.other_keys or x["images"].shape[1] == 0:
            return {}
        embeddings = self.backbone.vision_encoder(x["images"], training=training)
        # KerasHub puts the images of all inputs in one axis.
        shape = (-1, x["images"].shape[1], *embeddings.shape[1:])
        return {
            "images": ops.reshape(embeddings, shape),
            "vision_mask": ops.cast(x["vision_mask"], "int32"),
            "vision_indices": ops.cast(x["vision_indices"], "int32"),
        }

    def images(self, rows):
        """Image embeddings with the images of all rows in one axis, or None."""
        embeddings = rows.get("images")
        if embeddings is None:
            return None
        return ops.reshape(embeddings, (-1, *embeddings.shape[2:]))

    def prefill(self, context):
        return build_cache(
            self.model,
            context["token_ids"],
            self.images(context),
            context.get("vision_mask"),
            context["padding_mask"],
            context.get("vision_indices"),
        )

    def step(self, rows, cache, tokens, position):
        # As in PaliGemma, the prompt keeps what the prefill stored.
        in_prompt = ops.take(rows["padding_mask"], position, axis=1)
        logits, _, cache = self.model.call_with_cache(
            tokens,
            cache,
            position,
            cache_update_mask=ops.logical_not(in_prompt)[:, None],
        )
        return logits[:, 0], cache

    def hidden_states(self, rows, token_ids, mask):
        x = self.embed(token_ids)
        images = self.images(rows)
        if images is not None:
            x = self.backbone.interleave_embeddings(
                image_embeddings=images,
                text_embeddings=x,
                vision_indices=rows["vision_indices"],
            )
        for layer in self.backbone.transformer_layers:
            x = layer(x, padding_mask=mask, vision_mask=rows.get("vision_mask"))
        return self.backbone.layer_norm(x)


class BartTask(TextTask):
    """An encoder for the input text; the prompt is the start of the decoder's text."""

    keys = ("decoder_token_ids", "decoder_padding_mask")
    other_keys = ("encoder_token_ids", "encoder_padding_mask")

    def encode(self, x, training):
        del training  # KerasHub's method takes none
        mask = ops.cast(x["encoder_padding_mask"], "bool")
        token_ids = ops.cast(x["encoder_token_ids"], "int32")
        states = self.model.call_encoder(token_ids, padding_mask=mask)
        return {"encoded": states, "encoded_mask": mask}

    def decode(self, rows, caches, token_ids, position, cross_position):
        return self.model.call_decoder_with_cache(
            encoder_hidden_states=rows["encoded"],
            encoder_padding_mask=rows["encoded_mask"],
            decoder_token_ids=token_ids,
            self_attention_cache=caches[0],
            self_attention_cache_update_index=position,
            cross_attention_cache=caches[1],
            cross_attention_cache_update_index=cross_position,
        )

    def prefill(self, context):
        # KerasHub only uses the shape of `encoded_mask` here.
        empty = empty_caches(self.model, context["encoded_mask"], context["token_ids"])
        _, _, own, cross = self.decode(context, empty, context["token_ids"], 0, 0)
        return own, cross

    def step(self, rows, cache, tokens, position):
        logits, _, own, cross = self.decode(rows, cache, tokens, position, None)
        return logits[:, 0], (own, cross)

    def hidden_states(self, rows, token_ids, mask):
        backbone = self.backbone
        tokens = backbone.token_embedding(token_ids)
        positions = backbone.decoder_position_embedding(tokens)
        x = backbone.decoder_embeddings_add((tokens, positions))
        x = backbone.decoder_embeddings_layer_norm(x)
        for layer in backbone.decoder_transformer_layers:
            x = layer(
                decoder_sequence=x,
                encoder_sequence=rows["encoded"],
                decoder_padding_mask=mask,
                encoder_padding_mask=rows["encoded_mask"],
                training=False,
            )
        return x


FAMILIES = {
    "PaliGemmaCausalLM": PaliGemmaTask,
    "Gemma3CausalLM": Gemma3Task,
    "BartSeq2SeqLM": BartTask,
}


def class_names(model):
    return [cls.__name__ for cls in type(model).__mro__]


def is_language_model(model):
    """Whether `model` is a KerasHub `CausalLM` or `Seq2SeqLM` task."""
    attributes = ("backbone", "preprocessor", "generate")
    names = class_names(model)
    return ("CausalLM" in names or "Seq2SeqLM" in names) and all(
        hasattr(model, attribute) for attribute in attributes
    )


def task_of(model):
    """An instance, for `model`, of the class above that fits it."""
    for name in class_names(model):
        if name in FAMILIES:
            return FAMILIES[name](model)
    of_text_alone = build_cache_arguments(model) == ["token_ids"]
    if of_text_alone and hasattr(model, "call_with_cache"):
        return TextTask(model)
    raise ValueError(
        "CausalLMPolicy tunes KerasHub's CausalLM tasks of text alone (GPT-2, Gemma, "
        f"Llama, ...) and {', '.join(FAMILIES)}. For another model write a Policy. "
        f"Received: {type(model).__name__} {model.name!r}"
    )


def check_images(model, images, shape):
    """Raises if `images` are not `(batch, *shape)`; None fits any size."""
    received = tuple(images.shape)
    fits = len(received) == len(shape) + 1 and all(
        None in (have, want) or have == want
        for have, want in zip(received[1:], shape, strict=True)
    )
    if not fits:
        expected = ", ".join(str(size or "images") for size in shape)
        raise ValueError(
            f"Model {model.name!r} takes images of shape (batch, {expected}). Resize "
            "them, or make the inputs with the model's own "
            "`preprocessor.generate_preprocess`. "
            f"Received: images of shape {received}"
        )
