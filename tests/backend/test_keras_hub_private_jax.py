"""What KerasHub does not promise to keep, one test for each use of it."""

import concurrent.futures
import inspect
import multiprocessing

import pytest

from keras_reward.backend.keras_private import SEEN_KERAS_HUB

pytestmark = pytest.mark.hub
PRIVATE = ("_build_cache", "_initialize_cache")
TEXT_ALONE = ("GPT2CausalLM", "GemmaCausalLM", "LlamaCausalLM", "MistralCausalLM")
# Class, method and its arguments.
USED = {
    **{(name, "_build_cache"): ["token_ids"] for name in TEXT_ALONE},
    ("PaliGemmaCausalLM", "_build_cache"): [
        *("token_ids", "img_embeddings", "padding_mask")
    ],
    ("Gemma3CausalLM", "_build_cache"): [
        *("token_ids", "img_embeddings", "vision_mask", "padding_mask"),
        "vision_indices",
    ],
    ("BartSeq2SeqLM", "_initialize_cache"): ["encoder_token_ids", "decoder_token_ids"],
}


def signatures():
    """The version, and the arguments of the private methods of each class of `USED`."""
    import keras_hub

    found = {
        (name, method): list(inspect.signature(function).parameters)[1:]
        for name, _ in USED
        for method in PRIVATE
        if (function := getattr(getattr(keras_hub.models, name), method, None))
    }
    return keras_hub.__version__, found


@pytest.fixture(scope="module")
def installed():
    """As `signatures`, from a process of its own: KerasHub brings TensorFlow."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(signatures).result()


@pytest.mark.slow
@pytest.mark.parametrize("use", USED, ids=".".join)
def test_methods_take_what_they_are_given(installed, use):
    version, found = installed
    first, last = SEEN_KERAS_HUB
    assert found.get(use) == USED[use], (
        f"KerasHub changed: {'.'.join(use)} takes {found.get(use)}, and keras_reward "
        f"gives it {USED[use]}. It was so from {first} to {last}; this is {version}. "
        "See keras_reward/backend/keras_private.py and the family's class in "
        "keras_reward/policies/keras_hub_tasks.py"
    )
