"""What the built-in scenes ask for: head room, perception, and how they look.

    python benchmarks/scenes.py
    python benchmarks/scenes.py --models FOLDER/mle.keras FOLDER/tuned.keras

Head room: how much more CIDEr-D the best caption of the grammar earns than the
likeliest one, for somebody who sees everything. The CIDEr-D of a caption is the mean
over all references that the grammar may draw, each with its probability; document
frequencies are those of training captions. Likeliest are the caption of the highest
probability, and the one that greedy decoding of the grammar's exact distribution
writes, as a perfectly trained model would.

Perception, with `--models`: the share of the digits of held-out scenes that the greedy
captions of a model name. Also their CIDEr-D, measured as above, and how much of the
head room above greedy they gain over the first model. `examples/image_captioning.py`
writes such models, and beside them `words.json`. Scenes that it looked at to decide
when to stop are left out.

How they look: `scenes.png` in the folder `--output`.
"""

import argparse
import json
import pathlib
import time

import keras
import matplotlib.pyplot
import numpy as np

import keras_reward.models  # noqa: F401 (registers the classes of saved models)
from keras_reward.data import Vocabulary
from keras_reward.data.scene_captions import named_digits, wordings
from keras_reward.data.scenes import CLASS_NAMES, make_scene
from keras_reward.evaluation.cider import (
    inverse_document_frequencies,
    ngram_counts,
    similarity,
)

END = "<end>"
FIRST_TEST_SCENE = 512  # those before it told the example when to stop


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=[], help=".keras files")
    parser.add_argument("--scenes", type=int, default=500, help="how many")
    parser.add_argument(
        "--start", type=int, default=FIRST_TEST_SCENE, help="the first one's number"
    )
    parser.add_argument("--output", default="outputs")
    args = parser.parse_args()
    start = time.perf_counter()
    train = [make_scene("train", index) for index in range(2000)]
    seconds = time.perf_counter() - start
    print(f"{len(train) / seconds:.0f} scenes a second, reading the images included")
    numbers = range(args.start, args.start + args.scenes)
    test = [make_scene("test", number) for number in numbers]
    print(f"held-out scenes {numbers.start} to {numbers.stop - 1}")
    corpus = [[count(caption) for caption in scene.captions] for scene in train]
    idf = inverse_document_frequencies(corpus)
    room = head_room(test, idf)
    print_head_room(room, len(test))
    print_models(args.models, test, idf, room["best"] - room["greedy"])
    output = pathlib.Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    save_contact_sheet(output / "scenes.png", test)


# Head room.


def head_room(scenes, idf):
    """Mean CIDEr-D of captions under perfect perception, by how they are chosen."""
    rows = []
    for scene in scenes:
        distribution = probabilities(scene.layout)
        expected = expected_cider(distribution, distribution, idf)
        rows.append(
            {
                "best": max(expected.values()),
                "greedy": expected[greedy(distribution)],
                "most likely": expected[max(distribution, key=distribution.get)],
                "sampled": sum(distribution[c] * expected[c] for c in expected),
            }
        )
    return {name: np.mean([row[name] for row in rows]) for name in rows[0]}


def expected_cider(captions, distribution, idf):
    """CIDEr-D of captions against one reference, in the mean over the reference."""
    references = {reference: [count(reference)] for reference in distribution}
    expected = dict.fromkeys(captions, 0.0)
    for caption in expected:
        counts = count(caption)
        for reference, probability in distribution.items():
            cider = similarity(counts, references[reference], idf)
            expected[caption] += probability * cider
    return expected


def count(caption):
    return ngram_counts(caption.split())


def probabilities(layout):
    """The probability that one of a scene's captions, picked at random, is this."""
    ways = wordings(layout)
    return {
        caption: 1.0 / len(ways) / len(captions)
        for captions in ways
        for caption in captions
    }


def greedy(distribution):
    """The caption made of the likeliest word, given those before, at every place."""
    written = []
    while END not in written:
        following = {}
        for caption, probability in distribution.items():
            words = [*caption.split(), END]
            if words[: len(written)] == written:
                word = words[len(written)]
                following[word] = following.get(word, 0.0) + probability
        written.append(max(following, key=following.get))
    return " ".join(written[:-1])


def print_head_room(room, count):
    print(f"\nCIDEr-D under perfect perception, {count} held-out scenes")
    for name, cider in room.items():
        print(f"{name:12}{cider:7.3f}")
    for name in ("greedy", "most likely"):
        print(f"head room above {name}: {room['best'] / room[name] - 1.0:+.1%}")


# Trained models.


def print_models(paths, scenes, idf, room):
    """Perception and CIDEr-D of models, and the head room gained since the first."""
    first = None
    for path in map(pathlib.Path, paths):
        captions = write_captions(path, scenes)
        named = np.array([named_digits(caption) for caption in captions])
        true = np.array([np.bincount(s.labels, minlength=10) for s in scenes])
        right = np.minimum(named, true)
        cider = np.mean(
            [
                expected_cider([caption], probabilities(scene.layout), idf)[caption]
                for caption, scene in zip(captions, scenes, strict=True)
            ]
        )
        first = cider if first is None else first
        print(f"\n{path}: names {right.sum() / true.sum():.1%} of the digits")
        print(f"of those that it names, {right.sum() / named.sum():.1%} are there")
        print(f"CIDEr-D {cider:.3f}, head room gained {(cider - first) / room:.0%}")
        for digit, share in zip(CLASS_NAMES, right.sum(0) / true.sum(0), strict=True):
            print(f"{digit} {share:.0%}", end="  ")
        print()


def write_captions(path, scenes, batch_size=128):
    """Greedy captions of a saved model."""
    model = keras.saving.load_model(path)
    words = json.loads((path.parent / "words.json").read_text())
    images = np.stack([scene.image for scene in scenes])
    batches = np.array_split(images, -(-len(images) // batch_size))
    ids = [model.generate(batch, temperature=0) for batch in batches]
    return Vocabulary(words, model.max_length).decode(np.concatenate(ids))


# The contact sheet.


def save_contact_sheet(path, scenes, rows=6, columns=4):
    """Scenes with boxes, their maps, and captions below."""
    figure, axes = matplotlib.pyplot.subplots(
        rows, 2 * columns, figsize=(5 * columns, 3.4 * rows)
    )
    for scene, (left, right) in zip(scenes, axes.reshape(-1, 2), strict=False):
        left.imshow(scene.image, interpolation="nearest")
        right.imshow(paint(scene.panoptic), interpolation="nearest")
        for box, label in zip(scene.boxes, scene.labels, strict=True):
            corner, sides = box[:2] - 0.5, box[2:] - box[:2]
            for panel, colour in ((left, "yellow"), (right, "black")):
                panel.add_patch(
                    matplotlib.patches.Rectangle(corner, *sides, fill=False, ec=colour)
                )
            left.text(*corner, str(label), color="yellow", fontsize=12)
        left.set_title("\n".join(scene.captions), fontsize=7, loc="left")
        for panel in (left, right):
            panel.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=60)
    matplotlib.pyplot.close(figure)
    print(f"saved {path}")


def paint(panoptic):
    """A colour for each class, a little lighter for each next instance."""
    colours = matplotlib.colormaps["tab20"](panoptic[..., 0])[..., :3]
    return np.clip(colours + 0.08 * (panoptic[..., 1:] - 1), 0.0, 1.0)


if __name__ == "__main__":
    matplotlib.use("Agg")
    main()
