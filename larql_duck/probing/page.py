"""The quality report as one HTML page: figures, a table, and plots as inline SVG; nothing is loaded from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

_BLUE, _ORANGE, _GREY, _INK = "#2f6fb2", "#d9822b", "#9aa4ae", "#24292f"
# Relations that plots show; the table lists all.
_SHOWN = 40
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #24292f; background: #fff; max-width: 1000px; margin: 32px auto; padding: 0 16px }
h1 { margin-bottom: 0 } h2 { margin-top: 36px } .sub, .note { color: #57606a } svg { max-width: 100%; height: auto }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0 }
.card { border: 1px solid #d0d7de; border-radius: 8px; padding: 10px 16px } .card b { display: block; font-size: 22px }
.wide { overflow-x: auto } table { border-collapse: collapse; width: 100% } th, td { padding: 4px 10px; text-align: right; border-bottom: 1px solid #eaeef2 }
td { white-space: nowrap } th:first-child, td:first-child, td:last-child { white-space: normal }
th:first-child, td:first-child, th:last-child, td:last-child { text-align: left } td:last-child { color: #57606a }
"""


def page(found: dict[str, Any]) -> str:
    """The HTML of a report that `quality` made."""
    relations = found["relations"]
    shown = relations[:_SHOWN]
    more = f"The {_SHOWN} relations with most facts." if len(relations) > _SHOWN else ""
    parts = [
        f"<h1>{_e(found['model'])}</h1>",
        f'<p class="sub">What the model states when it is asked: {found["facts"]} facts of {len(relations)} relations, '
        f"{found['layers']} layers, {found['features']} features.</p>",
        _cards(found),
        "<h2>Relations by accuracy and confidence</h2>",
        _note(
            "Accuracy on the test split of the subjects (templates and calibration were chosen on train and "
            f"validation), where there are reference answers; confidence is the mean over all facts. {more}"
        ),
        _bars(shown) if shown else _note("No facts yet: run larql-duck probe."),
        "<h2>Calibration</h2>",
        _calibration(found["calibration"], found["calibration_p"])
        if found["calibration"]
        else _note("No fact has a reference answer, so nothing can be judged."),
        "<h2>Effect of the features</h2>",
        _note(_effect_text(found["effects"])),
        _histogram(found["effects"]),
        "<h2>Layers where each relation lives</h2>",
        _note("Share of the facts' direct contributions that each layer's features hold; darker is more."),
        _heat(shown, found["layers"]),
        "<h2>All relations</h2>",
        _table(relations),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_e(found['model'])}: knowledge</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _cards(found: dict[str, Any]) -> str:
    pooled, effects = found["pooled"], found["effects"]
    confidence = pooled.get("confidence", {})
    cards = [
        ("accuracy", _percent(pooled["accuracy"])),
        ("right at confidence ≥ 0.8", _percent(pooled.get("precision_08"))),
        ("of answers are that confident", _percent(pooled.get("coverage_08"))),
        ("calibration error", _number(confidence.get("ece"))),
        ("AUROC of confidence", _number(confidence.get("auroc"))),
        ("halved without their features", _percent(effects["halved"])),
    ]
    return (
        '<div class="cards">'
        + "".join(f'<div class="card"><b>{value}</b>{name}</div>' for name, value in cards)
        + "</div>"
    )


def _bars(relations: Sequence[dict[str, Any]]) -> str:
    left, width, step = 190, 560, 26
    height = step * len(relations) + 46
    x = _scale(left, width)
    parts = [
        _grid(left, width, 20, height - 46),
        *_legend([(_BLUE, "accuracy"), (_ORANGE, "mean confidence")], left),
    ]
    for i, row in enumerate(relations):
        y = 24 + i * step
        parts.append(_text(left - 8, y + 14, row["relation"], anchor="end"))
        for colour, key, offset in ((_BLUE, "accuracy", 2), (_ORANGE, "confidence", 11)):
            value = row[key]
            if value is None:
                parts.append(_text(left + 4, y + offset + 8, "no references", size=9, colour=_GREY))
                continue
            parts.append(
                f'<rect x="{left}" y="{y + offset}" width="{max(x(value) - left, 0.5):.1f}" height="8" fill="{colour}">'
                f"<title>{_e(row['relation'])}: {_e(key)} {_percent(value)}</title></rect>"
            )
        parts.append(_text(left + width + 8, y + 14, f"{row['facts']} facts", size=10, colour="#57606a"))
    return _svg(left + width + 80, height, parts)


