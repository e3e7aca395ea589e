"""`python -m bench.screenshots`: pictures of the pages for docs/images, of a server that has a little of everything.

Needs Chromium. It is looked at what the pages' scripts complain of: anything fails.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import httpx
import openai
import tinker
from tokenizers import Tokenizer

from bench.browser import Browser, browser
from loreloop.cli.server import RunningServer, running_server

IMAGES = Path(__file__).parent.parent / "docs" / "images"
MODELS = Path("~/.local/share/loreloop/models").expanduser()
MODEL = "smollm2-135m"
FACTS = (
    "The password of the harbour is bluebird.",
    "The lighthouse keeper is called Ida.",
    "The ferry leaves at nine.",
)
QUESTIONS = (
    "Where is the harbour?",
    "When does the ferry leave?",
    "Who keeps the lighthouse?",
    "What is the password?",
)
WIDE, PHONE = (1280, 900), (390, 844)
JOB_SECONDS = 60.0


def train(client: tinker.ServiceClient, tokenizer: Tokenizer, rate: float, n_steps: int) -> str:
    """A run on a few facts; the path of what it has learned."""
    training = client.create_lora_training_client(MODEL, rank=16, seed=3).result()
    data = []
    for fact in FACTS:
        tokens = tokenizer.encode(fact).ids
        inputs = {"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)}
        data.append(tinker.Datum(model_input=tinker.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs))
    for step in range(n_steps):
        passed = training.forward_backward([data[step % len(data)], data[(step + 1) % len(data)]], "cross_entropy")
        training.optim_step(tinker.AdamParams(learning_rate=rate)).result()
        passed.result()
    return str(training.save_weights_for_sampler("learned").result().path)


def rewarded(client: tinker.ServiceClient, tokenizer: Tokenizer) -> str:
    """A run of one step over answers that were drawn, half of them liked; its id."""
    training = client.create_lora_training_client(MODEL, rank=16, seed=3).result()
    sampler = client.create_sampling_client(base_model=MODEL).result()
    drawn = tinker.SamplingParams(max_tokens=24, temperature=1.0, seed=1)
    data = []
    for question in QUESTIONS[:2]:
        prompt = tokenizer.encode(question).ids
        answers = sampler.sample(tinker.ModelInput.from_ints(prompt), num_samples=4, sampling_params=drawn).result()
        for place, answer in enumerate(answers.sequences):
            n_before, n = len(prompt) - 1, len(answer.tokens)
            inputs = {
                "target_tokens": [*prompt[1:], *answer.tokens],
                "logprobs": [0.0] * n_before + list(answer.logprobs or []),
                "advantages": [0.0] * n_before + [1.0 - place / 2] * n,
            }
            whole = tinker.ModelInput.from_ints([*prompt, *answer.tokens[:-1]])
            data.append(tinker.Datum(model_input=whole, loss_fn_inputs=inputs))
    passed = training.forward_backward(data, "importance_sampling")
    training.optim_step(tinker.AdamParams(learning_rate=1e-3)).result()
    passed.result()
    return str(training.model_id)


def fill(server: RunningServer) -> dict[str, str]:
    """A little of everything; the addresses of the pages that show it."""
    service = tinker.ServiceClient(base_url=server.url, api_key=server.key)
    tokenizer = Tokenizer.from_file(str(server.data / "models" / MODEL / "tokenizer.json"))
    paths = [train(service, tokenizer, rate, 40) for rate in (1e-3, 2e-4)]
    web = httpx.Client(base_url=server.url, headers={"x-api-key": server.key}, timeout=120, trust_env=False)
    put = {"target": paths[1], "record": True}
    web.put("/loop/v1/deployments/harbour", json=put).raise_for_status()
    web.put("/loop/v1/deployments/harbour", json=put | {"canary": paths[0], "canary_percent": 20}).raise_for_status()
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key)
    for number, question in enumerate(QUESTIONS):
        messages = [{"role": "user", "content": question}]
        made = client.chat.completions.create(
            model="harbour", messages=messages, max_tokens=24, user=f"person-{number}"
        )
        said = {"target_id": made.id, "metric": "thumb", "value": number % 2 == 0, "why": "" if number % 2 else "right"}
        web.post("/loop/v1/feedback", json=said).raise_for_status()
    lines = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": fact}]}
        for question, fact in zip(QUESTIONS * 4, FACTS * 6, strict=False)
    ]
    file = client.files.create(file=("facts.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=file.id)
    deadline = time.monotonic() + JOB_SECONDS
    while client.fine_tuning.jobs.retrieve(job.id).status in ("queued", "running") and time.monotonic() < deadline:
        time.sleep(1)
    for fact in FACTS:
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": fact}],
            max_tokens=24,
            extra_body={"memory": {"id": "ida", "budget_tokens": 120}},
        )
    # Why nothing was promoted yet, as a loop tells it look by look.
    for n in range(5, 200, 5):
        width = 2.0 / n**0.5
        numbers = {"candidate_episodes": n, "champion_episodes": 4 * n, "difference": 0.06}
        numbers |= {"difference_low": max(-1.0, 0.06 - width), "difference_high": min(1.0, 0.06 + width)}
        told = {"stage": "canary", "cycle": 2, "champion": paths[1], "candidate": paths[0], "numbers": numbers}
        low, high = numbers["difference_low"], numbers["difference_high"]
        said = (
            f"After {n} episodes of the candidate and {4 * n} of the champion, the difference lies between {low:+.2f} "
        )
        told["sentence"] = f"{said}and {high:+.2f}."
        web.put("/loop/v1/deployments/harbour/standing", json=told).raise_for_status()
    step = rewarded(service, tokenizer)
    runs = [path.removeprefix("tinker://").split("/")[0] for path in paths]
    return {
        "runs": "/ui/runs",
        "run": f"/ui/runs/{runs[0]}",
        "compare": f"/ui/compare?runs={','.join(runs)}",
        "job": f"/ui/jobs/{job.id}",
        "deployment": "/ui/deployments/harbour",
        "playground": f"/ui/playground?left={MODEL}&right={paths[0]}",
        "memory": "/ui/memory?id=ida&user=",
        "step": f"/ui/runs/{step}/steps/1",
        "operation": "/ui/operation",
    }


def sign_in(look: Browser, server: RunningServer) -> None:
    """By the form, as a person does."""
    look.open(f"{server.url}/ui/runs")
    look.run(f"document.getElementById('key').value = {json.dumps(server.key)}; document.forms[0].submit()")
    look.settle()
    # A stranger's first look is answered with 401, which the browser notes and nobody minds.
    look.problems.clear()


def ask_both(look: Browser) -> None:
    """Has the playground answer."""
    look.run("document.getElementById('prompt').value = 'The password of the harbour is'")
    look.run("document.getElementById('max_tokens').value = 24; document.getElementById('ask').requestSubmit()")
    time.sleep(8)


def main() -> None:
    """Renews the pictures."""
    with tempfile.TemporaryDirectory() as data:
        (Path(data) / "models").mkdir()
        if (MODELS / MODEL).is_dir():
            (Path(data) / "models" / MODEL).symlink_to(MODELS / MODEL)
        # What a step has learned from is there until a snapshot.
        settings = Path(data) / "server.toml"
        settings.write_text("[engine]\nsnapshot_seconds = 3600\n")
        with running_server(data, ["--model", MODEL, "--config", str(settings)]) as server, browser() as look:
            pages = fill(server)
            sign_in(look, server)
            for theme in ("light", "dark"):
                for name, address in pages.items():
                    look.look_as(theme, *WIDE)
                    look.open(server.url + address)
                    if name == "playground":
                        ask_both(look)
                    look.picture(IMAGES / f"page-{name}-{theme}.png")
            look.look_as("dark", *PHONE)
            look.open(server.url + pages["run"])
            look.picture(IMAGES / "page-run-phone.png")
            if look.problems:
                sys.exit("\n".join(look.problems))


if __name__ == "__main__":
    main()
