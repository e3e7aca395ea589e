"""How many labelled images does it take? A vision-language model tuned with LoRA against a vision-only model.

    loreloop serve --model ~/small-vlm
    python -m examples.few_shot_vision --model ~/small-vlm --data ~/.cache/loreloop/small-vlm/novel \
        --held-out openmoji,fluent-emoji-flat

1, 2, 4, 8, 16 images a class; all methods see the same images in the same steps, and are examined on images (drawing
styles, with --held-out) that none of them saw. The published comparison is the same program with another --model and
another --data: docs/small-vlm.md says how. Results are kept after every run of a method, and a second start goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import tinker
import torch

from examples.few_shot import backbone, language, report
from examples.few_shot.task import SHOTS, ClassFolder, Plan, Task

ARCHIVES = Path("~/.cache/loreloop/small-vlm/archives").expanduser()
LITE0 = "efficientnet-lite0"
Method = Callable[[Task, int], float]


def study(data: ClassFolder, plan: Plan, methods: dict[str, Method], seeds: int, out: Path) -> list[report.Result]:
    """Every method on every task; `out` gets the results as they come."""
    file = out / "results.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    results = [report.Result(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(result.method, result.shots, result.seed) for result in results}
    for seed in range(seeds):
        for shots in plan.shots:
            task = data.task(plan, shots, seed)
            for name, method in methods.items():
                untuned = name.endswith("untuned")
                key = (name, 0 if untuned else shots, seed)
                if key in done:
                    continue
                started = time.monotonic()
                results.append(report.Result(*key, share=method(task, seed)))
                done.add(key)
                with file.open("a") as log:
                    log.write(json.dumps(results[-1].__dict__) + "\n")
                took = time.monotonic() - started
                print(f"seed {seed}  {key[1]:>2} shots  {name:<40} {results[-1].share:.3f}  {took:5.0f} s", flush=True)
    return results


def methods_of(given: argparse.Namespace) -> dict[str, Method]:
    found: dict[str, Method] = {}
    if given.model:
        service = tinker.ServiceClient(base_url=given.base_url) if given.base_url else tinker.ServiceClient()
        wording = language.Wording(given.question, given.answer)
        tuning = language.Tuning(rank=given.rank, learning_rate=given.learning_rate, falling=not given.constant)
        speaks = language.LanguageMethod(
            service, given.model, given.processor or given.model, wording=wording, tuning=tuning
        )
        label = f"{Path(given.model).name}, answers with the name"
        found[f"{label}, untuned"] = lambda task, seed: speaks.untuned(task)
        found[f"{label}, LoRA"] = speaks.tuned
    for name in given.backbone:
        made = (
            backbone.efficientnet_lite0(ARCHIVES, given.lite0_side)
            if name == LITE0
            else backbone.from_transformers(name)
        )
        rates = backbone.HeadTuning(given.rank, given.head_rate, given.backbone_rate)
        found[f"{made.name}, linear head, frozen"] = backbone.HeadMethod(made, rates, lora=False).tuned
        found[f"{made.name}, linear head, LoRA"] = backbone.HeadMethod(made, rates, lora=True).tuned
    return found


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Few-shot image classification: language model against linear head.")
    parser.add_argument("--data", type=Path, required=True, help="a folder with a sub-folder of images a class")
    parser.add_argument("--model", help="the vision-language model as the server calls it; none: only --backbone")
    parser.add_argument("--processor", help="folder or hub id of its processor (default: --model)")
    parser.add_argument("--base-url", help="the server (default: TINKER_BASE_URL)")
    parser.add_argument(
        "--backbone", action="append", help=f"vision-only model: folder, hub id, or {LITE0}; repeatable"
    )
    parser.add_argument("--held-out", default="", help="exam files: names that hold one of these, with commas between")
    parser.add_argument("--out", type=Path, default=Path("few-shot-out"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ways", type=int, default=20, help="classes drawn for each seed; 0: all")
    parser.add_argument("--shots", type=int, nargs="+", default=list(SHOTS))
    parser.add_argument("--repeats", type=int, default=10, help="how often each image is shown at the most shots")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--exam-images", type=int, default=256)
    parser.add_argument("--most-pixels", type=int, default=480, help="longer side of an image")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="of the language model's LoRA")
    parser.add_argument("--constant", action="store_true", help="a constant rate, as in the published sweep")
    parser.add_argument("--backbone-rate", type=float, default=1e-4, help="of the backbones' LoRA")
    parser.add_argument("--head-rate", type=float, default=1e-2)
    parser.add_argument("--lite0-side", type=int, default=128, help=f"pixels that {LITE0} sees")
    parser.add_argument("--question", default=language.Wording.question)
    parser.add_argument("--answer", default=language.Wording.answer, help="{name} stands for the class")
    parser.add_argument("--quick", action="store_true", help="two seeds, 1 and 4 shots, few steps: to see that it runs")
    return parser


def same_study(given: argparse.Namespace) -> None:
    """Notes the settings in the folder of results; those of another study are not to be mixed with this one's."""
    free = {"out", "seeds", "base_url"}
    asked = {name: str(value) for name, value in sorted(vars(given).items()) if name not in free}
    file: Path = given.out / "settings.json"
    given.out.mkdir(parents=True, exist_ok=True)
    noted = json.loads(file.read_text()) if file.exists() else asked
    if noted != asked:
        changed = ", ".join(
            f"{name} {noted.get(name)} -> {asked[name]}" for name in asked if asked[name] != noted.get(name)
        )
        raise SystemExit(f"{given.out} holds results of other settings ({changed}); name another --out.")
    file.write_text(json.dumps(asked, indent=1))


def main(words: list[str] | None = None) -> None:
    given = arguments().parse_args(words)
    given.backbone = given.backbone or [LITE0]
    if given.quick:
        given.seeds, given.shots, given.repeats, given.exam_images = 2, [1, 4], 2, 32
    plan = Plan(
        ways=given.ways or None,
        shots=tuple(given.shots),
        repeats=given.repeats,
        batch=given.batch,
        exam_images=given.exam_images,
        held_out=tuple(part for part in given.held_out.split(",") if part),
        most_pixels=given.most_pixels,
    )
    same_study(given)
    data = ClassFolder(given.data)
    torch.set_num_threads(1 if given.quick else torch.get_num_threads())
    results = study(data, plan, methods_of(given), given.seeds, given.out)
    ways = min(plan.ways or len(data.files), len(data.files))
    title = f"{given.data.name}: {ways} classes, {given.seeds} seeds, bands of 95 %"
    print(report.table(results))
    print(f"The picture is {report.save(results, given.out, title, 1 / ways)}")


if __name__ == "__main__":
    main()
