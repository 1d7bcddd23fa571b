"""Vindexes at addresses: what is read of them, what is fetched, and what is said where that fails."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import larql_duck as lq
from larql_duck import cache
from larql_duck.errors import LarqlError, VindexError
from larql_duck.vindex import address
from larql_duck.vindex.address import address_of, is_server
from larql_duck.vindex.store import Vindex
from tests.conftest import Make
from tests.ranges import FileServer, serving

pytest.importorskip("aiohttp", reason="reading from https needs aiohttp: pip install 'larql-duck[remote]'")

INFER = 'INFER "The capital of France is" TOP 3'


@pytest.fixture(autouse=True)
def own_cache_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of each test's own; nobody waits between two tries."""
    monkeypatch.setenv("LARQL_DUCK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(address, "_PAUSE", 0.0)


@pytest.fixture()
def server(tmp_path: Path) -> Iterator[FileServer]:
    """A server of an empty folder."""
    root = tmp_path / "root"
    root.mkdir()
    with serving(root) as server:
        yield server


@pytest.fixture()
def published(server: FileServer, world: Path) -> str:
    """The address of the synthetic world."""
    shutil.copytree(world, server.root / "world.vindex")
    return f"{server.url}/world.vindex"


@pytest.fixture()
def with_weights(server: FileServer, probed_vindex: Make) -> str:
    """The address of a tiny vindex with weights and facts."""
    shutil.copytree(probed_vindex("llama"), server.root / "tiny.vindex")
    return f"{server.url}/tiny.vindex"


# -- what is an address -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("https://example.org/x.vindex/", "https://example.org/x.vindex"),
        (Path("https://example.org/a/x.vindex"), "https://example.org/a/x.vindex"),
        ("S3://bucket/x.vindex", "s3://bucket/x.vindex"),
        ("hf://datasets/someone/x/x.vindex", "hf://datasets/someone/x/x.vindex"),
        ("x.vindex", None),
        (Path("/tmp/x.vindex"), None),
        ("C:/models/x.vindex", None),
        ("folder:/x.vindex", None),
        (3, None),
    ],
)
def test_addresses_are_told_from_paths(place: object, expected: str | None) -> None:
    assert address_of(place) == expected


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("ftp://example.org/x.vindex", "vindexes are read from http, https, s3, gs, hf"),
        ("https://me:secret@example.org/x.vindex", "keys do not belong in an address"),
        ("https://example.org/x.vindex?token=1", "is no address of a vindex"),
        ("https:///x.vindex", "is no address of a vindex"),
    ],
)
def test_other_addresses_are_refused(place: str, why: str) -> None:
    with pytest.raises(VindexError, match=why) as caught:
        address_of(place)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_servers_are_told_from_vindexes(server: FileServer) -> None:
    (server.root / "plain").mkdir()
    (server.root / "plain" / "index.json").write_text("{}")
    assert not is_server("https://nowhere.invalid/v1/x.vindex") and not is_server("s3://bucket/x")
    assert is_server("http://nowhere.invalid:8080") and is_server("https://nowhere.invalid/v1/smollm2")
    assert is_server(f"{server.url}/other") and not is_server(f"{server.url}/plain")


# -- reading ------------------------------------------------------------------------------------------------


def test_tables_are_asked_by_ranges_without_arrays(published: str, server: FileServer, world: Path) -> None:
    with lq.connect(published) as far, lq.connect(world) as near:
        for text in (
            'DESCRIBE "France"',
            'WALK "France" TOP 3',
            "SHOW RELATIONS",
            "SELECT * FROM EDGES LIMIT 5",
        ):
            assert far.lql(text).rows() == near.lql(text).rows(), text
        assert repr(far) == f"<Session: {published}, schema lq>"
    assert server.sent_of(".bin") == server.sent_of(".parquet") == 0
    assert {name.rpartition("/")[2] for name in server.requests} == {
        "index.json",
        "config.json",
        "model.duckdb",
    }


@pytest.mark.slow
def test_describe_reads_little_of_large_tables(server: FileServer, tmp_path: Path) -> None:
    from benchmarks.remote import many_rows
    from tests.world import write_vindex

    vindex = many_rows(write_vindex(server.root / "many.vindex"), 20_000)
    tables = sum(file.stat().st_size for file in (vindex / "tables").iterdir())
    with lq.connect(f"{server.url}/many.vindex") as session:
        opened = server.total
        assert len(session.lql('DESCRIBE "France"')) == 5
        read = server.total - opened
    assert tables > 8e6 and opened < 1e6 and read < 3.5e6
    assert read < tables / 2 and server.sent_of(".bin") == 0


