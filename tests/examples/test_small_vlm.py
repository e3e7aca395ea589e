"""The stages that make the small vision-language model, on shapes that the tests draw and a tiny language model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration, PreTrainedModel

from examples.small_vlm import drawings, exam, folder, spelling, start, targets, teacher, tower, views, voice
from examples.small_vlm.parts import HELD_OUT_STYLES, TRAINING_STYLES
from tests.examples.shapes import COLOURS, SHAPES, pixels
from tests.tiny import make_tiny_model, make_tokenizer

STYLES = (*TRAINING_STYLES[:4], *HELD_OUT_STYLES)  # a colour stands for a style


@pytest.fixture(scope="module")
def art() -> drawings.Drawings:
    names, colours, rgba = pixels()
    styles = [STYLES[COLOURS.index(colour)] for colour in colours]
    features = torch.randn(len(names), 8, generator=torch.Generator().manual_seed(0))
    split = drawings.Split(list(SHAPES[:2]), [SHAPES[2]], [SHAPES[3]])
    maps = torch.randn(len(names), 12, 6, 6, generator=torch.Generator().manual_seed(1)).numpy()
    return drawings.Drawings(split, names, styles, rgba, features, maps)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = make_tiny_model(tmp_path_factory.mktemp("bases") / "tiny")
    make_tokenizer(place, 512, [folder.SPARE])
    return place


@pytest.fixture(scope="module")
def language(base: Path) -> PreTrainedModel:
    return folder.read_language_model(base)


@pytest.fixture(scope="module")
def saved(base: Path, language: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("made") / "small-vlm"
    folder.save(tower.Tower(64), language, base, place)
    return place


def test_the_teacher_takes_any_size_and_has_the_published_size() -> None:
    sees = teacher.EfficientNetLite0().eval()
    assert sum(p.numel() for p in sees.parameters()) == 4_652_008
    for side in (32, 47):
        parts, whole = sees(torch.rand(1, 3, side, side))
        assert parts.shape == (1, teacher.PART_WIDTH, -(-side // 32), -(-side // 32))
        assert whole.shape == (1, teacher.WIDTH)


def test_padding_is_that_of_the_weights_first_home() -> None:
    conv = teacher.SameConv(1, 1, 3, stride=2)
    torch.nn.init.ones_(conv.weight)
    out = conv(torch.ones(1, 1, 4, 4))[0, 0]
    assert out.tolist() == [[9, 6], [6, 4]]  # nothing is padded on the left or at the top


def test_names_are_split_by_where_they_are_drawn() -> None:
    everywhere = ["apple", "pear", "bus", "grinning face", "flag france"]
    drawn = {style: everywhere + (["spoon"] if style in TRAINING_STYLES[:3] else []) for style in (*TRAINING_STYLES,)}
    drawn |= dict.fromkeys(HELD_OUT_STYLES, everywhere)
    split = drawings.split_names(drawn)
    assert sorted(split.known + split.novel) == ["apple", "bus", "pear"]
    assert split.extra == ["grinning face", "spoon"]
    assert len(split.novel) == 1


def test_aliases_count_unless_they_turn_the_drawing() -> None:
    icon = {"body": "<rect/>"}
    icons = {"icons": {"dark-horse": icon, "old": icon | {"hidden": True}}, "width": 32, "height": 32}
    icons["aliases"] = {"nag": {"parent": "dark-horse"}, "mirrored": {"parent": "dark-horse", "hFlip": True}}
    assert sorted(drawings.documents(icons)) == ["dark horse", "nag"]


def test_views_stay_images_and_repeat_with_their_seed(art: drawings.Drawings) -> None:
    one, same, other = (views.varied(art.rgba_NSSC, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.shape == (len(art.names), 3, drawings.SIDE, drawings.SIDE)
    assert one.min() >= 0
    assert one.max() <= 1


def test_the_teachers_map_moves_with_the_view(art: drawings.Drawings) -> None:
    rows = list(range(len(art.names)))
    shall = targets.Targets(art, rows, 6)
    still, beside = torch.eye(3)[None, :2], torch.eye(3)[None, :2].clone()
    beside[0, 0, 2] = 2 / 6  # one place to the left
    whole, moved = (shall.parts([5], moves).view(6, 6, -1) for moves in (still, beside))
    torch.testing.assert_close(whole.permute(2, 0, 1), shall.map_NKHW[5].float())
    torch.testing.assert_close(moved[:, :-1], whole[:, 1:], atol=1e-3, rtol=1e-3)


def test_a_tower_begins_with_places_and_likeness() -> None:
    torch.manual_seed(0)
    seeing = tower.Tower(64)
    start.begin(seeing.vision, torch.randn(16, 3, drawings.SIDE, drawings.SIDE))
    attention = seeing.vision.vision_model.encoder.layers[0].self_attn
    mixed = attention.out_proj.weight @ attention.v_proj.weight
    assert mixed.diagonal().mean().item() == pytest.approx(-0.4, abs=0.05)
    place = torch.nn.functional.normalize(seeing.vision.vision_model.embeddings.position_embedding.weight[1:], dim=-1)
    assert place[5] @ place[6] > place[5] @ place[7] > place[5] @ place[15]


def test_words_at_their_place_are_no_distance_apart(language: PreTrainedModel, base: Path) -> None:
    words = voice.words_of(folder.read_tokenizer(base), language, ["circle", "bar"])
    tokens = words.tokens_of["bar"]
    soft = words.line_break_E.expand(1, 16, -1).clone()
    soft[0, : len(tokens)] = words.embedding_VE[tokens]
    assert spelling.distance(soft, ["bar"], words) == 0
    assert spelling.distance(soft, ["circle"], words) > 0
    assert tower.spelled(10 * soft, ["bar"], words) < tower.spelled(10 * soft, ["circle"], words)


def test_the_folder_is_what_transformers_reads(saved: Path) -> None:
    model, told = LlavaForConditionalGeneration.from_pretrained(saved, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert model.lm_head.weight.data_ptr() == model.model.language_model.embed_tokens.weight.data_ptr()


def test_its_processor_makes_the_prompt_that_was_trained(saved: Path, art: drawings.Drawings) -> None:
    processor = AutoProcessor.from_pretrained(saved)
    chat = voice.chat_of(processor.tokenizer.backend_tokenizer, art.names)
    content = [{"type": "image"}, {"type": "text", "text": voice.QUESTION}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    image = np.array(art.rgba_NSSC[0][:, :, :3])
    made = processor(images=image, text=text, return_tensors="pt")
    image_id = processor.tokenizer.convert_tokens_to_ids(folder.IMAGE)
    assert made["input_ids"][0].tolist() == [*chat.before, *[image_id] * 16, *chat.after]
    ours = views.normalise(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
    torch.testing.assert_close(made["pixel_values"], ours, atol=1e-5, rtol=1e-5)


@pytest.mark.numbers
def test_the_loss_trained_is_that_of_the_saved_folder(saved: Path, base: Path, art: drawings.Drawings) -> None:
    torch.manual_seed(0)
    seeing = tower.Tower(64).eval()
    language = folder.read_language_model(base).float()
    model = LlavaForConditionalGeneration.from_pretrained(saved, dtype=torch.float32)
    candidate = exam.Candidate(saved, art.names)
    chat = voice.chat_of(candidate.tokenizer, art.names)
    image = views.normalise(drawings.on_white(art.rgba_NSSC[:2]))
    answer = chat.answers[art.names[0]]
    ids = torch.cat((candidate.prompt, torch.tensor(answer))).expand(2, -1)
    labels = torch.full_like(ids, -100)
    labels[:, -len(answer) :] = torch.tensor(answer)
    reference = model(input_ids=ids, pixel_values=image, labels=labels).loss
    ours = voice.next_token_loss(seeing, language, chat, image, [art.names[0]] * 2)
    assert ours.item() == pytest.approx(reference.item(), rel=1e-2)  # the tower runs in bf16


def test_training_goes_on_where_it_was(
    art: drawings.Drawings, base: Path, language: PreTrainedModel, tmp_path: Path
) -> None:
    tokenizer = folder.read_tokenizer(base)
    taught = art.split.known + art.split.extra
    words = voice.words_of(tokenizer, language, taught)
    tower.train(art, words, tmp_path, 1)
    seeing = tower.train(art, words, tmp_path, 2)
    assert torch.load(tmp_path / "tower.pt", weights_only=True)["step"] == 2
    spelling.train(seeing, words, art, tmp_path, 1)
    before = seeing.linear_2.weight.clone()
    voice.train(seeing, language, voice.chat_of(tokenizer, taught), art, tmp_path, 1)
    assert not torch.equal(before, seeing.linear_2.weight)
    assert not [parameter for parameter in language.parameters() if parameter.requires_grad]


def test_the_exam_marks_both_ways(saved: Path, art: drawings.Drawings, tmp_path: Path) -> None:
    marks = exam.examine(saved, art, art.split.known, HELD_OUT_STYLES, n_images=4)
    assert marks.images == 4
    assert 0 <= marks.closed_set <= 1
    drawings.save_folders(art, art.split.known, tmp_path)
    assert len(list(tmp_path.glob("circle/*.png"))) == len(STYLES)
    assert json.loads((saved / "config.json").read_text())["image_seq_length"] == 16
