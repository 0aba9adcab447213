"""Read a tokenizer's chat templates from each of the places that transformers has had for them."""

from __future__ import annotations

import itertools
import reprlib
from pathlib import Path

from cgconvert.errors import InputError
from cgconvert.io.strict_json import read_json, read_text

__all__ = [
    "CHAT_TEMPLATE",
    "CHAT_TEMPLATE_FOLDER",
    "DEFAULT",
    "OLD_CHAT_TEMPLATE",
    "chat_template_files",
    "parse_chat_templates",
    "read_chat_templates",
]

CHAT_TEMPLATE = "chat_template.jinja"
"""The file of the default template."""

CHAT_TEMPLATE_FOLDER = "additional_chat_templates"
"""The folder of the other templates, each a file of its name and .jinja."""

OLD_CHAT_TEMPLATE = "chat_template.json"
"""A file that older processors have, an object with the template as chat_template."""

DEFAULT = "default"
"""The name of the template for a plain chat."""

MAX_TEMPLATES = 64
MAX_CHARACTERS = 1 << 20
"""A template of more characters is refused: the longest known have some 20,000."""


def chat_template_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of templates that a folder has."""
    return tuple(
        path
        for path in (folder / CHAT_TEMPLATE, *_additional(folder), folder / OLD_CHAT_TEMPLATE)
        if path.is_file()
    )


def read_chat_templates(folder: Path, inline: object) -> dict[str, str]:
    """Read the templates of a tokenizer, by their names.

    Templates in files take precedence over those in tokenizer_config.json (transformers,
    tokenization_utils_base.py: _from_pretrained).

    Args:
        folder: The folder with the tokenizer's files.
        inline: The entry chat_template of its tokenizer_config.json; None if it has none.

    Raises:
        InputError: A file is not UTF-8, or a template is not a text or too long.
    """
    templates = {}
    if (folder / CHAT_TEMPLATE).is_file():
        templates[DEFAULT] = _read(folder / CHAT_TEMPLATE)
    for path in _additional(folder):
        templates[path.name.removesuffix(".jinja")] = _read(path)
    where = folder / "tokenizer_config.json"
    if not templates:
        templates = parse_chat_templates(inline, where)
    if not templates and (folder / OLD_CHAT_TEMPLATE).is_file():
        where = folder / OLD_CHAT_TEMPLATE
        templates = parse_chat_templates(read_json(where).get("chat_template"), where)
    for name, template in templates.items():
        if not 0 < len(name) <= 64 or not name.isprintable() or "/" in name or name[0] == ".":
            raise InputError(f"{where}: a chat template has the name {reprlib.repr(name)}")
        if any("\ud800" <= character <= "\udfff" for character in template):
            raise InputError(f"{where}: the chat template {name!r} is not valid Unicode")
        if len(template) > MAX_CHARACTERS:
            raise InputError(
                f"{where}: the chat template {name!r} has {len(template):,} characters, "
                f"more than {MAX_CHARACTERS:,}"
            )
    return templates


def _read(path: Path) -> str:
    """Read a template; every end of a line becomes a newline, as where Python reads text.

    Raises InputError if the file is too large, no regular file or not UTF-8.
    """
    if path.stat().st_size > 4 * MAX_CHARACTERS:  # UTF-8 has at most four bytes a character
        raise InputError(f"{path}: too large for a chat template")
    return read_text(path).replace("\r\n", "\n").replace("\r", "\n")


def _additional(folder: Path) -> list[Path]:
    """Return the files of the templates beside the default one. Raises InputError for too many."""
    paths = (folder / CHAT_TEMPLATE_FOLDER).glob("*.jinja")
    first_paths = list(itertools.islice(paths, MAX_TEMPLATES + 1))
    if len(first_paths) > MAX_TEMPLATES:
        raise InputError(
            f"{folder / CHAT_TEMPLATE_FOLDER}: has more than {MAX_TEMPLATES} chat templates"
        )
    return sorted(first_paths)


def parse_chat_templates(value: object, where: Path) -> dict[str, str]:
    """Return the templates of an entry chat_template: one text, an object, or a list of objects.

    Raises InputError if it is anything else.
    """
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    entries = value
    if isinstance(value, dict):
        entries = [{"name": name, "template": template} for name, template in value.items()]
    if not isinstance(entries, list) or len(entries) > MAX_TEMPLATES:
        raise InputError(f"{where}: chat_template is {reprlib.repr(value)}, not templates")
    templates = {}
    for entry in entries:
        fields = entry if isinstance(entry, dict) else {}
        name, template = fields.get("name"), fields.get("template")
        if not isinstance(name, str) or not isinstance(template, str):
            raise InputError(f"{where}: a chat template is {reprlib.repr(entry)}, not a name and "
                             "a text")  # fmt: skip
        templates[name] = template
    return templates
