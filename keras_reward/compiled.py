"""Compiled functions of a model, which are stored with the model."""

import keras


class CompiledFunction(keras.Model):
    """Base class: a function of a model, compiled by its own `predict`.

    A subclass implements `call`. It reads the variables of its owner and does not
    change them.

    Args:
        owner: a `keras.Model`.
    """

    def __init__(self, owner):
        super().__init__(dtype=owner.dtype_policy, autocast=False)
        self.owner = owner
        self.supports_jit = owner.supports_jit
        self.built = True

    @property
    def non_trainable_variables(self):
        """Includes all that the owner's steps read; others would become constants."""
        own = super().non_trainable_variables
        known = {id(variable) for variable in own}
        owners = self.owner.non_trainable_variables
        return own + [v for v in owners if id(v) not in known]


def kept(owner, kind, *arguments):
    """`kind(owner, *arguments)`, made once for the same arguments, kept by the owner.

    It is made anew once the owner has other variables, such as new LoRA adapters: on
    TensorFlow, a compiled function knows those alone that were there.

    Args:
        owner: a `keras.Model`.
        kind: a subclass of `CompiledFunction`.
        *arguments: hashable.
    """
    functions = owner.__dict__.get("_compiled_functions")
    if functions is None:
        functions = {}
        # Hidden from Keras's tracking, since the functions contain the owner.
        object.__setattr__(owner, "_compiled_functions", functions)
    key = (kind, *arguments)
    variables = owner.variables
    function, known = functions.get(key, (None, []))
    if function is None or list(map(id, known)) != list(map(id, variables)):
        function = kind(owner, *arguments)
        functions[key] = function, variables
    return function
