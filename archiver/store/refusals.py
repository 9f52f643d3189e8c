"""What an S3 server's answers mean that are none, in words for the operator."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError

from archiver.errors import ArchiverError, BlobMissing, StoreUnavailable
from archiver.store.bucket import code_of

_CHECK_KEYS = (
    "check storage.s3.access_key_id and storage.s3.secret_access_key, and that they may read,"
    " write, delete and list there, versions too, and set legal holds, where the bucket has such"
)
_CHECK_BUCKET = "create the bucket, or correct storage.s3.bucket"
_CHECK_REGION = "check storage.s3.region and storage.s3.endpoint_url"
# What the operator can do, by S3's error code or, after a HEAD, the HTTP status.
ADVICE = {
    "InvalidAccessKeyId": _CHECK_KEYS,
    "SignatureDoesNotMatch": _CHECK_KEYS,
    "AccessDenied": _CHECK_KEYS,
    "403": _CHECK_KEYS,
    "RequestTimeTooSkewed": "set this machine's clock",
    "NoSuchBucket": _CHECK_BUCKET,
    "404": _CHECK_BUCKET,
    "PermanentRedirect": _CHECK_REGION,
    "AuthorizationHeaderMalformed": _CHECK_REGION,
    "301": _CHECK_REGION,
    "307": _CHECK_REGION,
}
_CODE = re.compile(rb"<Code>(\w+)</Code>")


class Refusals:
    """Those of one server; `where` is how sentences name the bucket."""

    def __init__(self, where: str) -> None:
        self.where = where

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Raises StoreUnavailable in place of boto3's own errors."""
        try:
            yield
        except ClientError as error:
            raise self.refused(code_of(error)) from error
        except BotoCoreError as error:
            raise self.no_answer(error) from error
        except (KeyError, ValueError) as error:  # it lacks something, or has what cannot be read
            raise self.no_s3(error) from error

    async def of(self, response: aiohttp.ClientResponse, sha256: bytes) -> ArchiverError:
        """The error that a GET was answered with."""
        found = _CODE.search(await response.content.read(4096))
        code = found[1].decode() if found else str(response.status)
        if code == "NoSuchKey":
            return BlobMissing(f"blob {sha256.hex()} is not in {self.where}")
        return self.refused(code)

    def refused(self, code: str) -> StoreUnavailable:
        """What an error code means."""
        advice = ADVICE.get(code, "it will be tried again; see the server's own log")
        return StoreUnavailable(f"{self.where} answered {code}: {advice}")

    def no_s3(self, error: Exception) -> StoreUnavailable:
        """What an answer means that S3 would not give."""
        reason = f"{type(error).__name__}: {error}"[:200]
        return StoreUnavailable(
            f"{self.where} answers in no way that S3 does ({reason}): check"
            " storage.s3.endpoint_url, and what is between us and it"
        )

    def no_answer(self, error: Exception) -> StoreUnavailable:
        """What silence means."""
        reason = str(error) or type(error).__name__
        return StoreUnavailable(
            f"{self.where} does not answer ({reason}): check that it runs, and"
            " storage.s3.endpoint_url"
        )
