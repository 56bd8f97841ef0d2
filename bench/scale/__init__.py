"""How far it goes: one machine's figures of slots, workers, queues and waiting requests, and what follows for 10,000
GPUs. `python -m bench.scale --help`.

It must not reach into the project it measures: fleets are started by their command lines and seen from outside.
"""
