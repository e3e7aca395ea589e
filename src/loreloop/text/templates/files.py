"""Where a folder keeps its chat templates, by name: `default`, perhaps `tool_use` and others.

`chat_template.jinja` and `additional_chat_templates/*.jinja` go before what `tokenizer_config.json` holds, as in
transformers. `chat_template.json`, in which processors of vision models kept theirs, goes before all where the folder
has a processor, and counts elsewhere only if there is nothing else. Renders nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loreloop.protocol.errors import BadRequest
from loreloop.text.tokenizer_files import read_object, read_text

DEFAULT, TOOL_USE = "default", "tool_use"
FILE, FOLDER, OF_PROCESSOR = "chat_template.jinja", "additional_chat_templates", "chat_template.json"
PROCESSORS = ("processor_config.json", "preprocessor_config.json")


def read_templates(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Template texts by name; `settings` are those of tokenizer_config.json. BadRequest names a file that is broken."""
    found = {file.stem: read_text(file) for file in sorted((folder / FOLDER).glob("*.jinja"))}
    if (folder / FILE).exists():
        found[DEFAULT] = read_text(folder / FILE)
    of_tokenizer = _named(settings, folder / "tokenizer_config.json")
    of_processor = _named(read_object(folder / OF_PROCESSOR), folder / OF_PROCESSOR)
    if any((folder / name).exists() for name in PROCESSORS):
        found |= of_processor
    if DEFAULT in found:
        return found
    # Further templates without a default beside them: transformers would have none for a chat without tools.
    return (of_tokenizer or of_processor) | found


def _named(settings: Mapping[str, Any], file: Path) -> dict[str, str]:
    """A template alone, a list of named ones, or a dictionary of them."""
    template = settings.get("chat_template")
    try:
        match template:
            case None:
                return {}
            case str():
                return {DEFAULT: template}
            case list():
                named = {entry["name"]: entry["template"] for entry in template}
            case _:
                named = dict(template)
    except (KeyError, TypeError, ValueError):
        named = {"": None}
    if not all(isinstance(text, str) for text in (*named, *named.values())):
        raise BadRequest(f"chat_template in {file} is neither a text nor a list of a name and a template each.")
    return named
