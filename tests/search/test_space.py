"""What a search tries: text, expressions, grids."""

import pytest

from streamseq.search.space import Range, Space, parse_choices


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("32", (32,)),
        ("32, 64 ,32", (32, 64)),
        ("n,128", (None, 128)),
        ("1e-3,0.5", (1e-3, 0.5)),
        ("lstm,gru", ("lstm", "gru")),
        ("true,False", (True, False)),
        ("16..256", Range(low=16, high=256)),
        ("0.1..0.9 linear", Range(low=0.1, high=0.9, log=False)),
    ],
)
def test_text_says_values_or_a_range(text, wanted):
    assert parse_choices(text) == wanted


@pytest.mark.parametrize("text", ["", "1,,2", "a..b", "5..2", "0..2"])
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match="got"):
        parse_choices(text)


def test_expressions_are_of_other_settings():
    space = Space.of({"k1": [16, 24, None], "k2": "2*k1,k1*1.5,64", "window": ["k1"], "cell": ["lstm"]})
    made = [space.resolve(each) for each in space.grid()]
    assert [(each["k1"], each["k2"], each["window"]) for each in made] == [
        (16, 32, 16),
        (16, 24, 16),
        (16, 64, 16),
        (24, 48, 24),
        (24, 36, 24),
        (24, 64, 24),
        (None, None, None),
        (None, 64, None),
    ]
    assert {each["cell"] for each in made} == {"lstm"}


def test_candidates_that_are_the_same_are_one():
    assert len(Space.of({"k1": [16, 32], "k2": ["2*k1", 32, 64]}).grid()) == 4


def test_what_is_computed_from_itself_is_refused():
    space = Space.of({"k1": ["2*k2"], "k2": ["2*k1"]})
    with pytest.raises(ValueError, match="computed from itself"):
        space.grid()
    with pytest.raises(ValueError, match="no number"):
        Space.of({"cell": ["lstm"], "k1": ["2*cell"]}).grid()


def test_values_are_plain_and_there_is_one():
    with pytest.raises(TypeError, match="plain values"):
        Space.of({"k1": [object()]})
    with pytest.raises(ValueError, match="at least one value"):
        Space.of({"k1": []})
    with pytest.raises(ValueError, match="a grid has values"):
        Space.of({"k1": Range(low=1, high=2)}).grid()