def test_use_and_attach_take_addresses(published: str, world: Path) -> None:
    import duckdb

    with lq.connect() as session:
        assert session.lql(f'USE "{published}"').dicts()[0]["path"] == published
        assert len(session.lql('DESCRIBE "France"'))
    con = duckdb.connect()
    with lq.attach(con, published):
        assert con.execute("SELECT subject FROM lq.who('capital', 'Paris')").fetchall() == [("France",)]
        with lq.connect(world) as near:
            assert con.execute("FROM lq.facts").fetchall() == near.con.execute("FROM facts").fetchall()
    assert con.execute("SELECT count(*) FROM duckdb_databases() WHERE path LIKE 'larql%'").fetchone() == (0,)


def test_a_layer_is_fetched_when_it_is_used(with_weights: str, server: FileServer) -> None:
    vindex = Vindex.open(with_weights)
    near = Vindex.open(server.root / "tiny.vindex")
    assert server.sent_of(".bin") == 0
    assert vindex.gate(1).equal(near.gate(1)) and vindex.down(0).equal(near.down(0))
    length = vindex.manifest.layers[1].length
    assert server.sent_of("gate_vectors.bin") == length < near.manifest.files["gate_vectors.bin"]
    vindex.gate(1)
    Vindex.open(with_weights).gate(1)
    assert server.sent_of("gate_vectors.bin") == length


def test_models_run_and_edits_hold(with_weights: str, server: FileServer) -> None:
    with lq.connect(with_weights) as far, lq.connect(server.root / "tiny.vindex") as near:
        said = far.lql('DESCRIBE "Nobody Atall"').notices
        assert server.sent_of(".bin") == 0 and any("the model was not asked" in note for note in said)
        assert far.lql(INFER).rows() == near.lql(INFER).rows()
        sizes = near.vindex.manifest.files
        assert server.sent_of(".bin") == sum(
            n for name, n in sizes.items() if name.endswith(".bin") and name != "down_meta.bin"
        )
        far.lql(INSERT)
        near.lql(INSERT)
        shown = "SELECT subject, relation, object FROM triples WHERE subject = 'Atlantis'"
        assert far.sql(shown).rows() == near.sql(shown).rows() == [("Atlantis", "capital", "Paris")]
        near.patches.rollback()
        far.patches.rollback()
    before = server.sent_of(".bin")
    with lq.connect(with_weights) as again:
        again.lql(INFER)
    assert server.sent_of(".bin") == before


INSERT = 'INSERT INTO EDGES (entity, relation, target) VALUES ("Atlantis", "capital", "Paris") MODE KNN'


def test_nothing_is_saved_at_an_address(with_weights: str) -> None:
    with lq.connect(with_weights) as session:
        for run in (
            lambda: session.lql('DESCRIBE "France" SAVE'),
            lambda: session.probe(["France"], {"capital": ["The capital of {} is"]}),
            lambda: session.collect_examples(),
        ):
            with pytest.raises(VindexError, match="nothing is saved at an address") as caught:
                run()
            assert str(caught.value).startswith(with_weights)


# -- what fails ---------------------------------------------------------------------------------------------


def one_line(error: BaseException, start: str) -> bool:
    return str(error).startswith(start) and "\n" not in str(error) and "Traceback" not in str(error)


def test_what_is_no_vindex_is_told(server: FileServer) -> None:
    with pytest.raises(VindexError, match=r"no vindex there \(no index.json\)") as caught:
        lq.connect(f"{server.url}/none.vindex")
    assert one_line(caught.value, f"{server.url}/none.vindex: ")


def test_servers_without_ranges_are_told(published: str, server: FileServer) -> None:
    server.ranges = False
    with pytest.raises(VindexError, match="sends no ranges") as caught:
        lq.connect(published)
    assert one_line(caught.value, published) and server.sent_of("model.duckdb") == 0


