"""Raw inputs of KerasHub's tasks: what the task itself makes of them is the truth.

The checks run in the process that may import KerasHub (`hub` in conftest.py).
"""

import functools
import json
import types

import keras
import numpy as np
import pytest
from keras import ops
from tiny import to_numpy, weights_of

from keras_reward import CausalLMPolicy, RewardTuning
from keras_reward.callbacks import OfficialMetrics, RewardGuard, SampleLogger
from keras_reward.evaluation import reward_distribution

pytestmark = [pytest.mark.hub, pytest.mark.slow]

BATCH = 8
KINDS = ["arrays", "floats", "list", "tensors", "generator", "tf.data", "threads"]


@keras.saving.register_keras_serializable(package="keras_reward_tests")
def found(y_true, y_pred):
    return ops.cast(ops.equal(ops.cast(y_true, "int32"), y_pred), "float32")


class Batches(keras.utils.PyDataset):
    """Slices of arrays."""

    def __init__(self, *arrays, **arguments):
        super().__init__(**arguments)
        self.arrays = arrays

    def __len__(self):
        return -(-len(self.arrays[0]) // BATCH)

    def __getitem__(self, index):
        rows = slice(index * BATCH, (index + 1) * BATCH)
        return tuple(array[rows] for array in self.arrays)


def given(kind, *arrays):
    """Arguments of `fit`, `evaluate` or `predict`: the same data in another form."""
    batches = Batches(*arrays, workers=2)
    if kind == "threads":
        return (batches,)
    if kind == "generator":
        return ((batches[i] for i in range(len(batches))),)
    if kind == "tf.data":
        import tensorflow as tf

        return (tf.data.Dataset.from_tensor_slices(arrays).batch(BATCH),)
    x, *others = arrays
    convert = {"floats": np.float32, "list": list, "tensors": ops.convert_to_tensor}
    return convert.get(kind, np.asarray)(x), *others


def photos():
    """Raw images, of another size than the model takes, and labels."""
    import hub_models

    return hub_models.photos(), np.random.default_rng(1).integers(0, 5, 20)


def tuner(task, reward=found, **arguments):
    tuned = RewardTuning(task, reward, num_samples=2, seed=0, **arguments)
    tuned.compile(keras.optimizers.SGD(0.5))
    return tuned


@functools.cache
def judged():
    """A tuned task, and the classes that it predicts itself."""
    import hub_models

    task = hub_models.vit_classifier()
    classes = task.predict(photos()[0], verbose=0).argmax(-1)
    assert len(set(classes)) == 5
    return tuner(task), classes


def check_predictions(kind):
    tuned, classes = judged()
    images, labels = photos()
    data = given(kind, images, labels)
    data = data[:1] if len(data) == 2 else data
    predicted = tuned.predict(*data, batch_size=BATCH, verbose=0)
    np.testing.assert_array_equal(predicted, classes)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_those_of_the_task(hub, kind):
    hub(check_predictions, kind)


def check_rewards(kind):
    tuned, classes = judged()
    images, labels = photos()
    data = given(kind, images, labels)
    logs = tuned.evaluate(*data, batch_size=BATCH, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["reward"], (classes == labels).mean(), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_rewards_are_those_of_the_tasks_predictions(hub, kind):
    hub(check_rewards, kind)


def check_single_batches():
    tuned, classes = judged()
    images, labels = photos()
    np.testing.assert_array_equal(tuned.predict_on_batch(images), classes)
    logs = tuned.test_on_batch(images, labels, return_dict=True)
    np.testing.assert_allclose(logs["reward"], (classes == labels).mean(), atol=1e-6)


def test_single_batches_are_preprocessed(hub):
    hub(check_single_batches)


def check_training(kind):
    """By what the task's preprocessor makes of the inputs beforehand."""
    import hub_models

    images, labels = photos()
    by_hand = hub_models.vit_classifier()
    x = to_numpy(by_hand.preprocessor(images))
    if kind == "tf.data":  # which resizes with TensorFlow whatever the backend
        data = given(kind, images)[0].map(by_hand.preprocessor)
        x = np.concatenate(list(data.as_numpy_iterator()))
    by_hand.preprocessor = None
    results = []
    for task, arrays in (
        (hub_models.vit_classifier(), (images, labels)),
        (by_hand, (x, labels)),
    ):
        tuned = tuner(task)
        before = weights_of(task)
        arguments = {"shuffle": False, "verbose": 0}
        if kind == "single batches":
            logs = [tuned.train_on_batch(*arrays, return_dict=True) for _ in range(2)]
        elif kind == "validation_split":
            arguments |= {"validation_split": 0.25, "batch_size": BATCH, "epochs": 2}
            logs = tuned.fit(*arrays, **arguments).history
        else:
            held = given(kind, *arrays)
            held = held[0] if len(held) == 1 else held
            # Keras takes a generator once, and knows no length.
            epochs, held = (1, arrays) if kind == "generator" else (2, held)
            data = given("arrays" if arrays[0] is x else kind, *arrays)
            arguments |= {"batch_size": BATCH, "epochs": epochs}
            logs = tuned.fit(*data, validation_data=held, **arguments).history
        moved = weights_of(task)
        assert any((a != b).any() for a, b in zip(before, moved, strict=True))
        results.append((logs, moved))
    keras.tree.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *results
    )


@pytest.mark.parametrize(
    "kind",
    ["arrays", "tf.data", "generator", "threads", "validation_split", "single batches"],
)
def test_training_is_that_on_preprocessed_inputs(hub, kind):
    hub(check_training, kind)


def check_targets_of_a_segmenter():
    """Masks are resized with the images, as its preprocessor says."""
    import hub_models

    task = hub_models.segmenter()
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (4, 40, 40, 3)).astype("uint8")
    masks = generator.integers(0, 3, (4, 40, 40, 1))
    _, resized = task.preprocessor(images, masks)
    classes = task.predict(images, verbose=0).argmax(-1)
    right = (classes == to_numpy(resized)[..., 0]).mean()
    tuned = tuner(task, share_of_pixels)
    for data in ((images, masks), given("tf.data", images, masks)):
        reward = tuned.evaluate(*data, verbose=0, return_dict=True)["reward"]
        # In `tf.data`, rounding in the resizing may differ.
        np.testing.assert_allclose(reward, right, atol=2e-3)


