"""A vindex in a bucket: s3fs against moto's server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import larql_duck as lq
from larql_duck.errors import VindexError

pytestmark = pytest.mark.extras


@pytest.fixture()
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The name of an empty bucket on a server of this process, which s3fs finds by the usual variables."""
    pytest.importorskip("s3fs", reason="reading from s3 needs s3fs: pip install 'larql-duck[remote]'")
    server = pytest.importorskip(
        "moto.server", reason="the bucket is moto's: pip install 'moto[s3]' flask flask-cors"
    )
    import boto3

    monkeypatch.setenv("LARQL_DUCK_CACHE", str(tmp_path / "cache"))
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="shelf")
    yield "shelf"
    running.stop()


def test_a_vindex_in_a_bucket(bucket: str, world: Path) -> None:
    import boto3

    client = boto3.client("s3")
    for file in world.rglob("*"):
        if file.is_file():
            client.upload_file(str(file), bucket, f"models/world.vindex/{file.relative_to(world).as_posix()}")
    with lq.connect(f"s3://{bucket}/models/world.vindex") as far, lq.connect(world) as near:
        text = 'DESCRIBE "France"'
        assert far.lql(text).rows() == near.lql(text).rows() != []
        assert far.vindex is not None and near.vindex is not None
        assert far.vindex.gate(2).equal(near.vindex.gate(2))
        assert far.vindex.copy is not None
        sizes = far.vindex.manifest.files
        assert far.vindex.copy.missing(["embeddings.bin"]) == sizes["embeddings.bin"]


def test_what_is_not_in_a_bucket_is_told(bucket: str) -> None:
    with pytest.raises(VindexError, match="no vindex there") as caught:
        lq.connect(f"s3://{bucket}/models/none.vindex")
    assert "\n" not in str(caught.value)
