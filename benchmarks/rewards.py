"""How fast the rewards are beside the field's own implementations, on one machine.

Ours is jitted by JAX; the references run as they are, in turns with ours. `--data` is
a folder with `captions/coco_captions_val2017.json.gz` and
`captions/flickr8k_captions.json.gz` (COCO's format), for document frequencies of real
captions. Writes `outputs/benchmarks/rewards.json` and `rewards.png`.

    python benchmarks/rewards.py --data FOLDER [--only detection panoptic]
"""

import argparse
import json
import os
import pathlib

os.environ["KERAS_BACKEND"] = "jax"

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import rewards_captioning
import rewards_colors
import rewards_detection
import rewards_panoptic

PARTS = {
    "captioning": rewards_captioning,
    "detection": rewards_detection,
    "panoptic": rewards_panoptic,
    "colors": rewards_colors,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, help="folder with captions/")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("outputs/benchmarks")
    )
    arguments = parser.parse_args()
    if "captioning" in arguments.only and arguments.data is None:
        parser.error("captioning needs --data FOLDER")
    rows = []
    for number, name in enumerate(arguments.only, 1):
        print(f"[{number}/{len(arguments.only)}] {name} ...", flush=True)
        folder = [arguments.data / "captions"] if name == "captioning" else []
        rows += PARTS[name].measure(*folder)
    print(table(rows))
    memory_ratio = None
    if "panoptic" in arguments.only:
        temporaries, inputs = rewards_panoptic.memory()
        memory_ratio = temporaries / inputs
        print(
            f"panoptic memory: temporaries {temporaries / 2**20:.0f} MiB, inputs "
            f"{inputs / 2**20:.0f} MiB, ratio {memory_ratio:.2f} (at most 2)"
        )
    arguments.output.mkdir(parents=True, exist_ok=True)
    save(rows, memory_ratio, arguments.output)


def table(rows):
    """The rows as text, with the ratio of the reference's time to ours."""
    lines = [
        f"{'reward':44} {'against':34} {'ours':>10} {'theirs':>10} ratio  goal",
    ]
    for name, reference, ours, theirs, goal in rows:
        lines.append(
            f"{name:44} {reference:34} {1e3 * ours:7.3f} ms {1e3 * theirs:7.2f} ms "
            f"{theirs / ours:5.1f} {goal:5g}"
        )
    return "\n".join(lines)


def save(rows, memory_ratio, folder):
    """The numbers as JSON, the ratios as a chart."""
    names = ("reward", "against", "seconds", "reference_seconds", "goal")
    results = [dict(zip(names, row, strict=True)) for row in rows]
    text = json.dumps({"times": results, "panoptic_memory": memory_ratio}, indent=2)
    (folder / "rewards.json").write_text(text)

    figure, axes = plt.subplots(figsize=(9, 0.6 * len(rows) + 1), layout="constrained")
    labels = [f"{name}\nagainst {reference}" for name, reference, *_ in rows]
    axes.barh(labels, [theirs / ours for *_, ours, theirs, _ in rows], label="measured")
    axes.plot([goal for *_, goal in rows], labels, "k|", markersize=18, label="goal")
    axes.set(xscale="log", xlabel="times as fast as the reference")
    axes.invert_yaxis()
    axes.legend()
    figure.savefig(folder / "rewards.png", dpi=120)


if __name__ == "__main__":
    main()
