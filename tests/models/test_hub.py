"""Names on the Hub, resolved in a local cache without any network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from larql_duck.errors import ModelError
from larql_duck.models.hub import parse_spec
from larql_duck.models.opening import open_model
from tests.models.conftest import Make

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OPEN = """
import json, sys
from larql_duck.errors import ModelError
from larql_duck.models.opening import open_model
out = []
for spec in sys.argv[1:]:
    try:
        source = open_model(spec)
        source.validate()
        out.append([source.name, source.origin, source.config["model_type"], str(source.path)])
    except ModelError as error:
        out.append(str(error))
print(json.dumps(out))
"""


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("hf://org/name", ("org/name", None)),
        ("hf://org/name@v1.0", ("org/name", "v1.0")),
        ("org/na-me.7B", ("org/na-me.7B", None)),
        ("org/name@main", ("org/name", "main")),
        ("models/x.gguf", None),
        ("a/b/c", None),
        ("./org/name", None),
        ("../name", None),
        ("/org/name", None),
        ("name", None),
    ],
)
def test_what_is_a_name_on_the_hub(spec: str, parsed: object) -> None:
    assert parse_spec(spec) == parsed


@pytest.mark.parametrize("spec", ["hf://", "hf://name", "hf://a/b/c", "hf://../x", "hf://org/na me"])
def test_a_malformed_name_is_refused(spec: str) -> None:
    with pytest.raises(ModelError, match="is written hf://org/name"):
        open_model(spec)


def test_a_complete_cache_needs_no_network(tiny: Make, tmp_path: Path) -> None:
    """The cache as huggingface_hub lays it out: blobs, snapshots of links to them, and refs."""
    repo = tmp_path / "home" / "hub" / "models--tiny-org--tiny-llama"
    snapshot = repo / "snapshots" / COMMIT
    for folder in (repo / "blobs", repo / "refs", snapshot):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    for i, file in enumerate(sorted(tiny("llama").iterdir())):
        (repo / "blobs" / f"blob{i}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"blob{i}")
    env = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    env.pop("HF_HUB_CACHE", None)
    specs = [
        "hf://tiny-org/tiny-llama",
        f"hf://tiny-org/tiny-llama@{COMMIT}",
        "tiny-org/tiny-llama",
        str(snapshot),
    ]
    run = subprocess.run(
        [sys.executable, "-c", OPEN, *specs, "hf://tiny-org/other", "tiny-org/other"],
        env=env, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    *found, missing, no_directory = json.loads(run.stdout.splitlines()[-1])
    origin = {"huggingface_repo": "tiny-org/tiny-llama", "revision": COMMIT}
    for name, where, model_type, path in found:
        assert (where, model_type, Path(path)) == (origin, "llama", snapshot)
        assert name == "tiny-org/tiny-llama"
    assert missing.startswith("hf://tiny-org/other: cannot be fetched from the Hub (HF_HUB_OFFLINE is set)")
    assert no_directory.startswith("tiny-org/other: there is no such directory here, and hf://tiny-org/other")
    assert "\n" not in missing + no_directory and "Traceback" not in run.stderr


def test_a_directory_wins_over_the_hub(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").symlink_to(tiny("llama"))
    monkeypatch.chdir(tmp_path)
    assert open_model("org/name").path == Path("org/name")


def test_only_what_a_model_needs_is_fetched(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The patterns, applied by the Hub's own filter to a repository that carries everything at once."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    files = [
        "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors",
        "model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "tf_model.h5",
        "original/params.json", "onnx/model.onnx", "consolidated.safetensors", "README.md", "x/model.safetensors",
    ]  # fmt: skip
    asked: dict[str, object] = {}

    def fake(repo: str, **options: object) -> str:
        asked.update(options, repo=repo)
        return str(tiny("llama"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    source = open_model("hf://org/name@abc")
    assert (asked["repo"], asked["revision"], source.origin["revision"]) == ("org/name", "abc", "abc")
    kept = filter_repo_objects(
        files, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]
    )
    assert list(kept) == files[:7]
