"""A bucket of S3 as the place for files: boto3 signs and understands, our own HTTP client carries.

It owns keys, parts, and the URLs under which objects are read; it must not know how a prediction came by its files.
"""

from __future__ import annotations

import logging
import math
import secrets
import string
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from typing import Any, Final, Self, cast
from urllib.parse import quote, urlsplit

import boto3
from botocore import xform_name
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError, NoCredentialsError
from botocore.parsers import ResponseParserError
from botocore.session import get_session

from cog_celery.errors import Canceled, CogCeleryError, UploadError, UrlError, UsageError
from cog_celery.files import http_uploads, s3_errors, urls
from cog_celery.files.cancel import Cancel
from cog_celery.files.http_client import Client, HttpFailure
from cog_celery.files.http_uploads import Terms
from cog_celery.files.output_files import BLOCK, OutputFile, quoted
from cog_celery.files.s3_errors import S3Failure
from cog_celery.files.urls import AddressPolicy, HttpUrl
from cog_celery.settings import Settings

log = logging.getLogger(__name__)

PART_BYTES: Final = 16 << 20
SINGLE_BYTES: Final = 32 << 20
"""Larger files are sent in parts."""
HASHED_BYTES: Final = 256 << 10
"""Are read at once for the signature. boto3 asks for more, which the memory of each thread would keep."""
PARALLEL: Final = 4
"""Parts of one file that are sent at once."""
MAX_PARTS: Final = 10_000
MAX_PUT_BYTES: Final = 5 << 30
"""What S3 takes in one PUT."""
MAX_KEY_BYTES: Final = 1024
MAX_ANSWER_BYTES: Final = 1 << 20
READ_TIMEOUT: Final = 60.0
ALLOWANCE: Final = 300.0
"""Seconds. Many a server answers only when a part, or the whole object put together, is on its disks."""
SIGNED_BEYOND: Final = 60.0
"""Seconds that a signed PUT outlives its upload: clocks differ."""
MARK: Final = "cog-celery-upload"
"""Metadata of an object of parts, by which we know ours."""
ABORT_WAIT: Final = 0.3
ABORT_TIMEOUT: Final = 20.0
"""Seconds for which an upload that failed waits until its parts are gone, and after which nobody tries any more."""

_ANYWHERE: Final = ("0.0.0.0/0", "::/0")


