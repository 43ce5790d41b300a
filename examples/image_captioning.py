"""Image captioning: say what most people would say, by tuning for CIDEr-D.

Maximum likelihood learns how people describe a picture. Its likeliest caption is often
a brief one: of the many ways to say more, each one is rare. The field's metric,
CIDEr-D, asks for what the descriptions of a picture have in common, and reward tuning
(Pinto et al. 2023, "Tuning computer vision models with task rewards", section 4.4) asks
for the metric.

    python examples/image_captioning.py
    python examples/image_captioning.py --data coco:path/to/coco --seed 1
    python examples/image_captioning.py --mle-checkpoint FOLDER/mle.keras

The scenes are handwritten digits over photographs (`keras_reward.data.Scenes`). All
numbers are of held-out pictures.
"""

import argparse
import json
import pathlib
from typing import NamedTuple

import keras
import matplotlib.pyplot as plt
import numpy as np
import shared

from keras_reward import CIDErReward, RewardTuning
from keras_reward.data import CocoCaptions, Scenes, Vocabulary, coco_files
from keras_reward.data.vocabulary import split
from keras_reward.evaluation import cider
from keras_reward.models import (
    CaptionPreprocessor,
    VisionEncoderDecoder,
    VisionTransformer,
)
from keras_reward.whole_files import whole_file

PAD_ID, END_ID = 0, 1
NUM_SAMPLES = 8
UNLIMITED = 10**7  # a scene is made when it is asked for
REFERENCE_SCENES = 4096  # that words and document frequencies are counted in
STOPPING_IMAGES = 512  # held out: when to stop, and the curves
TEST_IMAGES = 1024  # held out: the table
PREDICTION_BATCH = 128


