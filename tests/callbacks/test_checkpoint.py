"""A run that is interrupted and resumed ends as one that is not, bit for bit."""

import errno
import os
import random
import signal
import threading
import warnings

import keras
import numpy as np
import pytest
from keras import ops
from tiny import inputs, to_numpy, two_layers

from keras_reward import KL, MovingAverageBaseline, RewardTuning
from keras_reward.callbacks import (
    Checkpoint,
    RewardGuard,
    SampleLogger,
    checkpoint_files,
    run_state,
)

X, HELD_OUT = inputs(22), inputs(8, seed=1)
BATCH, STEPS, EPOCHS = 4, 6, 3  # the last batch has two rows


def share_of_class_3(y_true, y_pred):
    return ops.mean(ops.cast(y_pred == 3, "float32"), axis=-1)


def tuner(new_seeds=False, optimizer=None, terms=(), **compiled):
    """A tuner with dropout and other state; with other random numbers, if asked."""
    random.seed(1 if new_seeds else 0)
    if keras.config.backend() == "torch":
        import torch  # from whose own state a layer without a seed draws

        torch.manual_seed(int(new_seeds))
    model = two_layers(dropout=0.2, dropout_seed=None)
    if new_seeds:
        model.set_weights([weight + 1.0 for weight in model.get_weights()])
    tuned = RewardTuning(
        model,
        reward=share_of_class_3,
        baseline=MovingAverageBaseline(),
        model_training=True,
        terms=[term() for term in terms],
        # None: the seeds of samples and of the order of the data are drawn.
        seed=None,
    )
    optimizer = optimizer or (
        lambda: keras.optimizers.Adam(
            0.01, use_ema=True, ema_momentum=0.5, gradient_accumulation_steps=2
        )
    )
    tuned.compile(optimizer(), **compiled)
    return tuned


class Killed(Exception):
    pass


class KillAt(keras.callbacks.Callback):
    """Raises after a step, or at an event."""

    def __init__(self, epoch, batch=None, event=None):
        super().__init__()
        self.place = epoch, batch
        self.event = event

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.place:
            raise Killed

    def on_test_begin(self, logs=None):
        if self.event == "validation" and self.epoch == self.place[0]:
            raise Killed


def fit(tuned, callbacks, x=X, epochs=EPOCHS, **arguments):
    arguments = {"batch_size": BATCH, "verbose": 0, **arguments}
    if not isinstance(x, np.ndarray):
        del arguments["batch_size"]
    return tuned.fit(x, epochs=epochs, callbacks=callbacks, **arguments).history


def state_of(tuned):
    """Copies of all variables but the metrics."""
    return [np.array(to_numpy(v)) for v in tuned.variables + tuned.optimizer.variables]


def assert_same_runs(one, other):
    """Whether histories and states are equal, bit for bit."""
    for states in zip(one[1], other[1], strict=True):
        np.testing.assert_array_equal(*states)
    assert one[0] == other[0]


def run(folder, kills=(), make=tuner, extra=list, data=lambda: X, own=None, **given):
    """A run in as many processes as there are kills, and one more.

    Args:
        folder: of its checkpoints; None for a run without.
        kills: for each process but the last, what kills it.
        make: from `new_seeds` to a tuner.
        extra: makes the other callbacks.
        data: makes the data.
        own: arguments of `Checkpoint`.

    Returns:
        History and state at the end.
    """
    for kill in [*kills, None]:
        # Of the first process, and of another one that finds no checkpoint.
        is_new = folder is None or not any(folder.glob("step_*"))
        tuned = make(new_seeds=not is_new)
        callbacks = extra()
        if folder is not None:
            callbacks.insert(0, Checkpoint(folder, **(own or {"every_steps": 1})))
        if kill is None:
            history = fit(tuned, callbacks, data(), **given)
            return history, state_of(tuned)
        with pytest.raises(Killed):
            fit(tuned, [*callbacks, kill], data(), **given)


def watchers():
    """Callbacks with a state of their own."""
    return [
        RewardGuard(validation_data=(HELD_OUT, None), every_steps=4, tolerance=9.0),
        keras.callbacks.ReduceLROnPlateau("val_reward", 0.5, 1, mode="max"),
        keras.callbacks.EarlyStopping("val_reward", patience=9, mode="max"),
    ]