class Bucket:
    """What is below a prefix of a bucket; for all of a worker's threads.

    `url` is s3://bucket/prefix, `key` a template of {queue}, {id}, {entry} and {name}. `output`: `presigned` (a GET
    that lasts `lifetime` seconds), `public`, `s3`, or a URL that keys are appended to. `presigned`: each file goes to a
    PUT that was signed here, which needs no more than the right to sign. Raises UsageError.
    """

    def __init__(
        self,
        url: str,
        *,
        client: Client,
        presigned: bool = False,
        key: str = "{queue}/{id}/{name}",
        output: str = "presigned",
        lifetime: float = 3600.0,
    ) -> None:
        parts = urlsplit(url)
        self.name = parts.netloc
        self._prefix = parts.path.strip("/")
        self._template = key
        if {".", ".."} & set(self._key_of("n", Terms({}, Cancel(), math.inf, "q", "i", "e")).split("/")):
            raise UsageError("the upload URL and the upload key have a . or .. between slashes: leave it out")
        self._presigned = presigned
        self._output = output
        self._lifetime = lifetime
        self._client = client
        self._carrier = _Carrier(client)
        # Their lines hold headers and whole URLs, with their signatures.
        for name in ("boto3", "botocore"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._lock = threading.Lock()
        self._api: Any = None  # with credentials; without, the next file looks for them again
        with _usable(url):
            urls.parse(self._connect().meta.endpoint_url)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """As a process was told. Raises UsageError.

        Where the server is the worker's own configuration says: it is not confined to --addresses.
        """
        assert settings.upload_url is not None
        return cls(
            settings.upload_url,
            client=client_for(settings.upload_url, AddressPolicy(allow=_ANYWHERE, deny=settings.deny_addresses)),
            presigned=settings.upload_mode == "presigned",
            key=settings.upload_key,
            output=settings.output_url,
            lifetime=settings.output_url_lifetime,
        )

    def store(self, file: OutputFile, name: str, terms: Terms) -> str:
        """Upload the file; the output. Raises UploadError, Canceled."""
        key = self.key(name, terms)
        where = f"s3://{self.name}/{key if len(key) <= urls.MAX_SHOWN_PATH else key[: urls.MAX_SHOWN_PATH] + '…'}"
        try:
            if self._presigned:
                self._put_signed(file, key, terms)
            elif file.size <= SINGLE_BYTES:
                self._call(terms, "put_object", Key=key, ContentType=file.type, Body=_Part(file, 0, file.size))
            else:
                self._put_parts(file, key, terms)
            return self._output_of(key)
        except HttpFailure as failure:
            if isinstance(failure, S3Failure) and failure.code in s3_errors.OF_CREDENTIALS:
                self._forget_credentials()
            if failure.status is None and failure.url is not _NOWHERE:
                where += f" at {failure.url.netloc}"
            raise http_uploads.refused(name, where, failure, failure.url) from None

    def close(self) -> None:
        """Let go of connections that do nothing."""
        self._client.close()

    def key(self, name: str, terms: Terms) -> str:
        """The object's key. Raises UploadError when it is longer than S3 allows."""
        key = self._key_of(name, terms)
        if len(key.encode()) > MAX_KEY_BYTES:
            raise UploadError(
                f"The output file {quoted(name[:200])} would have a key of {len(key.encode())} bytes in the bucket "
                f"{self.name}, and S3 allows {MAX_KEY_BYTES}. Give the file or the prediction a shorter name."
            )
        return key

    def _key_of(self, name: str, terms: Terms) -> str:
        values = {"queue": terms.queue, "id": terms.id, "entry": terms.entry, "name": name}
        safe = {field: key_part(value) for field, value in values.items()}
        below = "".join(
            text + (safe[field] if field else "") for text, field, _, _ in string.Formatter().parse(self._template)
        )
        return f"{self._prefix}/{below.lstrip('/')}".lstrip("/")

    def _put_signed(self, file: OutputFile, key: str, terms: Terms) -> None:
        if file.size > MAX_PUT_BYTES:
            raise UploadError(
                f"The output file {quoted(file.name)} has {file.size} bytes, and one signed PUT takes "
                f"{MAX_PUT_BYTES}. Use --upload-mode s3, which sends large files in parts."
            )
        lasts = min(max(0.0, terms.until - time.monotonic()) + SIGNED_BEYOND, 7 * 86_400)
        signed = self._sign("put_object", math.ceil(lasts), Key=key, ContentType=file.type, ContentLength=file.size)
        try:
            # No redirect: to another host the signature would be worth nothing.
            http_uploads.put(self._client, urls.parse(signed), file, terms, follow=frozenset())
        except S3Failure as failure:
            if failure.code and failure.status:  # the keys are ours
                raise s3_errors.refusal(failure.url, failure.code, failure.status) from None
            raise

    def _put_parts(self, file: OutputFile, key: str, terms: Terms) -> None:
        mark = secrets.token_hex(16)
        begun = self._call(terms, "create_multipart_upload", Key=key, ContentType=file.type, Metadata={MARK: mark})
        upload = _said(begun, "UploadId")
        try:
            tags = self._send_parts(file, key, upload, terms)
            self._complete(key, upload, tags, mark, terms)
        except BaseException:
            self._abort(key, upload)
            raise

    def _send_parts(self, file: OutputFile, key: str, upload: str, terms: Terms) -> list[str]:
        """The ETags of the parts. The first that fails ends the others at once."""
        size = max(PART_BYTES, -(-file.size // MAX_PARTS))
        stop = Cancel()
        until_stop = replace(terms, cancel=stop)

        def send(number: int) -> str:
            part = _Part(file, number * size, min(size, file.size - number * size))
            try:
                answer = self._call(
                    until_stop, "upload_part", Key=key, UploadId=upload, PartNumber=number + 1, Body=part
                )
                return _said(answer, "ETag")
            except BaseException:
                stop.set()
                raise

        with terms.cancel.calling(stop.set), ThreadPoolExecutor(PARALLEL, "part") as pool:
            futures = [pool.submit(send, number) for number in range(-(-file.size // size))]
        terms.cancel.check()
        errors = [error for future in futures if (error := future.exception())]
        for error in errors:
            if not isinstance(error, Canceled):
                raise error
        return [future.result() for future in futures]

    def _complete(self, key: str, upload: str, tags: list[str], mark: str, terms: Terms) -> None:
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
        try:
            self._call(terms, "complete_multipart_upload", Key=key, UploadId=upload, MultipartUpload={"Parts": parts})
        except S3Failure as failure:
            # The answer to an earlier try may have been lost: then there is no upload any more, but its object.
            if failure.code != "NoSuchUpload" or self._mark_of(key, terms) != mark:
                raise

    def _mark_of(self, key: str, terms: Terms) -> str | None:
        try:
            headers = self._call(terms, "head_object", Key=key)["ResponseMetadata"]["HTTPHeaders"]
            return cast(str | None, headers.get(f"x-amz-meta-{MARK}"))
        except HttpFailure:  # to look needs another right than to write
            return None

    def _abort(self, key: str, upload: str) -> None:
        """Have the parts removed, which cost money and that nobody sees. It goes on behind whoever cannot wait."""
        terms = Terms({}, Cancel(), time.monotonic() + ABORT_TIMEOUT)

        def abort() -> None:
            try:
                self._call(terms, "abort_multipart_upload", Key=key, UploadId=upload)
            except CogCeleryError as error:
                if not (isinstance(error, S3Failure) and error.code == "NoSuchUpload"):
                    log.warning("parts of s3://%s/%s may be left: %s", self.name, key, error)

        thread = threading.Thread(target=abort, name="abort", daemon=True)
        thread.start()
        thread.join(ABORT_WAIT)

    def _output_of(self, key: str) -> str:
        match self._output:
            case "s3":
                return f"s3://{self.name}/{key}"
            case "presigned":
                return self._sign("get_object", math.ceil(self._lifetime), Key=key)
            case "public":  # the address is the same, in the style that the client is set to
                return self._sign("get_object", 60, Key=key).partition("?")[0]
            case prefix:
                return f"{prefix.rstrip('/')}/{quote(key, safe='/~')}"

    def _sign(self, operation: str, lifetime: int, **parameters: Any) -> str:
        """A presigned URL. Raises HttpFailure."""
        try:
            api = self._connect()
            return str(
                api.generate_presigned_url(operation, Params={"Bucket": self.name, **parameters}, ExpiresIn=lifetime)
            )
        except (BotoCoreError, ClientError, ResponseParserError) as error:
            raise _own_failure(error) from None

    def _call(self, terms: Terms, operation: str, **parameters: Any) -> dict[str, Any]:
        """One call of the API; those that are worth another try get one. Raises HttpFailure, UploadError, Canceled."""

        def attempt() -> dict[str, Any]:
            terms.cancel.check()
            try:
                with self._carrier.under(terms):
                    answer: dict[str, Any] = getattr(self._connect(), operation)(Bucket=self.name, **parameters)
                    return answer
            except ClientError as error:
                if xform_name(error.operation_name) != operation:
                    raise _own_failure(error) from None
                raise _refusal(error) from None
            except (BotoCoreError, ResponseParserError) as error:
                raise _own_failure(error) from None

        return self._client.trying(attempt, terms.cancel)

    def _forget_credentials(self) -> None:
        """Have the next file look for others: files and variables are not read again by themselves."""
        with self._lock:
            self._api = None

    def _connect(self) -> Any:
        """The API, with credentials or without; those that are missing are looked for again."""
        with self._lock:
            if self._api is None:
                session = boto3.Session()
                api = session.client("s3", config=_config())
                self._carrier.attach(api)
                if session.get_credentials() is None:
                    return api
                self._api = api
            return self._api


def client_for(url: str, policy: AddressPolicy) -> Client:
    """A client for the server of an s3:// URL, which trusts whom AWS_CA_BUNDLE names. Raises UsageError."""
    with _usable(url):
        ca_bundle = get_session().get_config_variable("ca_bundle")
        return Client(policy, read_timeout=READ_TIMEOUT, allowance=ALLOWANCE, ca_bundle=ca_bundle)


def key_part(value: str) -> str:
    """Any text as one part of a key, different for different texts: it has no slash and is neither `.` nor `..`."""
    if set(value) <= {"."}:
        return "%" + "2E" * len(value) if value else "%"
    return "".join(
        char if char.isprintable() and char not in "/\\%" else quote(char.encode("utf-8", "surrogatepass"), safe="")
        for char in value
    )


class _Part:
    """A range of a file: for boto3 something to read, to hash it; for our client, blocks."""

    def __init__(self, file: OutputFile, start: int, size: int) -> None:
        self._file = file
        self._start = start
        self._size = size
        self._position = 0

    def __len__(self) -> int:
        return self._size

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        self._position = position

    def read(self, most: int) -> bytes:
        most = min(most, HASHED_BYTES, self._size - self._position)
        block = self._file.read(self._start + self._position, most) if most > 0 else b""
        self._position += len(block)
        return block

    def blocks(self) -> Iterator[bytes]:
        """The content, from the start, at every call. Raises UploadError if the file became shorter."""
        position = 0
        while position < self._size:
            block = self._file.read(self._start + position, min(BLOCK, self._size - position))
            position += len(block)
            yield block


class _Carrier:
    """Sends what botocore has signed, in its stead: so that every wait can be cut, and has an end.

    All but those for credentials: where these come from a server (metadata, STS, SSO), boto3 asks it by itself.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._now = threading.local()

    def attach(self, api: Any) -> None:
        api.meta.events.register("before-send.s3", self._send)

    @contextmanager
    def under(self, terms: Terms) -> Iterator[None]:
        """Whatever this thread sends meanwhile is sent under these terms."""
        self._now.terms = terms
        try:
            yield
        finally:
            del self._now.terms

    def _send(self, request: AWSPreparedRequest, **_: object) -> AWSResponse:
        terms: Terms = self._now.terms
        body = request.body
        blocks = body.blocks if isinstance(body, _Part) else (lambda: [_bytes(body)]) if body else None
        with self._client.exchange(
            request.method,
            urls.parse(request.url),
            headers=_headers(request.headers),
            body=blocks,
            follow=frozenset(),  # a redirect needs another signature; botocore sees to that
            cancel=terms.cancel,
            until=terms.until,
        ) as answer:
            content = answer.read(MAX_ANSWER_BYTES)
            return AWSResponse(request.url, answer.response.status, dict(answer.response.headers), _Raw(content))


class _Raw(BytesIO):
    """An answer's body in the form in which botocore takes it."""

    def stream(self, **_: object) -> Iterator[bytes]:
        yield self.read()


def _bytes(body: str | bytes | bytearray) -> bytes:
    return body.encode() if isinstance(body, str) else bytes(body)


def _headers(headers: Mapping[str, str | bytes]) -> dict[str, str]:
    # Nobody waits here for the 100 that `Expect` asks for; it is not signed.
    return {
        name: value.decode("latin-1") if isinstance(value, bytes) else value
        for name, value in headers.items()
        if name.lower() != "expect"
    }


def _config() -> Config:
    return Config(
        signature_version="s3v4",
        # What is sent is hashed for the signature, and every server checks that. Checksums in trailers would be one
        # more hash, and some servers keep them as a part of the file.
        s3={"payload_signing_enabled": True},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "total_max_attempts": 1},  # we try again: our waits can be canceled
        user_agent_extra="cog-celery",
    )


@contextmanager
def _usable(url: str) -> Iterator[None]:
    """Raises UsageError for settings of AWS that are wrong: before any file is there."""
    try:
        yield
    except (BotoCoreError, UrlError, ValueError, OSError) as error:  # whose texts may hold the endpoint's URL
        raise UsageError(
            f"{url} cannot be used with the AWS settings that are there ({type(error).__name__}): check AWS_PROFILE, "
            "AWS_ENDPOINT_URL, AWS_REGION, AWS_CA_BUNDLE and the files in ~/.aws"
        ) from None


_NOWHERE: Final = HttpUrl("s3", "", 0, "", "/")
"""Of failures that happened here."""


def _refusal(error: ClientError) -> S3Failure:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return s3_errors.refusal(_NOWHERE, code, status)


def _said(answer: dict[str, Any], name: str) -> str:
    """What an answer must have, and that of a server of something else has not. Raises S3Failure."""
    value = answer.get(name)
    if not isinstance(value, str):
        raise S3Failure(
            *(_NOWHERE, "", None, f"it does not answer as S3 does, without {name}"),
            advice="Check AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL.",
        )
    return value


def _own_failure(error: BotoCoreError | ClientError | ResponseParserError) -> S3Failure:
    """Before anything was sent to S3: a ClientError is that of whoever gives credentials.

    Never the error's own text, which may repeat a configuration.
    """
    match error:
        case NoCredentialsError():
            reason = "the worker has no credentials for it"
            advice = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the worker a role."
        case CredentialRetrievalError() | ClientError():
            reason, advice = "the worker's credentials cannot be renewed", "Look at where they come from."
        case _:
            reason = f"the request could not be made ({type(error).__name__})"
            advice = "Check the AWS_* variables and the files in ~/.aws."
    return S3Failure(_NOWHERE, "", None, reason, advice)
