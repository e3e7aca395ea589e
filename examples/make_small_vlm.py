"""Makes a small vision-language model out of parts that registries ship; docs/small-vlm.md is its page.

    python -m examples.make_small_vlm --work ~/.cache/loreloop/small-vlm --out ~/small-vlm

Runs in under an hour on two cores. Stages leave their results in the work folder: interrupted and started again, it
goes on where it was. `--trial` does everything with a few names and steps, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from examples.small_vlm import drawings, exam, folder, parts, spelling, tower, voice
from loreloop.config import Config
from loreloop.formats.adding import ensure
from loreloop.formats.catalog import Catalog


@dataclass(frozen=True)
class Size:
    """How much is made: names of each kind (None: all), steps of both trainings, drawings asked about."""

    names: int | None
    tower_steps: int
    spelling_steps: int
    voice_steps: int
    exam_images: int


WHOLE, TRIAL = Size(None, 1200, 500, 600, 200), Size(24, 4, 4, 2, 8)


def make(work: Path, out: Path, base: Path, size: Size) -> dict[str, exam.Marks]:
    """All stages; gives the marks by what was asked."""
    work.mkdir(parents=True, exist_ok=True)
    parts.fetch(work / "archives")
    if not (work / "drawings.json").exists():
        drawings.make(work / "archives", work, size.names)
    art = drawings.load(work)
    taught = art.split.known + art.split.extra
    for kind, names in (("known", art.split.known), ("novel", art.split.novel)):
        drawings.save_folders(art, names, work / kind)

    language, tokenizer = folder.read_language_model(base), folder.read_tokenizer(base)
    words = voice.words_of(tokenizer, language, taught)
    seeing = tower.train(art, words, work, size.tower_steps)
    spelling.train(seeing, words, art, work, size.spelling_steps)
    voice.train(seeing, language, voice.chat_of(tokenizer, taught), art, work, size.voice_steps)
    folder.save(seeing, language, base, out)

    marks = {
        f"{kind} classes, {said} styles": exam.examine(out, art, names, styles, n_images=size.exam_images)
        for kind, names in (("known", art.split.known), ("novel", art.split.novel))
        for said, styles in (("training", parts.TRAINING_STYLES), ("held-out", parts.HELD_OUT_STYLES))
    }
    (work / "marks.json").write_text(json.dumps({said: asdict(mark) for said, mark in marks.items()}, indent=1))
    return marks


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes a small vision-language model out of registry packages.")
    parser.add_argument("--work", type=Path, default=Path("~/.cache/loreloop/small-vlm").expanduser())
    parser.add_argument("--out", type=Path, required=True, help="the model's folder")
    parser.add_argument("--base", type=Path, help="a llama folder (default: smollm2-135m, added if need be)")
    parser.add_argument("--threads", type=int, help="of torch; beside other work 1 is faster than 2")
    parser.add_argument("--trial", action="store_true", help="a few names and steps, to see that it runs")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    base = given.base or ensure(Catalog(Config().data_path), "smollm2-135m").folder
    work = given.work / "trial" if given.trial else given.work
    marks = make(work, given.out, base, TRIAL if given.trial else WHOLE)
    print(f"{'share right':<36}  one of {exam.WAYS}  greedy answer")
    for said, mark in marks.items():
        print(f"{said:<36}     {mark.closed_set:.3f}          {mark.generated:.3f}   ({mark.images} images)")


if __name__ == "__main__":
    main()