class Stage(NamedTuple):
    """An epoch is `steps` steps, or one pass over data too few for all epochs."""

    batch_size: int
    rate: float
    warm_up: int
    steps: int
    epochs: int

    def fit_to(self, data):
        """Steps in an epoch and number of epochs, for about as many steps in all."""
        if len(data) > self.steps * self.epochs:
            return self.steps, self.epochs
        return len(data), -(-self.steps * self.epochs // len(data))


# "paper" is its ViT-B/16 and its schedule. It lacks the encoder's weights from
# ImageNet-21k (any Keras encoder fits, see `VisionEncoderDecoder`) and, for these, the
# ten times smaller learning rate.
TINY_BLOCKS = {"num_layers": 2, "num_heads": 4, "mlp_dim": 256}
PRESETS = {
    "tiny": {
        "image_size": 64,
        "encoder": {"patch_size": 16, "width": 128, "stem": "conv", **TINY_BLOCKS},
        "decoder": TINY_BLOCKS,
        "max_length": 20,
        "likelihood": Stage(32, 1e-3, warm_up=100, steps=200, epochs=18),
        "tuning": Stage(32, 1e-4, warm_up=20, steps=50, epochs=8),
    },
    "paper": {
        "image_size": 512,
        "encoder": {"patch_size": 16, "width": 768, "num_layers": 12, "num_heads": 12},
        "decoder": {"num_layers": 6, "num_heads": 12},
        "max_length": 128,
        "likelihood": Stage(256, 3e-4, warm_up=100, steps=250, epochs=20),
        "tuning": Stage(256, 1e-5, warm_up=1000, steps=250, epochs=40),
    },
}


def main():
    args = parse_arguments()
    preset = argparse.Namespace(**PRESETS[args.preset])
    (output := pathlib.Path(args.output)).mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(args.seed)
    clock, curves = shared.Clock(), {}

    shared.heading("1. Pictures and captions")
    data = load_data(args.data, preset, args.seed)
    clock.stop("data")
    shared.heading("2. Maximum likelihood: what do people say?")
    if args.mle_checkpoint:
        model = load_checkpoint(args.mle_checkpoint, data.vocabulary)
    else:
        model = build_model(preset, data.vocabulary)
        curves["likelihood"] = fit_likelihood(model, preset.likelihood, data)
        shared.save_model(model, output / "mle.keras")
    with whole_file(output / "words.json") as new:
        new.write_text(json.dumps(data.vocabulary.words))
    clock.stop("likelihood")
    reward = CIDErReward(end_id=END_ID)
    reward.adapt(data.references)
    before, captions_before = measure(model, reward, data)
    clock.stop("measuring")
    shared.heading("3. Reward tuning: what would most of them say?")
    curves["tuning"] = tune(model, reward, preset.tuning, data, args.seed)
    shared.save_model(model, output / "tuned.keras")
    clock.stop("tuning")
    after, captions_after = measure(model, reward, data)
    clock.stop("measuring")
    shared.heading(f"4. Captions of {len(data.test[0])} held-out pictures")
    shared.print_table({"before": before, "after": after})
    save_gallery(output / "captions.png", data, captions_before, captions_after)
    panels = {
        "maximum likelihood": (curves.get("likelihood", {}), ("loss", "val_loss")),
        "tuning": (curves["tuning"], ("reward", "val_reward")),
    }
    shared.save_curves(output / "curves.png", panels)
    shared.save_results(
        output,
        "CIDEr-D",
        before,
        after,
        clock,
        settings=settings_of(args, preset),
        curves=curves,
    )


def settings_of(args, preset):
    """What results.json says of a run."""
    stages = {"likelihood": preset.likelihood, "tuning": preset.tuning}
    stages = {name: stage._asdict() for name, stage in stages.items()}
    return {**vars(args), "num_samples": NUM_SAMPLES, **vars(preset), **stages}


def load_checkpoint(path, vocabulary):
    """The model of an earlier run, whose words must be those of this one."""
    words = json.loads(pathlib.Path(path).with_name("words.json").read_text())
    if words != vocabulary.words:
        raise SystemExit(
            "Expected --mle-checkpoint of the same --data and --preset. Received: "
            f"{path}, which has other words"
        )
    return keras.saving.load_model(path)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="scenes", help="scenes, or coco:FOLDER")
    parser.add_argument("--preset", default="tiny", choices=PRESETS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mle-checkpoint", help="a mle.keras; skips the first stage")
    parser.add_argument("--output", default="outputs/image_captioning")
    return parser.parse_args()


# 1. Data


class Data(NamedTuple):
    """Ids are `(images, captions, tokens)`, texts a list of strings for each image."""

    vocabulary: Vocabulary
    references: np.ndarray  # ids of training captions
    likelihood: keras.utils.PyDataset  # batches for the first stage
    tuning: keras.utils.PyDataset  # batches for the second stage
    stopping: tuple  # held-out images and ids
    test: tuple  # other held-out images and texts


def load_data(source, preset, seed):
    size = preset.image_size
    batches = preset.likelihood.batch_size, preset.tuning.batch_size
    if source == "scenes":
        texts, likelihood, tuning, held_out = open_scenes(size, batches, seed)
    elif source.startswith("coco:"):
        texts, likelihood, tuning, held_out = open_coco(source[5:], size, batches, seed)
    else:
        raise SystemExit(f'Expected --data scenes or coco:FOLDER. Received: "{source}"')
    words = [split(text) for captions in texts for text in captions]
    length = min(preset.max_length, 1 + max(map(len, words)))
    vocabulary = Vocabulary.from_captions(map(" ".join, words), length)
    likelihood.vocabulary = tuning.vocabulary = vocabulary
    likelihood.transform = one_caption(vocabulary, seed)
    images, held_out_texts = collect(held_out)
    count = min(STOPPING_IMAGES, len(images) // 2)
    stopping = images[:count], vocabulary.encode(held_out_texts[:count])
    test = images[count:], held_out_texts[count:]
    return Data(
        vocabulary, vocabulary.encode(texts), likelihood, tuning, stopping, test
    )


def open_scenes(size, batches, seed):
    """Texts to count words in, batches for both stages, and held-out batches."""
    options = {"task": "captions", "size": size}
    _, texts = collect(Scenes("train", REFERENCE_SCENES, **options))
    stages = [  # no scene is seen twice
        Scenes("train", UNLIMITED, start=start * UNLIMITED, batch_size=batch, **options)
        for start, batch in enumerate(batches, 1 + 2 * seed)
    ]
    return texts, *stages, Scenes("test", STOPPING_IMAGES + TEST_IMAGES, **options)


def open_coco(folder, size, batches, seed):
    """The same for a folder in COCO's format."""
    train, held_out = (
        {**coco_files(folder, part, "captions"), "image_size": (size, size)}
        for part in ("train", "eval")
    )
    train = {**train, "shuffle": True, "seed": seed, "drop_remainder": True}
    stages = [CocoCaptions(**train, batch_size=batch) for batch in batches]
    return stages[0].captions, *stages, CocoCaptions(**held_out, check_images=True)


def collect(dataset):
    """Images and texts of all batches."""
    images, texts = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    return np.concatenate(images), [captions for batch in texts for captions in batch]


def one_caption(vocabulary, seed):
    """A transform to what `fit` takes, with one caption of each image, at random."""
    generator = np.random.default_rng(seed)
    preprocessor = CaptionPreprocessor(len(vocabulary), vocabulary.max_length)

    def prepare(images, ids):
        present = np.sum(ids[:, :, 0] != PAD_ID, axis=1)
        which = (generator.random(len(ids)) * present).astype(int)
        chosen = ids[np.arange(len(ids)), which]
        return preprocessor(images, [row[row != PAD_ID] for row in chosen])

    return prepare


# 2. The model


def build_model(preset, vocabulary):
    image_shape = (preset.image_size, preset.image_size, 3)
    encoder = VisionTransformer(image_shape, **preset.encoder)
    sizes = len(vocabulary), vocabulary.max_length
    return VisionEncoderDecoder(encoder, *sizes, end_id=END_ID, **preset.decoder)


def fit_likelihood(model, stage, data):
    """Ordinary training, until the loss of held-out captions stops improving."""
    steps, epochs = stage.fit_to(data.likelihood)
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )
    stop = keras.callbacks.EarlyStopping(patience=3, restore_best_weights=True)
    rate = shared.learning_rate(steps * epochs, stage.rate, stage.warm_up, last=0.0)
    model.compile(keras.optimizers.Adam(rate, global_clipnorm=1.0), loss)
    return model.fit(
        data.likelihood,
        steps_per_epoch=steps,
        epochs=epochs,
        validation_data=data.likelihood.transform(*data.stopping),
        validation_batch_size=PREDICTION_BATCH,
        callbacks=[stop],
    ).history


# 3. Reward tuning


def tune(model, reward, stage, data, seed):
    """Maximum likelihood on the model's own captions, weighted by their reward."""
    tuned = RewardTuning(model, reward=reward, num_samples=NUM_SAMPLES, seed=seed)
    steps, epochs = stage.fit_to(data.tuning)
    rate = shared.learning_rate(steps * epochs, stage.rate, stage.warm_up, last=1.0)
    tuned.compile(optimizer=keras.optimizers.Adam(rate))
    return tuned.fit(
        data.tuning,
        steps_per_epoch=steps,
        epochs=epochs,
        validation_data=data.stopping,
        validation_batch_size=PREDICTION_BATCH,
    ).history


# 4. Results


def measure(model, reward, data):
    """The table's column for a model, and its greedy captions of the test pictures."""
    images, texts = data.test
    references = data.vocabulary.encode(texts)
    table = {"CIDEr-D": None}
    for name, temperature in (("sampled", 1.0), ("greedy", 0.0)):
        ids = [
            model.generate(batch, temperature=temperature, seed=0)
            for batch in np.array_split(images, -(-len(images) // PREDICTION_BATCH))
        ]
        ids = np.concatenate(ids)
        captions = data.vocabulary.decode(ids)
        table[f"{name}: reward"] = float(keras.ops.mean(reward(references, ids)))
        table[f"{name}: words"] = float(np.mean([len(c.split()) for c in captions]))
    words = [[" ".join(split(text)) for text in captions] for captions in texts]
    return {**table, "CIDEr-D": cider(words, captions)["cider"]}, captions


def save_gallery(path, data, before, after, rows=3, columns=4):
    _, axes = plt.subplots(rows, columns, figsize=(16, 5 * rows))
    for panel, *row in zip(axes.flat, *data.test, before, after, strict=False):
        image, people, early, late = row
        panel.imshow(image)
        panel.set_title(f"before: {early}\nafter: {late}", fontsize=10)
        panel.set(xticks=[], yticks=[], xlabel="\n".join(people))
    shared.save_figure(path)


if __name__ == "__main__":
    plt.switch_backend("Agg")
    main()
