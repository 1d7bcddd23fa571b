"""Patch files: LARQL's .vlp JSON, read with every field checked and written whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from larql_duck.errors import PatchError
from larql_duck.files import check_output, first_bytes, read_regular, write_whole
from larql_duck.patches.operations import (
    DeleteKnnOp,
    DeleteOp,
    EditKind,
    InsertKnnOp,
    InsertOp,
    Meta,
    Operation,
    UpdateOp,
    Vector,
)
from larql_duck.patches.patch_facts import FactStep, PatchFacts, folded_facts
from larql_duck.patches.patch_file import PatchFile
from larql_duck.result import printable
from larql_duck.vindex.arrays import rounded
from larql_duck.vindex.manifest import timestamp
from larql_duck.vindex.store import base_checksum

if TYPE_CHECKING:
    from larql_duck.vindex.store import Vindex

VERSION = 1
_MOST_BYTES = 4 << 30
# The largest number of a layer or feature.
_MOST = 2**31 - 1
_NAMED = 3
_KINDS = get_args(EditKind)
_OPS = {
    InsertOp: "insert",
    UpdateOp: "update",
    DeleteOp: "delete",
    InsertKnnOp: "insert_knn",
    DeleteKnnOp: "delete_knn",
}
# What fields are called in a file where it is not the same.
_VECTORS = {which: f"{which}_vector_b64" for which in ("gate", "up", "down")}
_KEYS = {**_VECTORS, "key": "key_vector_b64", "meta": "down_meta"}


# -- reading --------------------------------------------------------------------------------------------------


def read_patch(
    path: Path, vindex: Vindex, *, force: bool = False, content: Mapping[str, Any] | None = None
) -> PatchFile:
    """The patch of a file, for `vindex`: its vectors are rounded to the vindex's dtype.

    content is the file's JSON object where it is no file, and path then what messages call it.

    PatchError, one line that names file, operation and field, for a file that is missing, damaged or no patch, for
    numbers that are not finite, layers, features and vectors that the vindex cannot have, and for a patch that was
    made for another base (unless force; shapes must fit all the same).
    """
    file = _opened(path, content)
    checksum = file.text("base_checksum", optional=True)
    if checksum is not None and not force and checksum != base_checksum(vindex):
        raise PatchError.at(
            path,
            f"was made for another base ({excerpt(file.text('base_model'))}; its checksum is not that of {vindex.path}); "
            f"{_next_step(file)}",
        )
    entries = enumerate(_entries(file), 1)
    operations = tuple(_operation(entry, number, path, vindex) for number, entry in entries)
    _check_content(file)
    return PatchFile(
        operations=operations,
        name=path.stem,
        path=path,
        base_model=file.text("base_model"),
        base_checksum=checksum,
        created_at=file.text("created_at"),
        description=file.text("description", optional=True),
        author=file.text("author", optional=True),
        tags=file.texts("tags"),
    )


def read_facts(path: Path) -> PatchFacts:
    """What a patch says of facts, for whichever model: nothing in it that belongs to the base is looked at.

    PatchError for a file that is missing, damaged or no patch.
    """
    return _facts(_opened(path))


def _facts(file: _Fields) -> PatchFacts:
    _check_content(file)
    path = file.path
    entries = enumerate(_entries(file), 1)
    steps = [_said_step(entry, number, path) for number, entry in entries]
    return folded_facts(steps, path, excerpt(file.text("base_model")))


def _said_step(entry: object, number: int, path: Path) -> FactStep:
    """One operation as far as it speaks of a fact."""
    if not isinstance(entry, dict):
        raise _no_object(path, number)
    f = _Fields(entry, path, f"operation {number}, ")
    op = f.check("op", set(_OPS.values()).__contains__, ", ".join(_OPS.values()))
    if op in ("update", "delete"):
        return FactStep(op, slot=f"L{f.integer('layer', _MOST)} F{f.integer('feature', _MOST)}")
    kind: EditKind = f.check("kind", (None, *_KINDS).__contains__, ", ".join(_KINDS)) or "insert"
    return FactStep(
        op,
        f.word("entity"),
        f.text("relation", optional=True),
        "" if op == "delete_knn" else f.text("target"),
        kind,
        f.confidence(),
        f.templates(),
    )


def _opened(path: Path, content: Mapping[str, Any] | None = None) -> _Fields:
    file = _Fields(_load(path) if content is None else content, path)
    version = file.raw.get("version")
    if type(version) is not int or version != VERSION:
        raise file.fail("version", f"{VERSION}, the only one that is known")
    return file


def _entries(file: _Fields) -> list[Any]:
    entries = file.raw.get("operations")
    if not isinstance(entries, list):
        raise file.fail("operations", "a list")
    return entries


def _check_content(file: _Fields) -> None:
    # LARQL's patches have no checksum.
    if "checksum" in file.raw and file.raw["checksum"] != _content_checksum(file.raw):
        raise PatchError.at(
            file.path,
            "its content changed after it was saved (its checksum does not match); restore it from a copy, "
            "or delete the field checksum where the change is yours",
        )


def _next_step(file: _Fields) -> str:
    """What to do with a patch that was made for another base."""
    n = len(_facts(file).facts)
    if not n:
        return "open that vindex, or write APPLY PATCH ... FORCE"
    solved = "its fact" if n == 1 else f"its {n} facts"
    return (
        f'APPLY PATCH "{file.path}" RESOLVE solves {solved} again here; or open that vindex, or write FORCE'
    )


def _no_object(path: Path, number: int) -> PatchError:
    return PatchError.at(path, f"operation {number} is no JSON object; restore the file from a copy")


def _load(path: Path) -> Mapping[str, Any]:
    wrong = f"{path}: not a patch"
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise PatchError(f"{wrong}: larger than 4 GiB", path=path)
        text = read_regular(path).decode("utf-8")
        if not text.lstrip().startswith("{"):
            begins = (
                f"it begins with {excerpt(text.lstrip().splitlines()[0])!r}"
                if text.strip()
                else "it is empty"
            )
            raise PatchError(
                f"{wrong}: {begins}; APPLY PATCH takes a .vlp file as SAVE PATCH writes it, which is a JSON object",
                path=path,
            )
        raw = json.loads(text, parse_constant=_not_finite)
    except OSError as error:
        raise PatchError.at(path, f"cannot be read ({error.strerror or error}); check the path") from None
    except UnicodeDecodeError:
        raise PatchError(f"{wrong} or damaged: it is not UTF-8; restore it from a copy", path=path) from None
    except (ValueError, RecursionError) as error:
        reason = str(error) or "nested too deeply"
        raise PatchError(f"{wrong} or damaged: {reason}; restore it from a copy", path=path) from None
    if not isinstance(raw, dict):
        raise PatchError(f"{wrong}: it holds no JSON object; restore it from a copy", path=path)
    return raw


def _not_finite(word: str) -> float:
    raise ValueError(f"{word} is no number")


def _operation(entry: object, number: int, path: Path, vindex: Vindex) -> Operation:
    if not isinstance(entry, dict):
        raise _no_object(path, number)
    f = _OfVindex(entry, path, vindex, f"operation {number}, ")
    op = entry.get("op")
    if op == "delete_knn":
        return DeleteKnnOp(f.text("entity"), f.text("relation", optional=True))
    if op not in ("insert", "update", "delete", "insert_knn"):
        raise f.fail("op", "insert, update, delete, insert_knn or delete_knn")
    layer = f.integer("layer", vindex.n_layers - 1)
    if op == "insert_knn":
        key = f.vector("key_vector_b64")
        if key is None:
            raise f.fail("key_vector_b64", "a vector")
        confidence = f.confidence()
        return InsertKnnOp(
            layer,
            f.word("entity"),
            f.text("relation"),
            f.word("target"),
            f.integer("target_id", vindex.vocab - 1),
            key,
            1.0 if confidence is None else confidence,
            f.templates(),
        )
    feature = f.integer("feature", _MOST)
    if op == "delete":
        return DeleteOp(layer, feature, f.text("reason", optional=True))
    vectors = {which: f.vector(key, vindex.dtype) for which, key in _VECTORS.items()}
    if op == "update":
        return UpdateOp(layer, feature, **vectors, meta=f.meta())
    kind = entry.get("kind")
    if kind is not None and kind not in _KINDS:
        raise f.fail("kind", ", ".join(_KINDS))
    target = f.text("target") if kind in ("remove", "delete") else f.word("target")
    return InsertOp(
        layer,
        feature,
        f.word("entity"),
        target,
        f.text("relation", optional=True),
        f.confidence(),
        **vectors,
        meta=f.meta(),
        kind=kind or "insert",
        templates=f.templates(),
    )


class _Fields:
    """Typed access to the fields of a JSON object; every failure is one PatchError that names the field."""

    def __init__(self, raw: Mapping[str, Any], path: Path, prefix: str = "") -> None:
        self.raw, self.path, self.prefix = raw, path, prefix

    def fail(self, name: str, expected: str) -> PatchError:
        found = repr(self.raw[name]) if name in self.raw else "nothing"
        return PatchError.at(
            self.path,
            f"{self.prefix}field {name} should be {expected}, found {excerpt(found)}; "
            "restore the file from a copy or make the patch again",
            slot=self._slot(),
        )

    def check(self, name: str, fits: Callable[[Any], object], expected: str) -> Any:
        """The value of a field, where it fits."""
        value = self.raw.get(name)
        if not fits(value):
            raise self.fail(name, expected)
        return value

    def text(self, name: str, *, optional: bool = False) -> Any:
        if optional and self.raw.get(name) is None:
            return None
        return self.check(name, _is_text, "a text or null" if optional else "a text")

    def word(self, name: str) -> str:
        self.text(name)
        word: str = self.check(name, str.strip, "a text that is not empty")
        return word

    def texts(self, name: str) -> tuple[str, ...]:
        def fits(value: Any) -> bool:
            return not value or (isinstance(value, list) and all(map(_is_text, value)))

        return tuple(self.check(name, fits, "a list of texts") or ())

    def templates(self) -> tuple[str, ...]:
        value = self.texts("templates")
        if not all(t.count("{}") == 1 for t in value):
            raise self.fail("templates", "texts with {} once each, where the entity stands")
        return value

    def integer(self, name: str, high: int) -> int:
        def fits(value: Any) -> bool:
            return type(value) is int and 0 <= value <= high

        return int(self.check(name, fits, f"an integer from 0 to {high}"))

    def number(self, name: str) -> float:
        def fits(value: Any) -> bool:
            return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300

        return float(self.check(name, fits, "a finite number"))

    def confidence(self) -> float | None:
        if self.raw.get("confidence") is None:
            return None
        self.number("confidence")
        return float(self.check("confidence", lambda value: 0 <= value <= 1, "a number from 0 to 1"))

    def _slot(self) -> tuple[int, int] | None:
        layer, feature = self.raw.get("layer"), self.raw.get("feature")
        return (layer, feature) if type(layer) is int and type(feature) is int else None


class _OfVindex(_Fields):
    """Fields whose numbers and vectors must fit a vindex."""

    def __init__(self, raw: Mapping[str, Any], path: Path, vindex: Vindex, prefix: str = "") -> None:
        super().__init__(raw, path, prefix)
        self.vindex = vindex

    def meta(self) -> Meta | None:
        value = self.raw.get("down_meta")
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.fail("down_meta", "an object or null")
        own = _OfVindex(value, self.path, self.vindex, f"{self.prefix}down_meta: ")
        return Meta(own.text("t"), own.integer("i", self.vindex.vocab - 1), own.number("c"))

    def vector(self, name: str, dtype: str | None = None) -> Vector | None:
        """float32 [hidden], rounded to `dtype` where one is given."""
        value = self.raw.get(name)
        if value is None:
            return None
        what = f"{self.path}: {self.prefix}{name}"
        hidden = self.vindex.hidden
        try:
            if not isinstance(value, str):
                raise ValueError
            data = base64.b64decode(value.encode("ascii"), validate=True)
        except ValueError:
            raise self.fail(name, f"{hidden} numbers in base64") from None
        if len(data) != 4 * hidden:
            found = f"{len(data) // 4} numbers" if len(data) % 4 == 0 else f"{len(data)} bytes"
            raise PatchError(
                f"{what}: {found} where this vindex has vectors of {hidden}; "
                "the patch is damaged or was made for another model, where APPLY PATCH ... RESOLVE solves its facts again",
                path=self.path,
                slot=self._slot(),
            )
        vector = np.frombuffer(data, "<f4").astype(np.float32)
        try:
            if not np.isfinite(vector).all():
                raise PatchError("it has numbers that are not finite")
            return vector if dtype is None else rounded(vector, dtype)
        except PatchError as error:
            raise PatchError(
                f"{what}: {error}; the patch is damaged or was made for another model",
                path=self.path,
                slot=self._slot(),
            ) from None


def _is_text(value: object) -> bool:
    """Whether a value is Unicode text: JSON can name lone surrogates, which no file takes."""
    return isinstance(value, str) and not any(0xD800 <= ord(c) <= 0xDFFF for c in value)


def excerpt(text: str) -> str:
    """A text that a patch holds as messages show it: in one line, its first 40 characters."""
    return printable(text if len(text) <= 40 else text[:37] + "...")


# -- writing --------------------------------------------------------------------------------------------------


def write_patch(path: Path, patch: PatchFile, vindex: Vindex, *, overwrite: bool = False) -> PatchFile:
    """The patch as the file at `path` holds it afterwards: with the base's checksum, the time and a description.

    Whatever happens while it is written, the file is the old one or the new one. PatchError where it cannot be, and
    for a file that is no patch, unless `overwrite`.
    """

    def refused(message: str) -> PatchError:
        return PatchError(message, path=path)

    older = check_output(path, error=refused)
    if not overwrite and older.exists() and not _is_patch(first_bytes(older, 4096)):
        raise PatchError.at(path, "is no patch; name another file, or write SAVE PATCH ... OVERWRITE")
    patch = replace(
        patch,
        path=path,
        name=path.stem,
        base_model=vindex.manifest.model,
        base_checksum=base_checksum(vindex),
        created_at=timestamp(),
        description=patch.description or _description(patch.operations),
    )
    names = ("base_model", "base_checksum", "created_at", "description", "author", "tags")
    raw = {"version": VERSION} | {name: getattr(patch, name) for name in names}
    raw["operations"] = [_entry(op) for op in patch.operations]
    try:
        raw["checksum"] = _content_checksum(raw)
        data = json.dumps(raw, indent=2, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise PatchError.at(path, f"cannot be written ({error})") from None
    write_whole(path, data, error=refused)
    return patch


def edits_in(path: Path) -> int | None:
    """How many operations the patch file at `path` holds; 0 for what is no patch, None for a damaged one."""
    try:
        operations = _load(path).get("operations")
        return len(operations) if isinstance(operations, list) else 0
    except PatchError:
        return None if _is_patch(first_bytes(path, 4096)) else 0


def _content_checksum(raw: Mapping[str, Any]) -> str:
    """Hexadecimal sha256 over every field but the checksum itself, however the file spells and orders them."""
    content = {name: value for name, value in raw.items() if name != "checksum"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_patch(head: bytes) -> bool:
    """Whether a file that begins so is a patch, also one that another program wrote, or empty."""
    return not head or (head.lstrip()[:1] == b"{" and b'"version"' in head and b'"base_model"' in head)


def _entry(op: Operation) -> dict[str, Any]:
    """The operation as JSON. Fields that LARQL does not know (kind, templates) stand there only where they say something."""
    entry: dict[str, Any] = {"op": _OPS[type(op)]}
    for field in fields(op):
        value = getattr(op, field.name)
        if field.name not in ("kind", "templates") or value != field.default:
            entry[_KEYS.get(field.name, field.name)] = _plain(value)
    return entry


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return base64.b64encode(np.asarray(value, "<f4").tobytes()).decode()
    if isinstance(value, Meta):
        return {"t": value.token, "i": value.token_id, "c": value.score}
    return list(value) if isinstance(value, tuple) else value


def _description(operations: Sequence[Operation]) -> str:
    """What the operations do, for people: the first facts by name, slots by number."""
    said = list(dict.fromkeys(_said(op) for op in operations))
    more = f"; and {len(said) - _NAMED} more" if len(said) > _NAMED else ""
    return "; ".join(said[:_NAMED]) + more


def _said(op: Operation) -> str:
    if isinstance(op, DeleteKnnOp):
        return f"delete {op.entity} {op.relation or ''}".rstrip()
    if isinstance(op, InsertOp | InsertKnnOp):
        fact = " ".join(word for word in (op.entity, op.relation, op.target) if word)
        kind = op.kind if isinstance(op, InsertOp) else "insert"
        return f"{kind} {fact}"
    return f"{type(op).__name__.removesuffix('Op').lower()} L{op.layer} F{op.feature}"