VALIDATED = {"validation_data": (HELD_OUT, None)}


@pytest.fixture(scope="module")
def whole():
    """A run that nothing interrupts, without checkpoints."""
    return run(None, extra=watchers, **VALIDATED)


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 4])
def test_a_resumed_run_is_the_uninterrupted_one(whole, tmp_path, every):
    kills = [KillAt(0, 1), KillAt(0, event="validation"), KillAt(1, 3), KillAt(2, 5)]
    own = {"every_steps": every, "keep": 99}
    resumed = run(tmp_path, kills, extra=watchers, own=own, **VALIDATED)
    assert_same_runs(resumed, whole)
    steps = sorted({*range(every, STEPS * EPOCHS, every), STEPS * EPOCHS})
    assert sorted(os.listdir(tmp_path)) == [f"step_{step:08}" for step in steps]


def test_checkpoints_change_nothing(whole, tmp_path):
    assert_same_runs(run(tmp_path, extra=watchers, **VALIDATED), whole)
    assert len(os.listdir(tmp_path)) == 3


def test_it_says_where_it_goes_on_and_nothing_is_done_twice(tmp_path, capsys):
    run(tmp_path, epochs=2, own={"every_steps": 4})
    assert sorted(os.listdir(tmp_path)) == [f"step_{n:08}" for n in (4, 8, 12)]
    tuned = tuner()
    checkpoint = Checkpoint(tmp_path, every_steps=4)
    history = fit(tuned, [checkpoint, KillAt(0, 0)], epochs=2, verbose=2)
    said = capsys.readouterr().out.splitlines()
    path = tmp_path / "step_00000012"
    assert f"Resumed from {path}, after 12 steps: all 2 epochs are done." in said
    assert checkpoint.resumed_from == path and len(history["reward"]) == 2
    assert checkpoint.newest == path
    # More epochs go on, as if there had been as many from the start.
    more = fit(tuned, [checkpoint], epochs=3, verbose=2)
    said = capsys.readouterr().out
    assert f"Resumed from {path}, after 12 steps: epoch 3, batch 1." in said
    assert checkpoint.newest == tmp_path / "step_00000018"
    assert_same_runs((more, state_of(tuned)), run(None))


def test_the_learning_rate_of_an_epoch_is_set_once(tmp_path):
    scheduler = lambda: [  # noqa: E731
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.5 * rate)
    ]
    whole = run(None, extra=scheduler)
    kills = [KillAt(1, 2), KillAt(2, 0)]
    assert_same_runs(run(tmp_path, kills, extra=scheduler), whole)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.SGD(0.1, momentum=0.9),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)),
        lambda: keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10)),
    ],
)
def test_state_of_optimizers(tmp_path, optimizer):
    make = lambda **given: tuner(optimizer=optimizer, **given)  # noqa: E731
    assert_same_runs(run(tmp_path, [KillAt(1, 3)], make), run(None, make=make))


def test_the_reference_model_is_that_of_the_start(tmp_path):
    make = lambda **given: tuner(terms=[lambda: KL(save=True)], **given)  # noqa: E731
    kills = [KillAt(1, 3)]
    assert_same_runs(run(tmp_path / "a", kills, make), run(None, make=make))
    # One that is not saved must be the same again.
    make = lambda **given: tuner(terms=[KL], **given)  # noqa: E731
    with pytest.raises(ValueError, match="reference model or a reward model is not"):
        run(tmp_path / "b", kills, make)


class Batches(keras.utils.PyDataset):
    """Of rows that it shuffles itself, without being told the epoch."""

    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng(3)
        self.on_epoch_end()

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return (X[self.order[index * 4 : index * 4 + 4]],)

    def on_epoch_end(self):
        self.order = self.rng.permutation(len(X))


@pytest.mark.parametrize("steps", [None, 3])
def test_a_dataset_goes_on_at_its_batch(tmp_path, steps):
    given = {"data": Batches, "steps_per_epoch": steps}
    kills = [KillAt(0, 1), KillAt(1, 1)]
    assert_same_runs(run(tmp_path, kills, **given), run(None, **given))


