import re

import pytest

from workbench.pattern import allocate, parse, period

HYBRIDS = {  # (layers, attention, mlp): the string of Waleffe et al.'s allocation
    (56, 0.08, 0.5): "M-M-M--M-M*-M-M-M-M--M*-M-M-M-M-M*--M-M-M-M-M*-M--M-M-M-",
    (48, 0.08, 0.5): "M-M-M--M-*M-M-M-M--*M-M-M-M-*M--M-M-M-*M-M--M-M-",
    (24, 0.08, 0.5): "M-M-M--*M-M-M-M-*M--M-M-",
    (16, 0.08, 0.5): "M-M-M-M-*-M-M-M-",
    (14, 0.08, 0.5): "M-M-M--*M-M-M-",
    (12, 0.08, 0.5): "M-M-M-*-M-M-",
    (8, 0.08, 0.5): "M-M-*-M-",
    (56, 0.08, 0.0): "MMMMMMMMMM*MMMMMMMMMMM*MMMMMMMMMM*MMMMMMMMMMM*MMMMMMMMMM",
    (10, 0.3, 0.3): "M-*MM*-*M-",
    (48, 0.25, 0.25): "MM-*MM-*MM*-MM*-MM*-MM*-M*M-M*M-M*M-M*M-*MM-*MM-",
    (48, 0.5, 0.5): "-*-*-*-*-*-*-*-*-*-*-*-**-*-*-*-*-*-*-*-*-*-*-*-",
}


@pytest.mark.parametrize("shares", HYBRIDS, ids=str)
def test_allocation_gives_the_published_strings(shares):
    assert allocate(*shares) == HYBRIDS[shares]


def test_allocation_keeps_the_shares_at_every_depth():
    for layers in range(1, 60):
        for tenths in range(11):
            for rest in range(11 - tenths):
                attention, mlp = round(layers * (tenths / 10)), round(layers * (rest / 10))
                if attention + mlp <= layers:
                    text = allocate(layers, tenths / 10, rest / 10, mamba="S")
                    assert (len(text), text.count("*"), text.count("-")) == (layers, attention, mlp)
                    assert set(text) <= set("S*-")


@pytest.mark.parametrize("shares", [(10, 0.6, 0.6), (0, 0.1, 0.1), (10, -0.1, 0), (10, 0, 1.1)], ids=str)
def test_impossible_shares_are_refused(shares):
    with pytest.raises(ValueError, match="share"):
        allocate(*shares)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("M", "M"),
        ("M-S*", "M-S*"),
        ("(*-)x4", "*-*-*-*-"),
        ("M(*-)x2S", "M*-*-S"),
        ("((M-)x2*)x3", "M-M-*M-M-*M-M-*"),
        ("(M)x12", "MMMMMMMMMMMM"),
        ("(M)x1(-)x2", "M--"),
    ],
)
def test_repetition_is_written_out(text, layers):
    assert parse(text) == layers


@pytest.mark.parametrize(
    ("text", "position", "says"),
    [
        ("M-Q*", 2, "use one of M S * -"),
        ("m-", 0, "use one of M S * -"),
        ("M -", 1, "use one of M S * -"),
        ("M-E", 2, "reserved for mixture of experts"),
        ("x4", 0, "use one of"),
        ("M4", 1, "use one of"),
        ("M)x2", 1, "closes nothing"),
        ("M(-", 1, "never closed"),
        ("((M)x2", 0, "never closed"),
        ("M()x2", 1, "nothing inside"),
        ("(M)", 2, "needs a count"),
        ("(M)x", 2, "needs a count"),
        ("(M)4", 2, "needs a count"),
        ("(M)x0", 3, "at least 1"),
        ("(M)x99999", 0, "more than 10,000 layers"),
        ("((M)x9999)x9999", 0, "more than 10,000 layers"),
    ],
)
def test_an_error_points_at_its_symbol(text, position, says):
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        parse(text)
    first, shown, caret = str(error.value).split("\n")
    assert f'pattern "{text}" has "{text[position]}" at position {position}' in first
    assert shown[caret.index("^")] == text[position]
    assert caret.index("^") - 2 == position


@pytest.mark.parametrize("text", ["", "()x2"])
def test_a_pattern_without_layers_is_refused(text):
    with pytest.raises(ValueError, match=r"no layers|nothing inside"):
        parse(text)


def test_a_bound_letter_is_a_symbol_and_E_is_one_when_bound():
    assert parse("(WM)x2E", {"M": None, "W": None, "E": None}) == "WMWME"
    with pytest.raises(ValueError, match="use one of M W"):
        parse("W-", {"M": None, "W": None})


@pytest.mark.parametrize("symbol", ["(", ")", "x", "3", "MM", "", " "])
def test_letters_of_the_repetition_cannot_be_bound(symbol):
    with pytest.raises(ValueError, match="cannot be a symbol"):
        parse("M", ["M", symbol])


@pytest.mark.parametrize(
    ("text", "length"),
    [("M", 1), ("MMMM", 1), ("*-*-", 2), ("*-*", 3), ("M-M*", 4), ("M-M*M-M*", 4), (HYBRIDS[56, 0.08, 0.5], 56)],
)
def test_period_is_the_shortest_unit_repeated(text, length):
    assert period(text) == length
    assert text[:length] * (len(text) // length) == text