def test_a_lost_connection_is_told_and_the_next_statement_runs(published: str, server: FileServer) -> None:
    with lq.connect(published) as session:
        server.left = 1
        with pytest.raises(LarqlError, match=r"connection lost while model\.duckdb was read") as caught:
            session.lql('DESCRIBE "France"')
        assert one_line(caught.value, published) and isinstance(caught.value, VindexError)
        server.left = None
        assert len(session.lql('DESCRIBE "France"'))


def test_a_connection_that_breaks_once_is_tried_again(published: str, server: FileServer) -> None:
    tries = []

    class Flaky:
        def cat_file(self, path: str, **where: int) -> bytes:
            tries.append(path)
            if len(tries) == 1:
                raise ConnectionResetError("reset by peer")
            return b"ab"

    files = address.AddressFiles(published)
    files._files = Flaky()
    assert files.read("index.json", 0, 2) == b"ab" and len(tries) == 2


def test_an_interrupted_fetch_goes_on_where_it_was(
    with_weights: str, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from larql_duck.vindex import partial_copy

    size = (server.root / "tiny.vindex" / "embeddings.bin").stat().st_size
    monkeypatch.setattr(partial_copy, "_PIECE", -(-size // 4))
    vindex = Vindex.open(with_weights)
    server.left = 2
    with pytest.raises(VindexError, match=r"connection lost while embeddings\.bin was read"):
        vindex.embeddings()
    server.left = None
    Vindex.open(with_weights).embeddings()
    assert server.sent_of("embeddings.bin") == size


def test_changed_arrays_are_noticed(with_weights: str, server: FileServer) -> None:
    file = server.root / "tiny.vindex" / "gate_vectors.bin"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with lq.connect(with_weights) as session:
        assert len(session.lql('DESCRIBE "France"'))
        with pytest.raises(VindexError, match=r"gate_vectors.bin is not the file of index.json") as caught:
            session.lql(INFER)
    assert one_line(caught.value, with_weights)


def test_another_versions_database_is_built_here(published: str, server: FileServer) -> None:
    (server.root / "world.vindex" / "model.duckdb").unlink()
    with lq.connect(published) as session:
        assert len(session.lql('DESCRIBE "France"'))
    read = server.sent_of(".parquet")
    assert read == sum(p.stat().st_size for p in (server.root / "world.vindex" / "tables").iterdir())
    with lq.connect(published) as session:
        assert len(session.lql('DESCRIBE "France"'))
    assert server.sent_of(".parquet") == read


def test_a_changed_manifest_is_noticed(published: str, server: FileServer) -> None:
    file = server.root / "world.vindex" / "index.json"
    file.write_bytes(file.read_bytes().replace(b'"synthetic"', b'"synthetik"'))
    with pytest.raises(VindexError, match="its seal does not match") as caught:
        lq.connect(published)
    assert one_line(caught.value, published)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for module, place, package in (
        ("s3fs", "s3://bucket/x.vindex", r"'larql-duck\[remote\]'"),
        ("gcsfs", "gs://bucket/x.vindex", "gcsfs"),
        ("aiohttp", "https://example.org/x.vindex", r"'larql-duck\[remote\]'"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(VindexError, match=f"pip install {package}$"):
            lq.connect(place)


# -- the cache ----------------------------------------------------------------------------------------------


def test_the_cache_has_a_limit_and_lists_copies(
    with_weights: str, published: str, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    vindex = Vindex.open(with_weights)
    vindex.embeddings()
    [entry] = cache.entries()
    assert entry.kind == "vindex" and entry.about == {"address": with_weights} and entry.size > 0
    assert cache.clear() == 0 and entry.path.is_dir()
    monkeypatch.setenv(cache.LIMIT_VARIABLE, "0")
    with pytest.raises(LarqlError, match=f"set {cache.LIMIT_VARIABLE} to"):
        vindex.gate(0)
    monkeypatch.delenv(cache.LIMIT_VARIABLE)
    del vindex
    assert cache.clear() > 0 and not entry.path.exists()


# -- the command line ---------------------------------------------------------------------------------------


def test_the_command_line_takes_addresses(published: str) -> None:
    from typer.testing import CliRunner

    from larql_duck.cli.app import app

    done = CliRunner().invoke(app, ["lql", published, 'DESCRIBE "France"', "--csv"])
    assert done.exit_code == 0 and "Paris" in done.stdout