def share_of_pixels(y_true, y_pred):
    return ops.mean(found(y_true[..., 0], y_pred), axis=(1, 2))


def test_targets_of_a_segmenter_are_resized_with_its_images(hub):
    hub(check_targets_of_a_segmenter)


class Accuracy:
    """An evaluator for `OfficialMetrics`."""

    def reset_state(self):
        self.right = []

    def update_state(self, y_true, y_pred):
        self.right += list(y_true == y_pred)

    def result(self):
        return {"accuracy": np.mean(self.right)}


def check_evaluation(folder):
    tuned, classes = judged()
    images, labels = photos()
    right = classes == labels
    result = reward_distribution(tuned, (images, labels), 8, batch_size=16, verbose=0)
    np.testing.assert_array_equal(result.greedy, right)
    official = OfficialMetrics(Accuracy(), (images, labels))
    official.set_model(tuned)
    np.testing.assert_allclose(official.results()["accuracy"], right.mean())
    guard = RewardGuard(validation_data=Batches(images, labels))
    guard.set_model(tuned)
    guard.on_train_begin()
    guard.on_epoch_begin(0)
    np.testing.assert_allclose(guard.best_value, right.mean())
    logger = SampleLogger(folder, images[:4], labels[:4])
    logger.set_model(tuned)
    logger.on_train_begin()
    logger.on_epoch_begin(0)
    with open(f"{folder}/samples.jsonl") as file:
        greedy = [json.loads(line)["greedy"] for line in file]
    assert [line["output"] for line in greedy] == classes[:4].tolist()
    assert [line["reward"] for line in greedy] == right[:4].tolist()


def test_callbacks_and_evaluation_take_raw_inputs(hub, tmp_path):
    hub(check_evaluation, str(tmp_path))


