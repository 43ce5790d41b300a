"""The paper's figure 5 of a captioning model before and after tuning.

For the two models that `examples/image_captioning.py --data scenes` saves: samples many
captions of each held-out picture from both, draws the three panels and prints whether
the paper's three findings hold. Expects the example's words.json beside mle.keras.

    python benchmarks/reward_distribution.py --before mle.keras --after tuned.keras

An interrupted run continues when it is started again.
"""

import argparse
import json
import pathlib
import time

import keras
import matplotlib
import numpy as np

import keras_reward.models  # noqa: F401, registers the classes of the files
from keras_reward import CIDErReward, RewardTuning
from keras_reward.data import Scenes, Vocabulary
from keras_reward.evaluation import findings, plot, reward_distribution

END_ID = 1
REFERENCE_SCENES = 4096  # that document frequencies are counted in, as in the example
FIRST_TEST_SCENE = 512  # those before it told the example when to stop


def main():
    args = parse_arguments()
    output = pathlib.Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    models = [keras.saving.load_model(path) for path in (args.before, args.after)]
    words = args.words or pathlib.Path(args.before).with_name("words.json")
    vocabulary = Vocabulary(
        json.loads(pathlib.Path(words).read_text()), models[0].max_length
    )
    images, references, reward = load_data(models[0], vocabulary, args.images)
    results, seconds = [], []
    for name, model in zip(("before", "after"), models, strict=True):
        print(f"{name}: {args.samples} captions of each of {len(images)} pictures")
        begin = time.perf_counter()
        tuner = RewardTuning(model, reward=reward)
        results.append(
            reward_distribution(
                tuner,
                (images, references),
                num_samples=args.samples,
                chunk_size=args.chunk,
                batch_size=args.batch,
                seed=args.seed,
                path=output / f"{name}.npz",
            )
        )
        seconds.append(time.perf_counter() - begin)
    plot(*results, path=output / "reward_distribution.png")
    found = findings(*results)
    print_findings(found, args.samples)
    found["seconds"] = [round(s, 1) for s in seconds]
    found["settings"] = vars(args)
    (output / "findings.json").write_text(json.dumps(found, indent=2) + "\n")
    print(f"saved {output}, after {sum(seconds):.0f} seconds of sampling")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", required=True, help="a mle.keras")
    parser.add_argument("--after", required=True, help="a tuned.keras")
    parser.add_argument("--words", help="default: words.json beside --before")
    parser.add_argument("--samples", type=int, default=256, help="of each picture")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=64, help="samples at a time")
    parser.add_argument("--batch", type=int, default=16, help="pictures at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="outputs/reward_distribution")
    return parser.parse_args()


def load_data(model, vocabulary, count):
    """Held-out pictures, ids of their captions, and the reward."""
    size = model.image_shape[0]
    options = {"task": "captions", "size": size, "vocabulary": vocabulary}
    training = collect(Scenes("train", REFERENCE_SCENES, **options))[1]
    test = Scenes("test", count, start=FIRST_TEST_SCENE, **options)
    images, references = collect(test)
    reward = CIDErReward(end_id=END_ID)
    reward.adapt(training)
    return images, references, reward


def collect(dataset):
    """All batches in one: two arrays."""
    batches = [dataset[i] for i in range(len(dataset))]
    return [np.concatenate(part) for part in zip(*batches, strict=True)]


def print_findings(found, samples):
    crossing = found["crossing"]
    crossed = f"from N = {crossing}" if crossing else f"for no N up to {samples}"
    holds = "yes" if found["likeliest_stays_below"] else "no"
    print(
        f"mean reward: {found['mean_before']:.3f} before, {found['mean_after']:.3f} "
        f"after; greedy {found['greedy_before']:.3f} and {found['greedy_after']:.3f}\n"
        f"1. The level that 5 % of samples reach before, {found['level']:.3f}, is "
        f"reached by {found['share_above']:.1%} after\n"
        f"   (each picture's own level: by {found['share_above_own']:.1%})\n"
        f"2. The best of N before is as good as after {crossed} "
        f"(best of all: {found['best_before']:.3f}, {found['best_after']:.3f})\n"
        f"3. The likeliest of N before stays below a sample after: {holds} "
        f"(of all: {found['likeliest_before']:.3f}, {found['likeliest_after']:.3f})"
    )


if __name__ == "__main__":
    matplotlib.use("Agg")
    main()
