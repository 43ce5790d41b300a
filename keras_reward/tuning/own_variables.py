"""What a saved `RewardTuning` contains in addition to what Keras saves."""

import re

TERM = "term_"
SEED = "seed_generator_state"


def write(tuner, store):
    """Writes the random state, adapters, and what the reward and terms save.

    Args:
        tuner: a `RewardTuning`.
        store: takes arrays by name, as passed to `save_own_variables`.
    """
    # Keras saves no seeds. With this one, a resumed run draws the same samples.
    store[SEED] = tuner.seed_generator.state
    finish_reading(tuner)
    for name, variable in (tuner.adapters.variables | saved_variables(tuner)).items():
        store[name] = variable.value


def read(tuner, store):
    """Reads what `write` wrote.

    A file may lack a reference model, or have one that this tuner does not save. In
    both cases the tuner keeps its own.

    Args:
        tuner: a `RewardTuning`.
        store: holds arrays by name, as passed to `load_own_variables`.

    Returns:
        A dict of what is left for Keras to read.
    """
    store = {name: store[name] for name in store.keys()}  # noqa: SIM118, not a dict
    if SEED not in store:
        raise ValueError(
            "This file is not one of a RewardTuning: it may hold the weights of the "
            "model alone. Load those into the model, with `tuned.model.load_weights("
            f"path)`. Received: a file without {SEED!r}"
        )
    tuner.seed_generator.state.assign(store.pop(SEED))
    for name in list(store):
        of_term = re.fullmatch(rf"{TERM}\d+_(adapter_\d+)", name)
        if of_term:  # in earlier files
            store.setdefault(of_term[1], store.pop(name))
    tuner.adapters.read(store)
    for term in tuner.terms:
        term.before_loading()
    for name, variable in saved_variables(tuner).items():
        if name in store or not name.startswith(TERM):
            variable.assign(store.pop(name))
    return {k: v for k, v in store.items() if not k.startswith(TERM)}


def finish_reading(tuner):
    """Does what waits until a file is read to its end, if one was read."""
    tuner.adapters.restore()
    for term in tuner.terms:
        term.before_saving()


def saved_variables(tuner):
    """The variables that the reward and terms save, by their names in the file."""
    saved = {f"reward_{i}": v for i, v in enumerate(tuner.reward.saved_variables)}
    for i, term in enumerate(tuner.terms):
        own = term.saved_variables
        saved.update({f"{TERM}{i}_{name}": v for name, v in own.items()})
    return saved