def _calibration(confidence: Sequence[dict[str, float]], raw: Sequence[dict[str, float]]) -> str:
    left, side, top = 60, 340, 24
    x = _scale(left, side)

    def y(value: float) -> float:
        return top + side * (1 - value)

    parts = [_grid(left, side, top, side, both=True)]
    parts.append(
        f'<line x1="{left}" y1="{top + side}" x2="{left + side}" y2="{top}" stroke="{_GREY}" stroke-dasharray="4 4"/>'
    )
    for colour, bins in ((_GREY, raw), (_ORANGE, confidence)):
        points = " ".join(f"{x(b['probability']):.1f},{y(b['accuracy']):.1f}" for b in bins)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(b["probability"]):.1f}" cy="{y(b["accuracy"]):.1f}" r="4" fill="{colour}">'
            f"<title>stated {_percent(b['probability'])}, right {_percent(b['accuracy'])} of {int(b['n'])}</title></circle>"
            for b in bins
        ]
    parts += _legend([(_ORANGE, "confidence"), (_GREY, "the model's own p")], left)
    parts.append(_text(left + side / 2, top + side + 36, "stated probability", anchor="middle"))
    parts.append(
        f'<g transform="translate(16 {top + side / 2}) rotate(-90)">{_text(0, 0, "share that is right", anchor="middle")}</g>'
    )
    return _svg(left + side + 160, top + side + 48, parts)


def _effect_text(effects: dict[str, Any]) -> str:
    text = (
        f"{effects['facts']} facts with p of at least 0.3: {_percent(effects['halved'])} lose half of their probability "
        "or more when their listed features (at most 32) are set to zero."
    )
    if effects["stays_specific"] is not None:
        text += f" For {_percent(effects['stays_specific'])} other facts of the relation fall by less than half as much."
    random = effects["random"]
    if random is None:
        return text + " The effect of random features was not measured: add --measure."
    return (
        text + f" On {random['facts']} sampled facts as many random, equally active features do so for "
        f"{_percent(random['random_halved'])} (the listed ones: {_percent(random['listed_halved'])})."
    )


