"""What the errors of S3 mean, for whoever holds the keys and for whoever was given a signed URL.

It must not know what was sent, and shows nothing of an answer but its error code: messages repeat keys and signatures.
"""

from __future__ import annotations

import re
import time
from calendar import timegm
from typing import Final
from urllib.parse import parse_qsl

from cog_celery.files.http_client import HttpFailure
from cog_celery.files.urls import HttpUrl

MAX_ANSWER_BYTES: Final = 16 << 10
"""Of an error's body: S3's have less than 2 KB."""

# Looked for, not parsed: nothing is expanded, and half an answer will do. Shorter than a signature.
_CODE = re.compile(rb"<Code>\s*([A-Za-z][A-Za-z0-9.]{0,47})\s*</Code>")
_MESSAGE = re.compile(rb"<Message>([^<]{1,1000})</Message>")

_BUSY: Final = frozenset(
    ["SlowDown", "Throttling", "ThrottlingException", "RequestThrottled", "RequestLimitExceeded", "TooManyRequests"]
)
_PASSING: Final = frozenset(["RequestTimeout", "InternalError", "ServiceUnavailable", "OperationAborted"])

_COMMON: Final = {
    "NoSuchBucket": ("there is no such bucket", "Make it, or correct its name."),
    "RequestTimeTooSkewed": ("the clock of the worker is wrong", "Set it: signatures have the time in them."),
    "InvalidAccessKeyId": ("it does not know the access key", "Use one that has not been deleted."),
    "SlowDown": ("it takes no more requests for now", "Try again later, or use several prefixes or buckets."),
    "EntityTooLarge": ("the file is too large for it", "One PUT takes 5 GB: --upload-mode s3 sends parts."),
    "MissingContentLength": (
        "it got no Content-Length",
        "Let nothing between the worker and it take that header away.",
    ),
    "BadDigest": ("it got something else than was sent", "Look at the network, and at what is between."),
    "QuotaExceeded": ("there is no room for it", "Make some, or raise the quota."),
}
_COMMON["XAmzContentSHA256Mismatch"] = _COMMON["XMinioContentSHA256Mismatch"] = _COMMON["BadDigest"]

_REGION = ("the bucket is in another region", "Set AWS_REGION to its region.")

_OWN: Final = {
    "AccessDenied": ("access was denied", "Allow the worker s3:PutObject and s3:AbortMultipartUpload there."),
    "SignatureDoesNotMatch": ("the secret key does not belong to the access key", "Check AWS_SECRET_ACCESS_KEY."),
    "ExpiredToken": ("the worker's credentials have expired", "Renew them."),
    "InvalidToken": ("the session token is not valid", "Renew the credentials, or unset AWS_SESSION_TOKEN."),
    "NoSuchUpload": ("the upload was ended by somebody else", "Look for what removes unfinished uploads so soon."),
    "PermanentRedirect": _REGION,
    "TemporaryRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
}

_SIGNED: Final = {
    "AccessDenied": ("access was denied", "Whoever signed the URL must be allowed to write there, and sign for a PUT."),
    "ExpiredToken": ("the credentials that signed its URL have expired", "Send a new URL, signed by others."),
    "InvalidToken": ("the session token in its URL is not valid", "Send a new URL."),
}


OF_CREDENTIALS: Final = frozenset(["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"])
"""With other credentials it may be taken."""

_REFUSED: Final = (400, 401, 403)
_BY_STATUS: Final = {411: "MissingContentLength", 413: "EntityTooLarge"}


class S3Failure(HttpFailure):
    """A refusal of S3: `code` is its word for it; `advice`, a sentence, what to do."""

    def __init__(self, url: HttpUrl, code: str, status: int | None, reason: str, advice: str) -> None:
        passing = (status is not None and (status in (408, 429) or status >= 500)) or code in _BUSY | _PASSING
        super().__init__(url, reason, status=status, retryable=passing)
        self.code = code
        self.advice = advice


def refusal(url: HttpUrl, code: str, status: int) -> S3Failure:
    """What a refusal means to whoever signs with keys of their own."""
    if not _CODE.fullmatch(f"<Code>{code}</Code>".encode()):
        code = ""
    found = "SlowDown" if code in _BUSY else code
    meant, advice = _OWN.get(found) or _COMMON.get(found) or (f"it answered {status}", "")
    return S3Failure(url, code, status, f"{meant} ({code})" if code else meant, advice)


def explained(failure: HttpFailure, answer: bytes, content_type: str) -> HttpFailure:
    """What a refused PUT to a signed URL means; other failures stay what they are.

    `answer` is the beginning of the body, `content_type` what was sent as such. Servers that are not S3 answer what
    they like: nothing here is taken for more than a word.
    """
    found = _CODE.search(answer)
    code = found[1].decode() if found else ""
    query = {name.lower(): value for name, value in parse_qsl(failure.url.target.partition("?")[2])}
    if failure.status is None or not (code or _is_signed(query)):
        return failure
    if code in _BUSY | _PASSING:
        failure.retryable = True
        return failure
    if failure.status in _REFUSED and (_says_expired(code, answer) or _is_over(query)):
        meant = ("its URL has expired", "Send one that lasts until the prediction has ended.")
    elif code == "SignatureDoesNotMatch":
        signed = query.get("x-amz-signedheaders", "").lower().split(";")
        why = "it was changed, or signed with another key or for another method"
        if "content-type" in signed:
            length = " or another Content-Length" if "content-length" in signed else ""
            why = f"it was signed for another Content-Type than {content_type}{length}, or changed"
        meant = (f"the signature of its URL does not match: {why}", "Send the URL as it was signed.")
    else:
        said = _BY_STATUS.get(failure.status, code)
        if (known := _SIGNED.get(said) or _COMMON.get(said)) is None:
            return failure
        meant = known
    answered = f"it answered {failure.status} {code}".rstrip()
    return S3Failure(failure.url, code, failure.status, f"{meant[0]} ({answered})", meant[1])


def _says_expired(code: str, answer: bytes) -> bool:
    """AWS: AccessDenied and "Request has expired". Others have another code, and the same word."""
    message = _MESSAGE.search(answer)
    return code not in _SIGNED.keys() - {"AccessDenied"} and message is not None and b"expired" in message[1].lower()


def _is_signed(query: dict[str, str]) -> bool:
    return any(name in query for name in ("x-amz-signature", "x-goog-signature", "signature"))


def _is_over(query: dict[str, str]) -> bool:
    """Whether the URL says itself that its time is over."""
    for maker in ("amz", "goog"):
        try:
            signed = timegm(time.strptime(query[f"x-{maker}-date"], "%Y%m%dT%H%M%SZ"))
            return signed + int(query[f"x-{maker}-expires"]) < time.time()
        except (KeyError, ValueError, OverflowError):
            continue
    try:
        return int(query["expires"]) < time.time()
    except (KeyError, ValueError):
        return False
