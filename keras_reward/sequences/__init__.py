"""Writing sequences token by token: what policies and models share."""