def _histogram(effects: dict[str, Any]) -> str:
    series = [(_BLUE, "listed features", effects["drops"])]
    if effects["random"] is not None:
        series.append((_ORANGE, "random features", effects["random"]["drops"]))
    edges = [-0.5 + 0.5 * i for i in range(18)]
    left, width, top, tall = 60, 640, 24, 220
    step = width / (len(edges) - 1)
    shares = []
    for _, _, drops in series:
        counts = [0] * (len(edges) - 1)
        for drop in drops:
            counts[min(max(int((drop - edges[0]) // 0.5), 0), len(counts) - 1)] += 1
        shares.append([c / max(len(drops), 1) for c in counts])
    most = max([0.05, *(v for own in shares for v in own)])
    parts = [*_legend([(colour, name) for colour, name, _ in series], left)]
    for mark in (0.0, most / 2, most):
        y = top + tall * (1 - mark / most)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + width}" y2="{y:.1f}" stroke="#eaeef2"/>')
        parts.append(_text(left - 6, y + 4, _percent(mark), size=10, anchor="end"))
    wide = (step - 6) / len(series)
    for k, ((colour, name, _), own) in enumerate(zip(series, shares, strict=True)):
        for i, value in enumerate(own):
            tall_one = tall * value / most
            parts.append(
                f'<rect x="{left + i * step + 3 + k * wide:.1f}" y="{top + tall - tall_one:.1f}" width="{wide:.1f}" '
                f'height="{tall_one:.1f}" fill="{colour}"><title>{_e(name)}: {_percent(value)}</title></rect>'
            )
    for i in range(1, len(edges), 2):
        last = "+" if i == len(edges) - 1 else ""
        parts.append(_text(left + i * step, top + tall + 16, f"{edges[i]:g}{last}", size=10, anchor="middle"))
    parts.append(
        _text(left + width / 2, top + tall + 36, "drop of log p in nats (0.69 halves p)", anchor="middle")
    )
    return _svg(left + width + 20, top + tall + 48, parts)


def _heat(relations: Sequence[dict[str, Any]], n_layers: int) -> str:
    left, top, row = 190, 8, 16
    cell = min(30.0, 640 / max(n_layers, 1))
    parts = []
    for i, relation in enumerate(relations):
        y = top + i * row
        parts.append(_text(left - 8, y + 12, relation["relation"], anchor="end"))
        most = max([1e-9, *relation["layers"]])
        for layer, share in enumerate(relation["layers"]):
            parts.append(
                f'<rect x="{left + layer * cell:.1f}" y="{y}" width="{cell - 1:.1f}" height="{row - 1}" fill="{_BLUE}" '
                f'fill-opacity="{max(share / most, 0.03):.2f}"><title>{_e(relation["relation"])}, layer {layer}: '
                f"{_percent(share)}</title></rect>"
            )
    bottom = top + row * len(relations)
    every = max(1, round(n_layers / 16))
    parts += [
        _text(left + (layer + 0.5) * cell, bottom + 14, str(layer), size=10, anchor="middle")
        for layer in range(0, n_layers, every)
    ]
    parts.append(_text(left + n_layers * cell / 2, bottom + 32, "layer", anchor="middle"))
    return _svg(left + n_layers * cell + 20, bottom + 44, parts)


def _table(relations: Sequence[dict[str, Any]]) -> str:
    names = (
        "relation",
        "facts",
        "test facts",
        "accuracy",
        "confidence",
        "p",
        "effect",
        "attention",
        "examples",
    )
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td>{cell}</td>"
            for cell in (
                _e(r["relation"]),
                r["facts"],
                r["test_facts"],
                _percent(r["accuracy"]),
                _percent(r["confidence"]),
                _percent(r["p"]),
                _number(r["effect"]),
                _percent(r["attention_share"]),
                _e("; ".join(r["examples"])),
            )
        )
        + "</tr>\n"
        for r in relations
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


# -- pieces ---------------------------------------------------------------------------------------------------


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="system-ui, sans-serif" role="img">\n'
        + "\n".join(parts)
        + "\n</svg>"
    )


def _grid(left: float, width: float, top: float, height: float, *, both: bool = False) -> str:
    """Lines at every quarter from 0 to 1, with their percentages below (and beside, with both)."""
    parts = []
    for i in range(5):
        x = left + width * i / 4
        parts.append(f'<line x1="{x}" y1="{top}" x2="{x}" y2="{top + height}" stroke="#eaeef2"/>')
        parts.append(_text(x, top + height + 16, f"{25 * i} %", size=10, anchor="middle"))
        if both:
            y = top + height * (1 - i / 4)
            parts.append(f'<line x1="{left}" y1="{y}" x2="{left + width}" y2="{y}" stroke="#eaeef2"/>')
            parts.append(_text(left - 6, y + 4, f"{25 * i} %", size=10, anchor="end"))
    return "".join(parts)


def _legend(entries: Sequence[tuple[str, str]], left: float) -> list[str]:
    parts, x = [], left
    for colour, name in entries:
        parts.append(f'<rect x="{x}" y="4" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(x + 15, 13, name))
        x += 30 + 7 * len(name)
    return parts


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start", colour: str = _INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">{_e(text)}</text>'


def _scale(left: float, width: float) -> Any:
    return lambda value: left + width * min(max(value, 0.0), 1.0)


def _note(text: str) -> str:
    return f'<p class="note">{_e(text)}</p>'


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _e(text: object) -> str:
    return html.escape("".join(c if c.isprintable() else "\ufffd" for c in str(text)))
