"""A certificate authority of a test's own, by the openssl command.

It must not know who uses its certificates.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

DAYS = "2"


@dataclass(frozen=True)
class Certificate:
    """The paths of a certificate and of its key."""

    file: Path
    key: Path


class Authority:
    """`file` is the authority's own certificate, which clients trust."""

    def __init__(self, folder: Path, name: str = "test authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._own = Certificate(folder / "ca.pem", folder / "ca.key")
        self.file = self._own.file
        self._run("req", "-x509", *self._new(self._own.key), "-subj", f"/CN={name}", "-days", DAYS, "-out", self.file)

    def issue(self, name: str, *hosts: str) -> Certificate:
        """A certificate for servers at these hosts (`DNS:localhost`, `IP:127.0.0.1`), or for a client without any."""
        made = Certificate(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        request, extensions = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={','.join(hosts)}\n" if hosts else "extendedKeyUsage=clientAuth\n")
        self._run("req", *self._new(made.key), "-subj", f"/CN={name}", "-out", request)
        signed_by = ("-CA", self._own.file, "-CAkey", self._own.key, "-CAcreateserial")
        self._run("x509", "-req", "-in", request, *signed_by, "-days", DAYS, "-extfile", extensions, "-out", made.file)
        return made

    def _new(self, key: Path) -> tuple[str | Path, ...]:
        # Of elliptic curves: made at once.
        return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key)

    def _run(self, *words: str | Path) -> None:
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
