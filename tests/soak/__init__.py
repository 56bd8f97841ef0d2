"""The long fault tests, `python -m tests.soak`: real processes, real kill -9, hundreds of times, in parts.

They must not know how a promise is kept; what they judge is what a producer, a server and a model see.
"""
