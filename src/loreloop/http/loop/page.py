"""The page behind a feedback link: plain HTML without scripts or anything from elsewhere, which a form sends back.

Pure. It shows nothing of the conversation, since mails are read by more than their readers.
"""

from __future__ import annotations

from html import escape

from loreloop.protocol.feedback import EDIT, SCORE, THUMB, Metric

# Nothing but its own style and its own form: whatever a text smuggled in could not load or send anything.
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "x-robots-tag": "noindex",
    "x-content-type-options": "nosniff",
}
STYLE = """
:root { color-scheme: light dark; font: 1.1rem/1.5 system-ui, sans-serif }
body { max-width: 32rem; margin: 3rem auto; padding: 0 1rem }
button, input, textarea { font: inherit; padding: .6rem 1rem; margin: .3rem .3rem .3rem 0; border-radius: .4rem }
button { min-width: 6rem; min-height: 3rem }
input, textarea { width: 100%; box-sizing: border-box }
label { display: block; margin-top: 1rem }
"""
LONGEST_COMMENT = 2000


def form_page(metric: Metric, until: str, *, kept: str = "") -> str:
    """The form for a value of this metric. `kept` is what was recorded just now; `until` says when the page ends."""
    thanks = f'<p role="status">Thank you. Recorded: <strong>{escape(kept)}</strong>.</p>' if kept else ""
    again = "You can change it" if kept else "You can answer"
    body = (
        f"<h1>{_question(metric)}</h1>{thanks}"
        f'<form method="post">{_field(metric)}'
        '<label for="why">Why? (optional)</label>'
        f'<textarea id="why" name="why" rows="3" maxlength="{LONGEST_COMMENT}"></textarea>{_buttons(metric)}</form>'
        f"<p>{again} until {escape(until)}.</p>"
    )
    return _page("Feedback", body)


def message_page(message: str) -> str:
    """What went wrong, in the words of the error."""
    return _page("Feedback", f'<h1>This did not work</h1><p role="alert">{escape(message)}</p>')


def shown(metric: Metric, value: bool | float | str) -> str:
    """A value in words."""
    if isinstance(value, bool):
        return ("good" if value else "bad") if metric.name == THUMB else ("yes" if value else "no")
    return value if isinstance(value, str) else f"{value:g}"


def _question(metric: Metric) -> str:
    match metric.name:
        case name if name == THUMB:
            return "How was this answer?"
        case name if name == EDIT:
            return "What should the answer have been?"
    return "Your comment" if metric.kind == "comment" else escape(metric.name.replace("_", " ").capitalize())


def _field(metric: Metric) -> str:
    if metric.kind == "float":
        bounds = ' min="0" max="1"' if metric.name == SCORE else ""
        attributes = f'id="value" name="value" type="number" step="any"{bounds} required'
        return f'<label for="value">A number</label><input {attributes}>'
    if metric.kind == "boolean":
        return ""
    return '<label for="value">Your text</label><textarea id="value" name="value" rows="6" required></textarea>'


def _buttons(metric: Metric) -> str:
    if metric.kind != "boolean":
        return '<p><button type="submit">Send</button></p>'
    good, bad = shown(metric, True).capitalize(), shown(metric, False).capitalize()
    return (
        f'<p><button type="submit" name="value" value="true">{good}</button>'
        f'<button type="submit" name="value" value="false">{bad}</button></p>'
    )


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>"
    )
