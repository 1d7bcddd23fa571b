"""Facts as GraphML: a node for each name, an edge for each fact."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

if TYPE_CHECKING:
    from larql_duck.exporting.fact_stream import FactStream

_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns">
<key id="label" for="node" attr.name="label" attr.type="string"/>
<key id="relation" for="edge" attr.name="relation" attr.type="string"/>
<key id="p" for="edge" attr.name="p" attr.type="double"/>
<key id="confidence" for="edge" attr.name="confidence" attr.type="double"/>
<key id="source" for="edge" attr.name="source" attr.type="string"/>
<graph edgedefault="directed">
"""
_TAIL = "</graph>\n</graphml>\n"
# What no XML 1.0 document can hold, not even as a reference.
_NO_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_graphml(facts: FactStream, path: Path) -> int:
    """The number of nodes and edges that were written to `path`."""
    numbers: dict[str, int] = {}
    with path.open("x", encoding="utf-8", newline="\n") as file:
        file.write(_HEAD)
        for name in facts.names():
            numbers[name] = len(numbers)
            file.write(f'<node id="n{numbers[name]}"><data key="label">{_text(name)}</data></node>\n')
        n_edges = 0
        for subject, relation, target, p, confidence, source in facts.facts():
            given = {"relation": relation, "p": p, "confidence": confidence, "source": source}
            data = "".join(
                f"<data key={quoteattr(key)}>{_text(str(value))}</data>"
                for key, value in given.items()
                if value is not None
            )
            ends = f'source="n{numbers[subject]}" target="n{numbers[target]}"'
            file.write(f'<edge id="e{n_edges}" {ends}>{data}</edge>\n')
            n_edges += 1
        file.write(_TAIL)
    return len(numbers) + n_edges


def _text(value: str) -> str:
    """The value as text of XML; characters that XML has none for as Python writes them (\\x00). A bare CR would be read as LF."""
    shown = _NO_XML.sub(lambda match: repr(match[0])[1:-1], value)
    return escape(shown, {"\r": "&#13;"})
