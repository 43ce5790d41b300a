"""What an interrupt, or too little memory, does to `fit`, `evaluate` and `predict`."""

import functools
import inspect

import keras

from keras_reward import interrupts
from keras_reward.callbacks.interruption import with_interruption


class Interruptible:
    """Mixin for `RewardTuning`: Ctrl-C ends a loop after the step, with all weights.

    An error says what became of the weights, where that is not obvious.
    """

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        try:
            with interrupts.deferred():
                return super().fit(*args, **kwargs)
        except BaseException as error:
            bound = inspect.signature(keras.Model.fit).bind(self, *args, **kwargs)
            for note in self.notes(error, bound.arguments.get("callbacks")):
                error.add_note(note)
            raise

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, *args, **kwargs):
        with interrupts.deferred():
            return super().evaluate(*args, **kwargs)

    @functools.wraps(keras.Model.predict)
    def predict(self, *args, **kwargs):
        bound = inspect.signature(keras.Model.predict).bind(self, *args, **kwargs)
        callbacks = with_interruption(bound.arguments.get("callbacks"), self)
        bound.arguments["callbacks"] = callbacks
        with interrupts.deferred():
            return super().predict(*bound.args[1:], **bound.kwargs)

    def notes(self, error, callbacks):
        """What to say of an error that ends `fit`: a list of sentences.

        Args:
            error: an exception.
            callbacks: those that the user passed to `fit`.
        """
        has_weights = self.has_weights()
        out_of_memory = self.is_out_of_memory(error)
        if has_weights and not out_of_memory:
            return []
        notes = []
        if out_of_memory:
            notes.append(
                "The step needs more memory than there is: take smaller batches, or "
                "fewer samples (`num_samples`)."
            )
        if has_weights:
            notes.append("The model has the weights of before the step.")
        else:
            notes.append(
                "The weights were lost with the step, which had taken them. Load them "
                "from a file, or make the model again."
            )
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = callbacks.callbacks
        given = keras.tree.flatten(callbacks) if callbacks else []
        newest = [getattr(each, "newest", None) for each in given]
        newest = [path for path in newest if path is not None]
        return [*notes, *(f"The newest checkpoint is {path}." for path in newest)]
