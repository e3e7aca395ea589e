"""What a mesh is called, and which meshes a model allows."""

from pathlib import Path

import pytest

from loreloop.formats.configuration import read_spec
from loreloop.parallel.mesh import Mesh, check_mesh, parse_mesh
from loreloop.protocol.errors import BadRequest
from tests.tiny import make_tiny_model


def test_a_mesh_is_read() -> None:
    assert parse_mesh("tp=2") == Mesh(2)
    assert str(parse_mesh(" tp=2 ")) == "tp=2"
    assert parse_mesh("sp=2") == Mesh(2, cuts_rows=True)
    assert str(parse_mesh("sp=2")) == "sp=2"
    assert parse_mesh("sp=1") == Mesh()


def test_axes_are_taken_together() -> None:
    assert parse_mesh("tp=2, pp=3") == Mesh(tp=2, pp=3)
    assert str(parse_mesh("tp=2,pp=3")) == "pp=3,tp=2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no axis"),
        ("tp", "has '' ranks"),
        ("tp=0", "has '0' ranks"),
        ("tp=-1", "has '-1' ranks"),
        ("tp=²", "has '²' ranks"),
        ("tp=99999999999999", "has '99999999999999' ranks"),
        ("tp=2,tp=2", "named twice"),
        ("tp=2,sp=2", "named twice"),
        ("xp=2", "'xp=2' is no axis"),
    ],
)
def test_what_is_no_mesh_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        parse_mesh(text)


def test_a_mesh_that_does_not_divide_is_refused_with_the_nearest(tmp_path: Path) -> None:
    spec = read_spec(make_tiny_model(tmp_path / "model"))
    check_mesh(spec, Mesh(2))
    with pytest.raises(BadRequest, match=r"tp=3 does not divide .*4 heads over 3 ranks.*nearest is tp=2"):
        check_mesh(spec, Mesh(3))


def test_heads_of_keys_are_cut_or_copied_and_nothing_between(tmp_path: Path) -> None:
    sizes = {"num_attention_heads": 12, "hidden_size": 96, "intermediate_size": 96, "num_key_value_heads": 6}
    spec = read_spec(make_tiny_model(tmp_path / "model", **sizes))
    check_mesh(spec, Mesh(3))
    check_mesh(spec, Mesh(12))
    with pytest.raises(BadRequest, match=r"6 heads of keys over 4 ranks.* nearest is tp=3"):
        check_mesh(spec, Mesh(4))


def test_fewer_layers_than_stages_are_refused(tmp_path: Path) -> None:
    spec = read_spec(make_tiny_model(tmp_path / "model", num_hidden_layers=3))
    check_mesh(spec, Mesh(pp=3))
    with pytest.raises(BadRequest, match=r"pp=4,tp=2 does not divide .*3 layers over 4 stages.*nearest is pp=3,tp=2"):
        check_mesh(spec, Mesh(pp=4, tp=2))


def test_experts_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    spec = read_spec(make_tiny_model(tmp_path / "model", "qwen3_moe"))
    check_mesh(spec, Mesh(tp=2, ep=3))
    with pytest.raises(BadRequest, match=r"ep=4 does not divide .*6 routed experts over 4 ranks. The nearest is ep=3"):
        check_mesh(spec, Mesh(ep=4))


def test_a_dense_model_has_no_experts_to_share(tmp_path: Path) -> None:
    spec = read_spec(make_tiny_model(tmp_path / "model"))
    with pytest.raises(BadRequest, match=r"no routed experts, which 2 ranks could share. The nearest is tp=2"):
        check_mesh(spec, Mesh(tp=2, ep=2))