def test_steps_per_epoch_of_arrays(tmp_path):
    given = {"steps_per_epoch": 4, "validation_split": 0.2}
    kills = [KillAt(0, 1), KillAt(2, 2)]
    assert_same_runs(run(tmp_path, kills, **given), run(None, **given))


def rows():
    """A generator of batches."""
    for i in range(100):
        yield (X[i % 5 * 4 : i % 5 * 4 + 4],)


def test_a_generator_of_fixed_order_is_passed_over(tmp_path):
    given = {"data": rows, "steps_per_epoch": 4}
    own = {"every_steps": 1, "fixed_order": True}
    kills = [KillAt(0, 1), KillAt(1, 2)]
    assert_same_runs(run(tmp_path, kills, own=own, **given), run(None, **given))


def test_an_epoch_of_data_of_unknown_order_begins_anew(tmp_path):
    seen = []

    class Count(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            seen.append(batch)

    given = {"data": rows, "steps_per_epoch": 4, "extra": lambda: [Count()]}
    with pytest.warns(UserWarning, match="so epoch 2 begins anew .* after 2 of its"):
        run(tmp_path, [KillAt(1, 2)], epochs=2, **given)
    assert seen == [*range(4), 0, 1, 2, *range(4)]


@pytest.mark.skipif(keras.config.backend() == "torch", reason="Keras runs one step")
def test_several_steps_at_once(tmp_path):
    make = lambda **given: tuner(steps_per_execution=4, **given)  # noqa: E731
    whole = run(None, make=make)
    assert_same_runs(run(tmp_path, [KillAt(0, 3), KillAt(1, 3)], make), whole)


def test_samples_are_written_once_and_steps_counted_on(tmp_path):
    def logger():
        return [SampleLogger(tmp_path / "samples", HELD_OUT[:1], every_steps=5)]

    run(tmp_path / "run", [KillAt(0, 3), KillAt(1, 1)], extra=logger)
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    lines = (tmp_path / "samples" / "samples.jsonl").read_text().splitlines()
    assert names == ["samples.jsonl"]
    found = [line.split('"step": ')[1].split(",")[0] for line in lines]
    assert found == ["0", "5", "10", "15"]


def test_a_run_that_was_stopped_stays_stopped(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = True

    history, state = run(tmp_path, extra=lambda: [Stop()])
    tuned = tuner(new_seeds=True)
    again = fit(tuned, [Checkpoint(tmp_path)])
    assert len(again["reward"]) == 1
    assert_same_runs((again, state_of(tuned)), (history, state))
    assert len(fit(tuned, [Checkpoint(tmp_path)], epochs=EPOCHS + 1)["reward"]) == 4


def test_later_steps_do_not_change_what_was_collected():
    # Not with `use_ema`, with which Keras trains only once on JAX.
    tuned = tuner(optimizer=lambda: keras.optimizers.SGD(0.1, momentum=0.9))
    fit(tuned, [], epochs=1)
    arrays, _ = run_state.collect(tuned, [])
    before = [array.copy() for array in arrays]
    fit(tuned, [], epochs=1)
    changed = [(a != b).any() for a, b in zip(state_of(tuned), before, strict=False)]
    assert sum(changed) > 8
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_own_callbacks_keep_a_state(tmp_path):
    class Counter(keras.callbacks.Callback):
        count, table = 0, None

        def on_train_batch_end(self, batch, logs=None):
            self.count += 1
            self.table = {"a": (np.full(2, self.count), None, "text", 0.1)}

        def get_state(self):
            return {"count": self.count, "table": self.table}

        def set_state(self, state):
            self.count, self.table = state["count"], state["table"]

    counter = Counter()
    run(tmp_path, epochs=1, extra=lambda: [Counter()])
    fit(tuner(), [counter, Checkpoint(tmp_path)], epochs=1)
    assert counter.count == STEPS
    array, *others = counter.table["a"]
    np.testing.assert_array_equal(array, [STEPS, STEPS])
    assert others == [None, "text", 0.1]


def test_sigterm_writes_one_and_ends(tmp_path):
    class Terminate(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    own = {"every_seconds": 1e6}
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, extra=lambda: [Terminate()], own=own)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert os.listdir(tmp_path) == ["step_00000003"]
    tuned = tuner(new_seeds=True)
    history = fit(tuned, [Checkpoint(tmp_path)])
    assert_same_runs((history, state_of(tuned)), run(None))


def test_seconds_and_epochs_decide_when_to_write(tmp_path):
    run(tmp_path / "epochs", own={"keep": 9})
    assert len(os.listdir(tmp_path / "epochs")) == EPOCHS
    run(tmp_path / "seconds", own={"keep": 99, "every_seconds": 1e-9})
    assert len(os.listdir(tmp_path / "seconds")) == EPOCHS * STEPS
    run(tmp_path / "end", own={"keep": 99, "every_seconds": 1e9})
    assert os.listdir(tmp_path / "end") == [f"step_{EPOCHS * STEPS:08}"]


def test_a_checkpoint_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    write = checkpoint_files.write

    def full(folder, step, arrays, about):
        if step in (3, EPOCHS * STEPS):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(folder, step, arrays, about)

    monkeypatch.setattr(checkpoint_files, "write", full)
    with pytest.warns(UserWarning) as told:
        run(tmp_path, own={"every_steps": 1, "keep": 99})
    messages = [
        str(w.message) for w in told if "could not be written" in str(w.message)
    ]
    assert len(messages) == 2 and "No space left on device" in messages[0]
    assert len(os.listdir(tmp_path)) == EPOCHS * STEPS - 2


def test_another_model_or_optimizer_is_an_error(tmp_path):
    run(tmp_path, epochs=1)
    sgd = lambda: keras.optimizers.SGD(0.1)  # noqa: E731
    with pytest.raises(ValueError, match=r"another model.*'optimizer'"):
        fit(tuner(optimizer=sgd), [Checkpoint(tmp_path)])
    other = RewardTuning(two_layers(classes=6), reward=share_of_class_3)
    other.compile("adam")
    with pytest.raises(ValueError, match=r"another model.*'weights'.*first difference"):
        fit(other, [Checkpoint(tmp_path)])
    assert threading.active_count() < 50


def test_an_epoch_to_begin_with_counts_without_a_checkpoint(tmp_path):
    history = fit(tuner(), [Checkpoint(tmp_path)], initial_epoch=1, epochs=2)
    assert len(history["reward"]) == 1
    history = fit(tuner(), [Checkpoint(tmp_path)], initial_epoch=1, epochs=3)
    assert len(history["reward"]) == 2
    with pytest.raises(ValueError, match="`initial_epoch` lies after the newest"):
        fit(tuner(), [Checkpoint(tmp_path)], initial_epoch=9, epochs=10)


def test_errors_of_arguments(tmp_path):
    for given in ({"every_steps": 0}, {"keep": 0}, {"every_steps": 1.5}):
        with pytest.raises(ValueError, match="must be a positive int"):
            Checkpoint(tmp_path, **given)
    for given in ({"every_seconds": 0}, {"keep": None}):
        with pytest.raises(ValueError, match="must be positive"):
            Checkpoint(tmp_path, **given)
    with pytest.raises(ValueError, match="steps or seconds, not both"):
        Checkpoint(tmp_path, every_steps=1, every_seconds=1.0)
    with pytest.raises(ValueError, match=r"one Checkpoint.*Received: 2"):
        fit(tuner(), [Checkpoint(tmp_path), Checkpoint(tmp_path)])
    ready = keras.callbacks.CallbackList([Checkpoint(tmp_path)], model=tuner())
    with pytest.raises(ValueError, match=r"one Checkpoint.*in a CallbackList"):
        fit(tuner(), ready)
    model = two_layers()
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"works with `RewardTuning.fit`"):
        model.fit(X, np.zeros((22, 4, 5)), callbacks=[Checkpoint(tmp_path)], verbose=0)


def test_no_warning_without_a_reason(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(checkpoint|epoch|data).*")
        run(tmp_path, [KillAt(1, 3)])
