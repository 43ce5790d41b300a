"""What the file of a tuner holds beside what Keras puts there."""

TERM = "term_"


def write(tuner, store):
    """Writes the random state, and what reward and terms save.

    Args:
        tuner: a `RewardTuning`.
        store: takes arrays by name, as `save_own_variables` gets it.
    """
    # Keras saves no seeds; with this one a continued run draws what it would have.
    store["seed_generator_state"] = tuner.seed_generator.state
    for term in tuner.terms:
        term.before_saving()
    for name, variable in saved_variables(tuner).items():
        store[name] = variable.value


def read(tuner, store):
    """Reads what `write` wrote.

    A file may lack a reference model, or have one that this tuner does not save: then
    the tuner keeps its own.

    Args:
        tuner: a `RewardTuning`.
        store: holds arrays by name, as `load_own_variables` gets it.

    Returns:
        A dict of what is left for Keras to read.
    """
    store = {name: store[name] for name in store.keys()}  # noqa: SIM118, not a dict
    tuner.seed_generator.state.assign(store.pop("seed_generator_state"))
    for term in tuner.terms:
        term.before_loading()
    for name, variable in saved_variables(tuner).items():
        if name in store or not name.startswith(TERM):
            variable.assign(store.pop(name))
    return {k: v for k, v in store.items() if not k.startswith(TERM)}


def saved_variables(tuner):
    """What reward and terms save, by its name in the file."""
    saved = {f"reward_{i}": v for i, v in enumerate(tuner.reward.saved_variables)}
    for i, term in enumerate(tuner.terms):
        own = term.saved_variables
        saved.update({f"{TERM}{i}_{name}": v for name, v in own.items()})
    return saved
