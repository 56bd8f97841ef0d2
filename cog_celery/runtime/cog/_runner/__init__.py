"""The process that a model runs in: loads its predictor, speaks the slot's protocol.

It must not need anything but Python itself.
"""
