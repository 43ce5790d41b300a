"""What the file of a tuner holds beside what Keras puts there."""


def write(tuner, store):
    """Writes the random state, and what reward and reference save.

    Args:
        tuner: a `RewardTuning`.
        store: takes arrays by name, as `save_own_variables` gets it.
    """
    # Keras saves no seeds; with this one a continued run draws what it would have.
    store["seed_generator_state"] = tuner.seed_generator.state
    saved = {f"reward_{i}": v for i, v in enumerate(tuner.reward.saved_variables)}
    for name, variable in {**saved, **reference_variables(tuner)}.items():
        store[name] = variable.value


def read(tuner, store):
    """Reads what `write` wrote.

    A file may lack the reference, or have one that this tuner does not save: then the
    tuner keeps its own.

    Args:
        tuner: a `RewardTuning`.
        store: holds arrays by name, as `load_own_variables` gets it.

    Returns:
        A dict of what is left for Keras to read.
    """
    store = {name: store[name] for name in store.keys()}  # noqa: SIM118, not a dict
    tuner.seed_generator.state.assign(store.pop("seed_generator_state"))
    for i, variable in enumerate(tuner.reward.saved_variables):
        variable.assign(store.pop(f"reward_{i}"))
    if tuner.reference is not None:
        tuner.reference.begin_loading()
    for name, variable in reference_variables(tuner).items():
        if name in store:
            variable.assign(store[name])
    return {k: v for k, v in store.items() if not k.startswith("reference_")}


def reference_variables(tuner):
    """What the reference saves, by its name in the file."""
    saved = {} if tuner.reference is None else tuner.reference.saved_variables
    return {f"reference_{name}": variable for name, variable in saved.items()}