def check_saving(folder):
    tuned, classes = judged()
    tuned.save(f"{folder}/tuned.keras")
    loaded = keras.models.load_model(f"{folder}/tuned.keras")
    np.testing.assert_array_equal(loaded.predict(photos()[0], verbose=0), classes)


def test_a_saved_tuner_keeps_the_preprocessor(hub, tmp_path):
    hub(check_saving, str(tmp_path))


def check_no_preprocessor():
    import hub_models

    images, _ = photos()
    task = hub_models.vit_classifier()
    x = to_numpy(task.preprocessor(images))
    tuned = tuner(task)
    with pytest.raises(ValueError, match=r"0 to 255.*preprocessor = None.*from -"):
        tuned.predict(x, verbose=0)
    with pytest.warns(UserWarning, match="else multiply them by 255"):
        tuned.predict_on_batch(np.float32(images) / 255)
    task.preprocessor = None
    for data in (x, *given("tf.data", x), Batches(x)):
        np.testing.assert_array_equal(tuned.predict(data, verbose=0), judged()[1])


def test_without_a_preprocessor_inputs_are_what_the_model_takes(hub):
    hub(check_no_preprocessor)


# Text.


@functools.cache
def writer():
    """A tuned language model, prompts, the answers as token ids and as texts."""
    import hub_models

    task = hub_models.gpt2_of_strings()
    prompts = ["ab a", "a", "b b ab"] * 4
    x = keras.tree.map_structure(
        to_numpy, task.preprocessor.generate_preprocess(prompts)
    )
    tuned = tuner(task, share_of_b)
    answers = tuned.predict(x, verbose=0)  # of inputs that are preprocessed already
    # The start token is an end token too, at which `generate` would stop at once.
    texts = task.generate(prompts, stop_token_ids=None)
    return tuned, prompts, answers, texts


@keras.saving.register_keras_serializable(package="keras_reward_tests")
def share_of_b(y_true, y_pred):
    return ops.mean(ops.cast(y_pred == 2, "float32"), axis=-1)


def check_strings(kind):
    tuned, prompts, answers, texts = writer()
    tokenizer = tuned.model.preprocessor.tokenizer
    written = [tokenizer.detokenize(row[row != 0]) for row in answers]
    written = [a + b for a, b in zip(prompts, written, strict=True)]
    assert written == texts
    data = (np.array(prompts), prompts) if kind == "arrays" else given(kind, prompts)
    for x in data:
        np.testing.assert_array_equal(
            tuned.predict(x, batch_size=BATCH, verbose=0), answers
        )


@pytest.mark.parametrize("kind", ["arrays", "tf.data", "threads", "generator"])
def test_strings_are_prompts(hub, kind):
    hub(check_strings, kind)


def check_training_on_strings():
    """By training on the token ids; tokens of references go through unchanged."""
    import hub_models

    prompts, y = ["ab a", "a", "b b ab"] * 4, np.tile([[2, 0]], (12, 1))
    results = []
    for raw in (True, False):
        task = hub_models.gpt2_of_strings()
        x = prompts
        if not raw:
            x = task.preprocessor.generate_preprocess(prompts)
        tuned = tuner(task, share_of_b)
        history = tuned.fit(
            x, y, validation_data=(x, y), batch_size=BATCH, shuffle=False, verbose=0
        ).history
        logs = tuned.train_on_batch(x, y, return_dict=True)
        greedy = reward_distribution(tuned, (x, y), 2, batch_size=5, verbose=0).greedy
        results.append((history, logs, greedy, weights_of(task)))
    keras.tree.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *results
    )


def test_training_on_strings_is_that_on_their_token_ids(hub):
    hub(check_training_on_strings)


class PromptsAndImages:
    """What PaliGemma's preprocessor does, with characters as tokens."""

    def __init__(self):
        self.tokenizer = types.SimpleNamespace(end_token_id=1, pad_token_id=0)

    def generate_preprocess(self, x):
        assert isinstance(x["prompts"], list)
        ids = np.zeros((len(x["prompts"]), 12), "int32")
        for row, prompt in zip(ids, x["prompts"], strict=True):
            row[: len(prompt)] = [int(character) for character in prompt]
        images = np.float32(x["images"]) / 127.5 - 1.0
        return {"images": images, "token_ids": ids, "padding_mask": ids > 0}


