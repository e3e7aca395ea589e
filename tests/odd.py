"""Draws model folders that are published in odd ways: special tokens named here and there, tokens added by other files,
post-processors, several templates, ends in several places, weights in several files."""

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny import CHAT_TEMPLATE, SPECIALS

WORDS = ["<a>", "<b>", "<tool>", "[X]", "the", "fox", "<|im_end|>", "<|endoftext|>", "<|im_start|>"]
TEXTS = [
    "the quick <a>brown<b> fox<|im_end|> 12[X]",
    "<|im_start|>user\n <tool> the  fox [X]<|endoftext|>",
    "lazy",
    "",
    " <a> <b> the fox" * 40,
]
TEMPLATES = [
    CHAT_TEMPLATE,
    "{{ bos_token }}{% for m in messages %}{{ m.content | trim }}{{ eos_token }}{% endfor %}{{ image_token }}",
    "{% if tools %}{{ tools | tojson }}{% endif %}{{ messages | tojson(indent=1) }}{{ pad_token }}{{ cls_token }}",
    "{% for m in messages %}{% generation %}{% set x = 1 %}{{ m.content }}{% endgeneration %}{{ x }}{% endfor %}",
]
NAMES = ["bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "image_token", "call_token"]
STANDARD = NAMES[:5]


def form(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False} | flags


words = st.sampled_from(WORDS)
flags = st.fixed_dictionaries({}, optional={k: st.booleans() for k in ("lstrip", "rstrip", "single_word", "special")})
forms = st.builds(lambda content, how: form(content, **how), words, flags)
named = st.dictionaries(st.sampled_from(NAMES), words, max_size=4)
templates = st.sampled_from(TEMPLATES)
several = st.dictionaries(st.sampled_from(["tool_use", "rag"]), templates, max_size=2)
ends = st.none() | st.sampled_from([0, 2, [2, 5], [7]])


@st.composite
def settings_files(draw: st.DrawFn) -> dict[str, Any]:
    """What a folder's files hold, by their names; None: no such file."""
    config = draw(named)
    typed = draw(st.sampled_from(STANDARD))
    if typed in config and draw(st.booleans()):
        config[typed] = {"__type": "AddedToken", **form(config[typed])}
    if draw(st.booleans()):
        spelling = draw(st.sampled_from(["additional_special_tokens", "extra_special_tokens"]))
        config[spelling] = draw(st.lists(words, max_size=3, unique=True))
    elif draw(st.booleans()):
        config["extra_special_tokens"] = draw(st.dictionaries(st.sampled_from(["video_token", "end_of"]), words))
    if draw(st.booleans()):
        entries = draw(st.lists(forms, max_size=4, unique_by=lambda entry: entry["content"]))
        config["added_tokens_decoder"] = {str(512 + at): entry for at, entry in enumerate(entries)}
    config |= draw(st.fixed_dictionaries({}, optional={k: st.booleans() for k in ("add_bos_token", "add_eos_token")}))
    kind = draw(st.integers(0, 3))
    if kind:
        plain = draw(templates)
        more = [{"name": name, "template": text} for name, text in draw(several).items()]
        config["chat_template"] = plain if kind < 3 else [{"name": "default", "template": plain}, *more]
    others = draw(st.dictionaries(st.sampled_from(STANDARD), words | forms.map(lambda f: f | {"special": True})))
    return {
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **config},
        "special_tokens_map.json": draw(st.none() | st.just(others)),
        "added_tokens.json": draw(st.none() | st.dictionaries(words, st.integers(512, 520), max_size=3)),
        "generation_config.json": draw(st.none() | ends.map(lambda end: {"eos_token_id": end})),
        "end": draw(ends),
        "chat_template.jinja": draw(st.none() | templates),
        "additional_chat_templates": draw(several),
        "tokenizer.json": draw(tokenizer_changes()),
        "weights": draw(st.sampled_from(["single", "shards", "both", "strays"])),
        "head": draw(st.sampled_from(["none", "a copy", "another", "alone"])),
    }


@st.composite
def tokenizer_changes(draw: st.DrawFn) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if draw(st.booleans()):
        around = [{"SpecialToken": {"id": SPECIALS[1], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        around += [{"SpecialToken": {"id": SPECIALS[2], "type_id": 0}}] if draw(st.booleans()) else []
        special = {token: {"id": token, "ids": [SPECIALS.index(token)], "tokens": [token]} for token in SPECIALS[1:]}
        single = {"type": "TemplateProcessing", "single": around, "pair": around, "special_tokens": special}
        changes["post_processor"] = single
    if draw(st.booleans()):
        cut = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
        changes["truncation"] = cut
    return changes


def write_folder(files: dict[str, Any], made: Path, folder: Path) -> Path:
    """The tiny model of `made`, published as `files` says."""
    folder.mkdir()
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json"):
        if files[name] is not None:
            (folder / name).write_text(json.dumps(files[name]))
    config = json.loads((made / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": files["end"]}))
    tokenizer = json.loads((made / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | files["tokenizer.json"]))
    if files["chat_template.jinja"] is not None:
        (folder / "chat_template.jinja").write_text(files["chat_template.jinja"])
    if files["additional_chat_templates"]:
        (folder / "additional_chat_templates").mkdir()
    for name, text in files["additional_chat_templates"].items():
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(text)
    _write_weights(files["weights"], _with_head(files["head"], load_file(made / "model.safetensors")), folder)
    return folder


def _with_head(kind: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model whose configuration ties its head to its embedding, as they may be stored."""
    embedding = weights["model.embed_tokens.weight"]
    if kind == "none":
        return weights
    rest = {name: tensor for name, tensor in weights.items() if kind != "alone" or tensor is not embedding}
    return rest | {"lm_head.weight": embedding.flip(0) if kind == "another" else embedding.clone()}


def _write_weights(kind: str, weights: dict[str, Tensor], folder: Path) -> None:
    wrong = {name: tensor + 1 for name, tensor in weights.items()}
    names = sorted(weights)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    if kind != "shards":
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    if kind in ("shards", "both"):
        for file, part in halves.items():
            values = weights if kind == "shards" else wrong
            save_file({name: values[name] for name in part}, folder / file, {"format": "pt"})
        index = {"metadata": {}, "weight_map": {name: file for file, part in halves.items() for name in part}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if kind in ("shards", "strays"):
        for stray in ("consolidated.safetensors", "adapter_model.safetensors", "model-00003-of-00002.safetensors"):
            save_file(wrong, folder / stray, {"format": "pt"})
        (folder / "original").mkdir()
        save_file(wrong, folder / "original" / "model.safetensors", {"format": "pt"})
