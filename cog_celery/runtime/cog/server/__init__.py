"""The place where models written for older releases import some names from."""