def check_prompts_with_images():
    import hub_models

    task = hub_models.pali_gemma()
    task.preprocessor = PromptsAndImages()
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3))
    raw = {"images": images, "prompts": ["25", "234", "2"]}
    tuned = tuner(task, share_of_b)
    expected = tuned.predict(task.preprocessor.generate_preprocess(raw), verbose=0)
    np.testing.assert_array_equal(tuned.predict(raw, verbose=0), expected)
    np.testing.assert_array_equal(tuned.predict_on_batch(raw), expected)


def test_prompts_come_with_images(hub):
    hub(check_prompts_with_images)


def check_text_classifier():
    import hub_models

    task = hub_models.bert_classifier()
    texts = hub_models.TEXTS * 3
    classes = task.predict(np.array(texts), verbose=0).argmax(-1)
    assert len(set(classes)) > 1
    tuned = tuner(task)
    for data in (texts, *given("tf.data", texts), Batches(texts)):
        np.testing.assert_array_equal(tuned.predict(data, verbose=0), classes)
    x = task.preprocessor(texts)
    np.testing.assert_array_equal(tuned.predict(x, verbose=0), classes)
    reward = tuned.evaluate(texts, classes, verbose=0, return_dict=True)["reward"]
    assert reward == 1.0


def test_a_text_classifier_takes_strings(hub):
    hub(check_text_classifier)


# Errors.


def check_errors():
    images, labels = photos()
    tuned, _ = judged()
    with pytest.raises(ValueError, match=r"one row for each input.*\(20, 12.*\(19,\)"):
        tuned.fit(images, labels[:19], verbose=0)
    with pytest.raises(ValueError, match="one row for each input"):
        tuned.predict(np.float32(3.0), verbose=0)
    with pytest.raises(ValueError, match=r"validation_split=0.99, 20 rows"):
        tuned.fit(images, labels, validation_split=0.99, verbose=0)
    batches = Batches(images, labels, workers=2, use_multiprocessing=True)
    with pytest.raises(ValueError, match="workers are threads"):
        tuned.fit(batches, verbose=0)
    with pytest.raises(ValueError, match=r"preprocessor = None.*Received: Loader"):
        tuned.fit(Loader(), verbose=0)
    tuned, prompts, _, _ = writer()
    with pytest.raises(ValueError, match=r"references must be.*StartEndPacker"):
        tuned.fit(prompts, prompts, verbose=0)
    with pytest.raises(ValueError, match=r"references must be.*StartEndPacker"):
        tuned.fit(*given("tf.data", prompts, prompts), verbose=0)
    with pytest.raises(ValueError, match="no room is left for an answer"):
        tuned.predict(["a b a b a b a b a b"], verbose=0)
    with pytest.raises(ValueError, match=r"without preprocessing.*`predict`"):
        tuned(prompts)
    import hub_models

    tuned = tuner(
        hub_models.gpt2(), share_of_b, policy=CausalLMPolicy(end_token_ids=[1])
    )
    with pytest.raises(ValueError, match=r"has no preprocessor.*token ids"):
        tuned.predict(prompts, verbose=0)


class Loader:
    """Another kind of data."""


def test_errors_say_what_to_do(hub):
    hub(check_errors)


def check_references():
    """The line that the error names makes token ids that a reward takes."""
    import keras_hub

    tokenizer = writer()[0].model.preprocessor.tokenizer
    packer = keras_hub.layers.StartEndPacker(
        4, end_value=tokenizer.end_token_id, pad_value=tokenizer.pad_token_id
    )
    ids = to_numpy(packer(tokenizer(["ab a", "b"])))
    np.testing.assert_array_equal(ids, [[4, 3, 1, 0], [2, 0, 0, 0]])


def test_references_are_tokenized_as_the_error_says(hub):
    hub(check_references)
