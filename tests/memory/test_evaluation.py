"""The loaders read the published forms, and the measures count what the definitions say."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from loreloop.memory.evaluation import minilm, synthetic
from loreloop.memory.evaluation.cases import Conversation, Question
from loreloop.memory.evaluation.contenders import BLIND, Bm25, Embedded, terms
from loreloop.memory.evaluation.minilm import Array
from loreloop.memory.evaluation.published import Format, load
from loreloop.memory.evaluation.recall import answer_kept, estimate, estimate_within, gone, recall, turns_kept
from loreloop.memory.evaluation.study import blind_rows, knowing_rows, table_of
from loreloop.memory.state import Segment
from loreloop.memory.turns import Turn
from loreloop.memory.words import content_of, sentences
from loreloop.protocol.errors import BadRequest
from tests.memory.conversations import count

LOCOMO = [
    {
        "sample_id": "conv-x",
        "conversation": {
            "speaker_a": "Ann",
            "session_1_date_time": "1:56 pm on 8 May, 2023",
            "session_1": [
                {"speaker": "Ann", "dia_id": "D1:1", "text": "I went to Oslo yesterday."},
                {"speaker": "Bob", "dia_id": "D1:2", "text": "Nice!"},
            ],
            "session_2_date_time": "9:00 am on 1 May, 2023",
            "session_2": [{"speaker": "Bob", "dia_id": "D2:1", "text": "My cat is called Odin."}],
        },
        "qa": [
            {"question": "When?", "answer": 2023, "evidence": ["D1:1; D2:1"], "category": 2},
            {"question": "Which cat?", "answer": "Odin", "evidence": ["D1:2", "D9:9"], "category": 4},
            {"question": "Which dog?", "adversarial_answer": "Rex", "evidence": [], "category": 5},
        ],
    }
]
FAULTS = [{"sample_id": "conv-x", "qa_index": 1, "correct_evidence": ["D2:1"], "correct_answer": "Odin the cat"}]
BEAM = [
    {
        "chat_id": 3,
        "messages": [
            {"id": 7, "role": "user", "content": "Plan my week ->-> 1,2"},
            {"id": 8, "role": "assistant", "content": "Gladly."},
        ],
        "questions": {
            "knowledge_update": [
                {"question": "What?", "answer": "7", "source_chat_ids": {"old": [7], "new": [[8], 99]}}
            ],
            "abstention": [{"question": "Who?", "ideal_response": "Not said."}],
        },
    }
]
LONG = [
    {
        "question_id": "q1",
        "question_type": "multi-session",
        "question": "How many cats do I have?",
        "question_date": "2023/06/01 (Thu) 10:00",
        "answer": 3,
        "haystack_session_ids": ["s1", "s2"],
        "haystack_dates": ["2023/05/30 (Tue) 23:40", "2023/05/29 (Mon) 08:00"],
        "haystack_sessions": [
            [
                {"role": "user", "content": "I have three cats.", "has_answer": True},
                {"role": "assistant", "content": "!"},
            ],
            [{"role": "user", "content": "It rains.", "has_answer": False}],
        ],
        "answer_session_ids": ["s1"],
    },
    {
        "question_id": "q2",
        "question_type": "temporal-reasoning",
        "question": "When did it rain?",
        "answer": "On Monday.",
        "haystack_session_ids": ["s1", "s2"],
        "haystack_sessions": [
            [{"role": "user", "content": "Hello."}],
            [{"role": "user", "content": "It rained on Monday."}, {"role": "assistant", "content": "I see."}],
        ],
        "answer_session_ids": ["s2"],
    },
    {
        "question_id": "q3_abs",
        "question_type": "single-session-user",
        "question": "What is my dog called?",
        "answer": "It was never said.",
        "haystack_sessions": [[{"role": "user", "content": "I have a dog.", "has_answer": True}]],
        "answer_session_ids": ["s1"],
    },
]


def written(folder: Path, value: object) -> Path:
    path = folder / f"{id(value)}.json"
    path.write_text(json.dumps(value))
    return path


def test_locomo_raw_and_cleaned(tmp_path: Path) -> None:
    (raw,) = load(written(tmp_path, LOCOMO), "locomo")
    assert [question.evidence for question in raw.questions] == [(0, 2), (1,), ()]
    assert [turn.time for turn in raw.turns] == [1683554160.0] * 3, "a session's date that goes back is taken as it was"
    (cleaned,) = load(written(tmp_path, LOCOMO), "locomo", written(tmp_path, FAULTS))
    assert cleaned.questions[1].evidence == (2,)
    assert cleaned.questions[1].answer == "Odin the cat"
    assert load(written(tmp_path, LOCOMO), "locomo", written(tmp_path, [FAULTS[0] | {"question": "Which cat?"}]))
    with pytest.raises(BadRequest, match="another version"):
        load(written(tmp_path, LOCOMO), "locomo", written(tmp_path, [FAULTS[0] | {"question": "Which dog?"}]))


def test_beam_cites_messages_by_id(tmp_path: Path) -> None:
    (chat,) = load(written(tmp_path, BEAM), "beam")
    assert chat.turns[0] == Turn("user", "Plan my week")
    assert [(question.kind, question.evidence) for question in chat.questions] == [
        ("knowledge_update", (0, 1)),
        ("abstention", ()),
    ]


def test_longmemeval_has_a_history_for_each_question(tmp_path: Path) -> None:
    marked, named, absent = load(written(tmp_path, LONG), "longmemeval")
    assert marked.questions == (Question("multi-session", "How many cats do I have?", "3", (0,)),)
    assert [turn.role for turn in marked.turns] == ["user", "assistant", "user"]
    assert [turn.time for turn in marked.turns] == [1685490000.0] * 3, "a date that goes back is taken as it was"
    assert named.questions[0].evidence == (1, 2), "all turns of the named session, where no turn is marked"
    assert named.turns[0].time is None
    assert (absent.name, absent.questions[0].kind, absent.questions[0].evidence) == ("q3_abs", "abstention", ())
    rows = blind_rows([marked, named, absent], [100], count, ["memory"])
    assert (rows[0].recall.mean, rows[0].recall.n) == (1.0, 2)


@pytest.mark.parametrize("form", ["locomo", "beam", "longmemeval"])
def test_a_file_of_another_form_is_refused(tmp_path: Path, form: Format) -> None:
    with pytest.raises(BadRequest, match="another of the formats"):
        load(written(tmp_path, [{"hello": 1}]), form)
    with pytest.raises(BadRequest, match="cannot be opened"):
        load(tmp_path / "none.json", form)


def test_a_turn_counts_as_kept_by_its_words_names_and_numbers() -> None:
    turn = Turn("user", "I bought seven red apples in Oslo, at the big market.")
    enough = Segment(0, "user: ", "bought seven red apples Oslo market", 9, (0,), "user")
    no_name = Segment(0, "user: ", "bought seven red apples big market", 9, (0,), "user")
    few = Segment(0, "user: ", "bought apples Oslo", 9, (0,), "user")
    assert turns_kept([enough], [turn]) == {0}
    assert turns_kept([no_name], [turn]) == turns_kept([few], [turn]) == set()
    assert turns_kept([no_name, few], [turn]) == set(), "one segment must hold it"


def test_measures() -> None:
    assert recall(Question("k", evidence=(1, 2)), {2, 5}) == 0.5
    assert recall(Question("k"), {2}) is None
    assert answer_kept(Question("k", answer="Oslo, 7"), content_of("seven in Oslo")) is False
    assert answer_kept(Question("k", answer="Oslo, 7"), content_of("7 in Oslo")) is True
    assert answer_kept(Question("k", answer="a red one"), content_of("red")) is None
    segment = Segment(0, "", "My gym: Oslo.", 4, (0,), "user")
    assert not gone(Question("k", gone=("gym Oslo",)), [segment])
    assert gone(Question("k", gone=("gym Bergen",)), [segment])
    half = estimate([0.0, 1.0] * 50)
    assert half.mean == 0.5
    assert 0.38 < half.low < 0.45 < 0.55 < half.high < 0.62


def test_intervals_tell_how_conversations_differ() -> None:
    """Fifty equal questions of one conversation say no more than one: the interval is that of two conversations."""
    apart = estimate_within([[0.0] * 50, [1.0] * 50])
    assert (apart.mean, apart.low, apart.high, apart.n) == (0.5, 0.0, 1.0, 100)
    assert estimate_within([[0.0, 1.0] * 50, []]) == estimate([0.0, 1.0] * 50)
    alike = estimate_within([[0.0, 1.0] * 25, [0.0, 1.0] * 25])
    assert 0.38 < alike.low < 0.45 < 0.55 < alike.high < 0.62


def test_bm25_follows_its_formula() -> None:
    ranked = Bm25([Turn("user", "red cat"), Turn("user", "red red dog barks"), Turn("user", "blue fish")])
    scores = ranked.scores("Red?")
    # idf = ln(1 + (3 − 2 + .5)/(2 + .5)) = .470; tf 1, length 2 of 8/3; tf 2, length 4
    assert scores == pytest.approx(
        [0.470 * 2.5 / (1 + 1.5 * (0.25 + 0.75 * 0.75)), 0.470 * 5 / (2 + 1.5 * 1.375), 0], rel=1e-3
    )


def test_bm25_ranks_as_the_published_package_does() -> None:
    """Beside `bm25s`, on English prose: the summaries of this project's own documents, asked with each one's title."""
    bm25s = pytest.importorskip("bm25s")
    paragraphs = [
        " ".join(piece.split())
        for path in sorted((Path(__file__).parents[2] / "docs").glob("*.md"))
        for piece in path.read_text().split("\n\n")
        if len(piece) > 200 and not piece.startswith(("|", "```", "#"))
    ][:400]
    queries = [sentences(one)[-1] for one in paragraphs[::7]]
    assert len(paragraphs) > 100
    ours = Bm25([Turn("user", text) for text in paragraphs])
    theirs = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    theirs.index([terms(f" {text}") for text in paragraphs], show_progress=False)
    for query in queries:
        wanted = sorted(set(terms(query)))
        # Theirs leaves out the factor k1 + 1, which is the same for all documents, as Lucene does.
        expected = 2.5 * theirs.get_scores([term for term in wanted if term in theirs.vocab_dict])
        assert ours.scores(query) == pytest.approx(list(expected), rel=1e-3, abs=1e-4)


def test_every_contender_stays_within_the_budget() -> None:
    conversation = synthetic.stream(0, turns=200)
    for contender in BLIND.values():
        segments = contender(conversation, 700, count)
        assert segments
        assert sum(count(f"{segment.head}{segment.text}\n") for segment in segments) <= 700


def test_the_memory_keeps_needles_that_recency_loses() -> None:
    made = [synthetic.needles(seed, 600) for seed in range(2)]
    memory, recency = blind_rows(made, [1024], count, ["memory", "recency window"])
    assert memory.recall.mean >= 0.95
    assert recency.recall.mean < 0.3


def test_the_memory_drops_what_changed_and_keeps_what_holds() -> None:
    (row,) = blind_rows([synthetic.stream(seed, 400) for seed in range(3)], [1024], count, ["memory"])
    assert row.gone.mean >= 0.9
    assert row.recall.mean >= 0.9


def test_half_memory_half_retrieval_finds_what_the_question_names() -> None:
    rows = knowing_rows([synthetic.needles(3, 400)], [400], count)
    assert [row.recall.n for row in rows] == [20, 20, 20]
    assert rows[0].recall.mean > 0.9
    assert rows[1].recall.mean > 0.9
    assert table_of(rows).count("\n| ") == 3


def test_embeddings_rank_by_their_cosine() -> None:
    axes = {"cats": (1.0, 0.0), "dogs": (0.0, 1.0), "pets": (0.6, 0.8), "cars": (-1.0, 0.0)}

    def embed(texts: Sequence[str]) -> Array:
        return np.array([axes[text.split()[-1]] for text in texts], dtype=np.float32)

    turns = tuple(Turn("user", f"We like {name}") for name in axes)
    conversation = Conversation("c", turns, (Question("k", "What about cats", "", (0, 2)),))
    assert Embedded(turns, embed).scores("my cats") == pytest.approx([1.0, 0.0, 0.6, -1.0])
    rows = {row.contender: row for row in knowing_rows([conversation], [14], count, embed)}
    assert len(rows) == 6
    assert rows["MiniLM retrieval"].recall.mean == 1.0
    assert rows["BM25 retrieval"].recall.mean == 0.5


def test_minilm_is_the_published_model() -> None:
    """Against the values that `transformers` computes from the same weights."""
    pytest.importorskip(minilm.PACKAGE)
    folder = minilm.folder()
    assert folder is not None
    cat, feline, stocks = minilm.MiniLm(folder)(
        ["A cat sits on the mat.", "The feline rests on a rug.", "Stock prices fell sharply."]
    )
    assert cat[:4] == pytest.approx([0.126535, -0.032851, -0.02906, 0.044407], abs=1e-5)
    assert cat @ feline > 0.5 > feline @ stocks


def test_the_error_function() -> None:
    points = np.linspace(-4, 4, 81, dtype=np.float32)
    assert minilm.erf(points) == pytest.approx([math.erf(point) for point in points], abs=1e-6)


def test_a_seed_makes_one_conversation() -> None:
    assert synthetic.consequences(4) == synthetic.consequences(4) != synthetic.consequences(5)
    assert all(isinstance(made, Conversation) for made in (synthetic.needles(0, 100), synthetic.stream(0)))
