"""Outlets for samples besides files: TensorBoard and Weights & Biases."""

import json
import time

import numpy as np

TAG = "samples"


def open_outlets(tensorboard, wandb):
    """A list of outlets, objects with `write(step, records, sheet)` and `flush()`.

    Args:
        tensorboard: folder of event files, or None.
        wandb: whether to log to the current run of Weights & Biases.
    """
    outlets = [] if tensorboard is None else [TensorBoardOutlet(tensorboard)]
    return [*outlets, WandbOutlet()] if wandb else outlets


class TensorBoardOutlet:
    """Event files with the sheet as an image, records as text, rewards as numbers.

    Uses the package `tensorboard`, which does not need TensorFlow.
    """

    def __init__(self, folder):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.writer = EventFileWriter(str(folder))

    def write(self, step, records, sheet):
        from tensorboard.compat.proto import event_pb2, summary_pb2

        values = [
            summary_pb2.Summary.Value(tag=f"{TAG}/{name}", simple_value=value)
            for name, value in mean_rewards(records).items()
        ]
        values.append(text_value([json.dumps(record) for record in records]))
        if sheet:
            png, height, width = sheet
            image = summary_pb2.Summary.Image(
                height=height, width=width, colorspace=4, encoded_image_string=png
            )
            values.append(summary_pb2.Summary.Value(tag=TAG, image=image))
        summary = summary_pb2.Summary(value=values)
        event = event_pb2.Event(wall_time=time.time(), step=step, summary=summary)
        self.writer.add_event(event)

    def flush(self):
        self.writer.flush()


def text_value(texts):
    """Strings as a value for TensorBoard's text plugin."""
    from tensorboard.compat.proto import summary_pb2, tensor_pb2, tensor_shape_pb2
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    size = tensor_shape_pb2.TensorShapeProto.Dim(size=len(texts))
    tensor = tensor_pb2.TensorProto(
        dtype=DT_STRING,
        string_val=[text.encode() for text in texts],
        tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=[size]),
    )
    plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
    metadata = summary_pb2.SummaryMetadata(plugin_data=plugin)
    return summary_pb2.Summary.Value(
        tag=f"{TAG}/records", metadata=metadata, tensor=tensor
    )


class WandbOutlet:
    """The current run of Weights & Biases: the sheet, a table, rewards."""

    def __init__(self):
        import wandb

        if wandb.run is None:
            raise ValueError(
                "`wandb=True` logs to a run: start one with `wandb.init(...)` first. "
                "Received: wandb.run=None"
            )
        self.wandb = wandb

    def write(self, step, records, sheet):
        import io

        from PIL import Image

        columns = ["input", "kind", "reward", "output"]
        rows = [
            [record["input"], kind, one["reward"], one.get("text", str(one["output"]))]
            for record in records
            for kind, one in [
                ("greedy", record["greedy"]),
                *(("sample", sample) for sample in record["samples"]),
            ]
        ]
        logged = {f"{TAG}/{k}": v for k, v in mean_rewards(records).items()}
        logged[f"{TAG}/table"] = self.wandb.Table(columns=columns, data=rows)
        if sheet:
            picture = Image.open(io.BytesIO(sheet[0]))
            logged[TAG] = self.wandb.Image(picture)
        self.wandb.log({**logged, f"{TAG}/step": step})

    def flush(self):
        """Does nothing: whoever started the run calls `wandb.finish`."""


def mean_rewards(records):
    """Mean reward of greedy outputs and of samples: a dict of floats."""
    greedy = [record["greedy"]["reward"] for record in records]
    samples = [one["reward"] for record in records for one in record["samples"]]
    return {
        name: float(np.nanmean(np.array(values, "float64")))
        for name, values in (("greedy", greedy), ("sampled", samples))
    }
