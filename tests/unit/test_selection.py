"""Selection: checked where it is set, clamped where the input changes."""

import pytest
from traitlets import TraitError

from ess_widgets.widgets.selection import Extent, Selection


@pytest.fixture
def selection():
    selection = Selection()
    selection._fit(Extent(["first", "second"], {"first": 4, "second": 2}, 10), layer="first")
    return selection


def test_an_index_becomes_the_layers_name(selection):
    selection.layer = 1
    assert selection.layer == "second"
    selection.layer = -2
    assert selection.layer == "first"


def test_a_layer_with_fewer_heads_keeps_the_head_in_range(selection):
    selection.head = 3
    selection.layer = "second"
    assert selection.head == 1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("layer", "third", "first, second"),
        ("layer", 2, "2 layers"),
        ("head", 4, "has 4"),
        ("head", -1, "does not exist"),
        ("position", 10, "0 … 9"),
        ("position", -1, "0 … 9"),
        ("span", (3, 3), "start < stop"),
        ("span", (3, 11), "≤ 10"),
    ],
)
def test_what_does_not_exist_is_refused_and_nothing_is_lost(selection, field, value, message):
    before = selection.as_dict()
    with pytest.raises(TraitError, match=message):
        setattr(selection, field, value)
    assert selection.as_dict() == before


def test_a_shorter_input_moves_the_selection_into_it(selection):
    selection.update(position=9, span=(4, 10))
    selection._fit(Extent(["first"], {"first": 1}, 6), layer="first")
    assert selection.position == 5 and selection.span == (4, 6)
    selection._fit(Extent(["first"], {"first": 1}, 3), layer="first")
    assert selection.position == 2 and selection.span is None


def test_an_index_set_before_the_layers_are_known_is_resolved_later():
    selection = Selection(layer=1)
    selection._fit(Extent(["first", "second"], {"first": 4, "second": 2}, 10), layer="first")
    assert selection.layer == "second"


def test_unknown_fields_are_named():
    with pytest.raises(TypeError, match="no field 'row'"):
        Selection(row=1)
    with pytest.raises(TypeError, match="no field 'row'"):
        Selection().update(row=1)
    with pytest.raises(KeyError):
        Selection()["row"]
