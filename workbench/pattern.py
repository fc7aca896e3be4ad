"""The layer string: one symbol, one layer. Needs only the standard library."""

from collections.abc import Collection
from typing import NoReturn

SYMBOLS = ("M", "S", "*", "-")  # Mamba-2, Mamba, attention, MLP
MOST_LAYERS = 10_000


def parse(text: str, symbols: Collection[str] = SYMBOLS) -> str:
    """The pattern written out, one symbol a layer: `M(*-)x2` is `M*-*-`. Repetitions may be nested.

    `symbols` are the letters that are bound, a user's own among them; brackets, digits and x are for repetition.
    Raises ValueError pointing at the first character that cannot stand, counted from 0.
    """
    for symbol in symbols:
        if len(symbol) != 1 or symbol in "()x" or symbol.isdigit() or symbol.isspace():
            raise ValueError(f"{symbol!r} cannot be a symbol: one character, and not a bracket, digit, x or space")
    groups, opened, at = [""], [], 0
    while at < len(text):
        symbol = text[at]
        if symbol == "(":
            groups.append("")
            opened.append(at)
            at += 1
        elif symbol == ")":
            if not opened:
                _refuse(text, at, "which closes nothing; take it out, or open with ( before it")
            group, start = groups.pop(), opened.pop()
            if not group:
                _refuse(text, start, "with nothing inside; put symbols between ( and )")
            times, at = _times(text, at + 1)
            if len(groups[-1]) + len(group) * times > MOST_LAYERS:
                _refuse(text, start, f"which makes more than {MOST_LAYERS:,} layers; repeat fewer times")
            groups[-1] += group * times
        elif symbol in symbols:
            groups[-1] += symbol
            at += 1
        else:
            reserved = symbol == "E"
            remedy = "bind it in symbols, or use" if reserved else "use"
            why = "which is reserved for mixture of experts and not bound; " if reserved else ""
            _refuse(text, at, f"{why}{remedy} one of {' '.join(symbols)}", comma=reserved)
    if opened:
        _refuse(text, opened[-1], "which is never closed; close it with a count, such as )x2")
    if not groups[0]:
        raise ValueError(f"pattern {text!r} has no layers; write one symbol a layer, such as M-M-*-M-")
    return groups[0]


def _times(text: str, at: int) -> tuple[int, int]:
    """The count of `x4` that must stand at `at`, and where the text goes on."""
    end = at + 1
    while end < len(text) and text[end] in "0123456789":
        end += 1
    if text[at : at + 1] != "x" or end == at + 1:
        _refuse(text, at - 1, "which needs a count after it, such as )x2")
    times = int(text[at + 1 : end])
    if times < 1:
        _refuse(text, at, f"which repeats {times} times; the count is at least 1")
    return times, end


def _refuse(text: str, at: int, why: str, comma: bool = True) -> NoReturn:
    said = f'pattern "{text}" has "{text[at]}" at position {at}{"," if comma else ";"} {why}'
    raise ValueError(f"{said}\n  {text}\n  {' ' * at}^")


def allocate(layers: int, attention: float, mlp: float, mamba: str = "M") -> str:
    """A hybrid's pattern: shares of attention and MLP spread evenly, attention first, among Mamba layers.

    Shares are fractions of `layers`, rounded to whole layers (halves to even).
    Raises ValueError if the shares leave no room.
    Source: the allocation of Waleffe et al. 2024, arXiv:2406.07887.
    """
    if layers < 1 or not 0 <= attention <= 1 or not 0 <= mlp <= 1:
        raise ValueError(
            f"allocate needs layers of at least 1 and shares between 0 and 1; got {layers}, {attention}, {mlp}"
        )
    attentions, mlps = round(layers * attention), round(layers * mlp)
    left = layers - attentions - mlps
    if left < 0:
        raise ValueError(
            f"{attentions} attention and {mlps} MLP layers do not fit into {layers}; shares may sum to at most 1"
        )
    symbols = [mamba] * layers
    _spread(symbols, mamba, "*", (layers - attentions) / (attentions + 1))
    if mlps:
        _spread(symbols, mamba, "-", left / mlps)
    return "".join(symbols)


def _spread(symbols: list[str], free: str, symbol: str, section: float) -> None:
    """Turn a free layer into `symbol` after every `section` free ones, in place."""
    after = section
    for i, present in enumerate(symbols):
        if present != free:
            continue
        if after < 0.5:
            symbols[i] = symbol
            after += section
        else:
            after -= 1


def period(text: str) -> int:
    """Length of the shortest unit that the written-out pattern repeats; its own length if it repeats none."""
    return (text + text).index(text, 1)
