"""Weights of other libraries, there and back."""
