"""The environment variables that a model's process gets: all but credentials.

It must not know what the variables are for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# Ours and our libraries': where our servers are, and what opens them.
OURS = re.compile(r"(COG_CELERY_|COGCELERY_|CELERY_|REDIS_|VALKEY_|BROKER_|AWS_|OTEL_|WEBHOOK_|FLOWER_)", re.IGNORECASE)
# Made for one interpreter, and poison for another.
INTERPRETER = frozenset(
    {"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONEXECUTABLE", "PYTHONSAFEPATH", "VIRTUAL_ENV"}
)
CREDENTIAL = re.compile(
    r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|COOKIE|CONNECTION_?STRING"
    r"|_(AUTH|DSN|KEY|PASS|PAT|PWD)$|^SSH_AUTH_SOCK$",
    re.IGNORECASE,
)
WITH_USER = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s@]+@", re.IGNORECASE)


def model_environment(
    environ: Mapping[str, str],
    keep: Iterable[str] = (),
    extra: Mapping[str, str | None] | None = None,
    *,
    other_interpreter: bool = False,
) -> tuple[dict[str, str], list[str]]:
    """The model's variables, and the names of those withheld that look like a credential of its own.

    `keep` names variables that the model is to have whatever they look like; `extra` are set on top.
    `other_interpreter`: the model does not run in the interpreter that these variables were made for.
    """
    keep = frozenset(keep)
    given: dict[str, str] = {}
    withheld: list[str] = []
    for name, value in environ.items():
        if name in keep:
            given[name] = value
        elif OURS.match(name) or (other_interpreter and name in INTERPRETER):
            continue
        elif CREDENTIAL.search(name) or WITH_USER.search(value):
            withheld.append(name)
        else:
            given[name] = value
    given.update({name: value for name, value in (extra or {}).items() if value is not None})
    return given, sorted(withheld)
