"""The real pipeline on small data, run once."""

from __future__ import annotations

from collections.abc import Iterator

import project as small
import pytest
from project import ACCESS, KEYS, Project
from servers import s3


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project after its first `dvc repro`. Leave it as it was."""
    made = small.make(tmp_path_factory.mktemp("first"))
    assert set(made.repro()) == {
        "code", "clean", "reference", "train", "finetune_dense", "evaluate_dense", "evaluate_baseline", "compare",
        "export", "benchmark",
        *(f"{stage}@{key}" for stage in ("prune", "finetune", "evaluate") for key in KEYS),
    }  # fmt: skip
    return made


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address of an S3 server with an empty bucket, and the bucket's."""
    import boto3

    with s3(tmp_path_factory.mktemp("moto")) as endpoint:
        keys = dict(zip(("aws_access_key_id", "aws_secret_access_key", "region_name"), ACCESS.values(), strict=True))
        boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket="espalier")
        yield endpoint, "s3://espalier"
