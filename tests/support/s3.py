"""Starts servers of S3 on free ports for the tests; both check every signature.

It must not know what the tests keep in them.
"""

from __future__ import annotations

import json
import os
import socket
import sysconfig
from pathlib import Path
from typing import Any, ClassVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.support.processes import Child, wait_until
from tests.support.servers import free_port

ACCESS_KEY = "AKIATESTS"
SECRET_KEY = "canary-secret-key-of-the-tests"
BUCKET = "files"
"""The one bucket that is there."""


class S3Server:
    """A server of its own with an empty bucket. `env` has what a client needs to know, for os.environ."""

    keys: ClassVar = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    nothing: ClassVar = {
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    """Instead of what this machine has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = {**self.nothing, **self.keys, "AWS_ENDPOINT_URL_S3": self.url}
        self._child = Child(
            type(self).__name__, self._command(), log=folder / "s3.log", env={**os.environ, **self._environment()}
        )
        try:
            wait_until(self._listens, "the S3 server to listen", timeout=30)
            self._prepare()
        except BaseException:
            self.stop()
            raise

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _environment(self) -> dict[str, str]:
        return {}

    def _prepare(self) -> None:
        """Make the bucket."""

    def _listens(self) -> bool:
        self._child.check_running()
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    @property
    def client(self) -> Any:
        """boto3's own client, which shares nothing with ours."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
            config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
        )

    def objects(self) -> dict[str, int]:
        """Keys and sizes."""
        found = self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return {one["Key"]: one["Size"] for one in found}

    def unfinished(self) -> list[str]:
        """The keys of uploads in parts that are neither complete nor aborted."""
        try:
            found = self.client.list_multipart_uploads(Bucket=BUCKET)
        except self.client.exceptions.NoSuchUpload:  # rclone, of a bucket that has never had one
            return []
        return [one["Key"] for one in found.get("Uploads", [])]

    def stop(self) -> None:
        self._child.discard()


class Rclone(S3Server):
    """From the wheel; objects are files below `folder`."""

    def _command(self) -> list[str]:
        (self.folder / "data" / BUCKET).mkdir(parents=True)
        program = os.path.join(sysconfig.get_path("scripts"), "rclone")
        where = ["--addr", f"127.0.0.1:{self.port}", str(self.folder / "data")]
        return [program, "serve", "s3", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", *where]

    def _environment(self) -> dict[str, str]:
        return {"RCLONE_CONFIG": str(self.folder / "rclone.conf"), "RCLONE_CACHE_DIR": str(self.folder / "cache")}


class SeaweedFS(S3Server):
    """Stricter, and 150 MB: for those who name its program, `weed`, in COG_TEST_WEED, as `make test-s3` does."""

    program = os.environ.get("COG_TEST_WEED")

    def _command(self) -> list[str]:
        assert self.program is not None
        keys = {"name": "tests", "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]}
        config = self.folder / "s3.json"
        config.write_text(json.dumps({"identities": [{**keys, "actions": ["Admin", "Read", "Write", "List"]}]}))
        ports = [f"-{name}.port={free_port()}" for name in ("master", "volume", "filer")]
        ports += [f"-{name}.port.grpc={free_port()}" for name in ("master", "volume", "filer", "s3")]
        where = [f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.port={self.port}"]
        return [self.program, "server", "-s3", f"-s3.config={config}", "-volume.max=0", *where, *ports]

    def _prepare(self) -> None:
        def made() -> bool:
            try:
                self.client.create_bucket(Bucket=BUCKET)
                self.client.put_object(Bucket=BUCKET, Key="first", Body=b"x")
            except (BotoCoreError, ClientError):
                return False
            return True

        wait_until(made, "a bucket in SeaweedFS", timeout=60, interval=0.2)
        self.client.delete_object(Bucket=BUCKET, Key="first")


def kinds() -> list[type[S3Server]]:
    """Those that are here."""
    return [Rclone, SeaweedFS] if SeaweedFS.program else [Rclone]
