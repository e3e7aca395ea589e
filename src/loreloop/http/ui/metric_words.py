"""What each metric is and when to worry, in a plain sentence, beside its curve."""

from __future__ import annotations

from typing import NamedTuple


class Words(NamedTuple):
    """A metric's title and the sentence below it."""

    title: str
    about: str


KNOWN = {
    "loss": Words(
        "Loss a token",
        "The sum of the loss over the tokens that were learned from, tokens of prompts counted too. In fine-tuning it "
        "falls; worry where it rises for many steps or jumps. With a policy loss it says little: look at the reward.",
    ),
    "gradient_norm": Words(
        "Gradient norm",
        "The length of the gradient before it is clipped. Any size will do; worry where it grows tenfold over what "
        "it was: often too high a learning rate, or a broken example.",
    ),
    "update_norm": Words(
        "Update norm",
        "How far the step has moved the weights. It follows the learning rate; worry where it jumps, or is zero, since "
        "then nothing is learned.",
    ),
    "learning_rate": Words(
        "Learning rate", "What the client asked for at each step. It is as the client's schedule says."
    ),
    "trained_tokens": Words(
        "Tokens a step",
        "Positions of the sequences that a step has learned from. Worry where it is far from your batch.",
    ),
    "seconds": Words(
        "Seconds a step",
        "From the end of one step to that of the next, sampling and the client's work among them. Worry where it "
        "grows while the tokens do not.",
    ),
    "tokens_per_second": Words(
        "Tokens per second",
        "From the end of one step to that of the next, with sampling and the work of the client. Worry where it "
        "falls while the tokens of a step stay as they are.",
    ),
    "train_loss": Words(
        "Training loss", "The mean loss of a token that was learned from. Worry where it rises for many steps."
    ),
    "valid_loss": Words(
        "Validation loss",
        "The same over held-out examples. Worry where it rises while the training loss falls: it learns by heart.",
    ),
    "train_mean_token_accuracy": Words(
        "Token accuracy", "The share of tokens that the model would have chosen itself. It rises as the model learns."
    ),
    "train_reward_mean": Words(
        "Reward",
        "The mean reward of the answers of a step. It should rise; worry where it rises and the answers are worse.",
    ),
    "train_kl_sampler": Words(
        "Divergence from the sampler",
        "The mean of log μ − log π over sampled tokens, where μ drew them and π learns from them. It stays close to "
        "zero; worry beyond 0.1, since the gradients then lean on stale answers.",
    ),
    "train_ratio_max": Words(
        "Largest log ratio",
        "The token whose probability changed most since it was drawn. Worry where it stays above 2.",
    ),
    "train_clip_fraction": Words(
        "Clipped tokens",
        "The share of tokens beyond the loss's bounds. Worry above 0.3: most of a step is then thrown away.",
    ),
    "train_entropy": Words(
        "Entropy",
        "How undecided the model is, by token. It falls slowly; worry where it drops to zero: all answers are alike.",
    ),
    "train_flat_groups": Words(
        "Flat groups",
        "The share of tasks whose answers all earned the same, from which nothing is learned. Worry above 0.8.",
    ),
    "train_answer_tokens": Words(
        "Tokens an answer", "The mean length of answers. Worry where it runs to the limit, or to nothing."
    ),
}
ORDER = tuple(KNOWN)


def words_of(metric: str) -> Words:
    """The words for a metric; for one that nobody has described, its name."""
    usual = Words(metric.replace("_", " ").capitalize(), "As the training has reported it.")
    return KNOWN.get(metric, usual)


def in_order(metrics: set[str]) -> list[str]:
    """Metrics in the order in which people look at them, the others behind by name."""
    return sorted(metrics, key=lambda name: (ORDER.index(name) if name in KNOWN else len(ORDER), name))
