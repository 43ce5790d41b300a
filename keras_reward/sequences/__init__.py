"""Generating sequences token by token, shared by policies and models."""
