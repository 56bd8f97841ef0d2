"""The errors of this package, one tree; each carries a message that a person outside may read.

It must not know where an error is shown: no logging, no rendering of snapshots.

    CogCeleryError
    ├── UsageError              wrong options, variables or files; exit status 2
    ├── PlatformError           ours: the model is not to blame
    │   ├── ServerError         Redis or the broker refused us, or is not fit for the work
    │   │   ├── ServerLost      it is out of reach, or in a state that passes: try again
    │   │   ├── GroupMissing    the consumer group does not exist
    │   │   └── Forbidden       the server's access rules do not allow it
    │   ├── SettingsConflict    the queue was made with other settings
    │   ├── InstallError        a model's environment could not be made
    │   ├── SetupError          the predictor could not be loaded or set up
    │   ├── RunnerDied          the runner's process ended on its own
    │   ├── RunnerProtocolError the runner said something that is no message
    │   ├── UploadError         an output could not be uploaded
    │   └── InputError          an input's file could not be fetched
    ├── BadRequest              the request's message itself is wrong
    ├── UrlError                a URL that cannot be used
    └── Canceled                the prediction was canceled while its files were on their way
"""

from __future__ import annotations


class CogCeleryError(Exception):
    """Root of the tree. `str(error)` is the public message: what happened, to what, what to do."""


class UsageError(CogCeleryError):
    """Options, variables or files that cannot be used as given."""


class PlatformError(CogCeleryError):
    """A failure of the platform: the worker, its servers, files in or out. Never the model's own."""


class ServerError(PlatformError):
    """Redis or the broker cannot do what is needed of it."""


class ServerLost(ServerError):
    """No answer, or one that says "not now". Whether the command was carried out is not known."""


class GroupMissing(ServerError):
    """The stream has no consumer group of its name."""


class Forbidden(ServerError):
    """The server's access rules forbid us a key or a command."""


class SettingsConflict(PlatformError):
    """A queue's stored dialect, lease or attempts are not the ones this process was started with."""


class InstallError(PlatformError):
    """A model's environment could not be made: no such Python here, or pip or uv failed."""


class SetupError(PlatformError):
    """The predictor could not be loaded, or its setup() raised, died or ran out of time.

    `in_setup`: the seconds that setup() took until it raised; None when it was not entered, or nobody lived to tell.
    """

    def __init__(self, message: str, in_setup: float | None = None) -> None:
        self.in_setup = in_setup
        super().__init__(message)


class RunnerDied(PlatformError):
    """The runner's process ended; `exitcode` as Python gives it (negative: a signal).

    `bystander`: it was killed for the sake of another prediction in it.
    """

    def __init__(self, exitcode: int, *, bystander: bool = False) -> None:
        self.exitcode = exitcode
        self.bystander = bystander
        super().__init__(
            f"Prediction failed for an unknown reason. It might have run out of memory? (exitcode {exitcode})"
        )


class RunnerProtocolError(PlatformError):
    """The runner's messages are not the protocol's."""


class UploadError(PlatformError):
    """An output's file was refused, or its server could not be reached. Names no query string."""


class InputError(PlatformError):
    """An input's file could not be fetched. Names no query string."""


class BadRequest(CogCeleryError):
    """The request's message is not one that can be served."""


class UrlError(CogCeleryError):
    """A URL that cannot be used; the message says why and leaves the URL itself out, which may be secret."""


class Canceled(CogCeleryError):
    """The prediction was canceled while its files were on their way in or out."""
