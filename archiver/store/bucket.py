"""A bucket of an S3 server, through boto3. Every call blocks, and raises boto3's own errors."""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import IO, TYPE_CHECKING, Literal, cast

from botocore.exceptions import ClientError

from archiver.store.base import MIB, Body, Stored, digest_of, key_of
from archiver.store.reader import BodyReader

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.literals import BucketLocationConstraintType
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

CONNECT_SECONDS = 5
ANSWER_SECONDS = 60
CONNECTIONS = 16
STALE = timedelta(days=1)
UNNAMED_REGION = "us-east-1"  # S3 refuses to have its first region named when a bucket is made


@dataclass(frozen=True)
class Bucket:
    """Where the objects are and how we come in; `config.yaml` has the same names.

    Without `endpoint_url` it is Amazon's; without keys boto3 looks for them where it always does.
    """

    endpoint_url: str | None
    region: str
    name: str
    prefix: str
    access_key_id: str | None
    secret_access_key: str | None = field(repr=False)
    addressing_style: Literal["auto", "path", "virtual"]

    @cached_property
    def client(self) -> S3Client:
        """Made at the first use, because it takes a fifth of a second; so is boto3 imported, which
        would be a sixth of what every command takes to start."""
        import boto3.session
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=self.region,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            config=Config(
                signature_version="s3v4",
                s3={
                    "addressing_style": self.addressing_style,
                    # The MD5 is signed, and is checked: a second hash of all bytes adds nothing.
                    "payload_signing_enabled": False,
                },
                retries={"mode": "standard", "total_max_attempts": 2},
                connect_timeout=CONNECT_SECONDS,
                read_timeout=ANSWER_SECONDS,
                max_pool_connections=CONNECTIONS,
                # Content-MD5 is checked everywhere; boto3's newer checksums are not, and some
                # servers refuse them.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def ensure(self) -> None:
        """Make the bucket when it is missing."""
        try:
            self.check()
        except ClientError as error:
            if code_of(error) != "404":
                raise
            with contextlib.suppress(self.client.exceptions.BucketAlreadyOwnedByYou):
                self._create()  # another process may have been quicker

    def check(self) -> None:
        """Return when the bucket is there and open to us."""
        self.client.head_bucket(Bucket=self.name)

    def size(self, sha256: bytes) -> int | None:
        """Length of the object. None when it, or the whole bucket, is missing."""
        try:
            head = self.client.head_object(Bucket=self.name, Key=self.key(sha256))
        except ClientError as error:
            if code_of(error) == "404":
                return None
            raise
        return head["ContentLength"]

    def put(self, body: Body) -> str | None:
        """Store a body in one request. One on disk is read on the way, not into memory.

        Returns the id of its version, in a bucket that has such.
        """
        done = self.client.put_object(
            Bucket=self.name,
            Key=self.key(body.sha256),
            Body=cast("IO[bytes]", BodyReader(body)) if body.data is None else body.data,
            ContentMD5=_md5_of(body) if body.data is None else _md5(body.data),
        )
        return done.get("VersionId")

    def begin(self, sha256: bytes) -> str:
        """Start an upload in parts, and return its id."""
        key = self.key(sha256)
        return self.client.create_multipart_upload(Bucket=self.name, Key=key)["UploadId"]

    def put_part(
        self, body: Body, upload_id: str, number: int, part_size: int
    ) -> CompletedPartTypeDef:
        """Store one part, counted from 1."""
        data = body.read_at((number - 1) * part_size, part_size)
        done = self.client.upload_part(
            Bucket=self.name,
            Key=self.key(body.sha256),
            UploadId=upload_id,
            PartNumber=number,
            Body=data,
            ContentMD5=_md5(data),
        )
        return {"PartNumber": number, "ETag": done["ETag"]}

    def complete(
        self, sha256: bytes, upload_id: str, parts: list[CompletedPartTypeDef]
    ) -> str | None:
        """Join the parts: only now is there an object. Returns the id of its version, as `put`."""
        done = self.client.complete_multipart_upload(
            Bucket=self.name,
            Key=self.key(sha256),
            UploadId=upload_id,
            MultipartUpload={"Parts": parts},
        )
        return done.get("VersionId")

    def abort(self, sha256: bytes, upload_id: str) -> None:
        """Drop the parts of an upload."""
        key = self.key(sha256)
        self.client.abort_multipart_upload(Bucket=self.name, Key=key, UploadId=upload_id)

    def stale(self, *, abort: bool) -> int:
        """Counts, or drops, uploads of ours that a crash left more than a day ago."""
        count = 0
        oldest = datetime.now(UTC) - STALE
        pages = self.client.get_paginator("list_multipart_uploads")
        for page in pages.paginate(Bucket=self.name, Prefix=self.prefix):
            for upload in page.get("Uploads", ()):
                digest = self.digest(upload["Key"])
                if digest and upload["Initiated"] < oldest:
                    count += 1
                    with contextlib.suppress(self.client.exceptions.NoSuchUpload):
                        if abort:
                            self.abort(digest, upload["UploadId"])
        return count

    def delete(self, sha256: bytes, version: str | None = None) -> bool:
        """Remove the object, if it is there, or one version of it.

        True where its bytes are still there, hidden: the bucket has versions.
        """
        key = self.key(sha256)
        if version is not None:
            self.client.delete_object(Bucket=self.name, Key=key, VersionId=version)
            return False
        done = self.client.delete_object(Bucket=self.name, Key=key)
        return bool(done.get("DeleteMarker") or done.get("VersionId"))

    def pages(self) -> Iterator[list[Stored]]:
        """All objects of ours, a page of S3's list at a time, in the order of their keys."""
        pages = self.client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self.name, Prefix=self.prefix):
            yield [
                Stored(digest, item["Size"], item["LastModified"])
                for item in page.get("Contents", ())
                if (digest := self.digest(item["Key"]))
            ]

    @property
    def signs_at_once(self) -> bool:
        """Whether `presigned_url` takes no longer than its arithmetic.

        The client takes long to make, and keys that boto3 looks for itself may expire.
        """
        return "client" in self.__dict__ and self.access_key_id is not None

    def presigned_url(
        self, sha256: bytes, seconds: int, overrides: Mapping[str, str] | None = None
    ) -> str:
        """A URL that lets anyone GET the object for a while. Takes no request.

        `overrides` are `response-*` parameters of GetObject by boto3's names:
        https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html
        """
        params = {"Bucket": self.name, "Key": self.key(sha256), **(overrides or {})}
        return self.client.generate_presigned_url("get_object", Params=params, ExpiresIn=seconds)

    def close(self) -> None:
        """Close the connections."""
        if "client" in self.__dict__:
            self.client.close()

    def _create(self) -> None:
        if self.region == UNNAMED_REGION:
            self.client.create_bucket(Bucket=self.name)
        else:
            region = cast("BucketLocationConstraintType", self.region)  # others have others
            self.client.create_bucket(
                Bucket=self.name, CreateBucketConfiguration={"LocationConstraint": region}
            )

    def key(self, sha256: bytes) -> str:
        """The object's name."""
        return self.prefix + key_of(sha256)

    def digest(self, key: str) -> bytes | None:
        """The SHA-256 behind an object's name; None for what is none of ours."""
        return digest_of(key.removeprefix(self.prefix))


def code_of(error: ClientError) -> str:
    """S3's word for what went wrong; after a HEAD, the HTTP status."""
    return error.response.get("Error", {}).get("Code", "")


def _md5_of(body: Body) -> str:
    md5 = hashlib.md5(usedforsecurity=False)
    for offset in range(0, body.size, MIB):
        md5.update(body.read_at(offset, MIB))
    return base64.b64encode(md5.digest()).decode()


def _md5(data: bytes) -> str:
    digest = hashlib.md5(data, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()
