"""Whether a regular expression can keep Python's engine busy without end on some name.

The engine tries every way in which a pattern can match before it gives up. So a pattern is slow where the same text
can be matched in two ways again and again: a question about the automaton behind it, which is answered here without
trying any text. Source: Weber and Seidl, On the degree of ambiguity of finite automata, 1991.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from importlib import import_module
from typing import Any, NamedTuple

MAX_LOOPS_IN_A_ROW = 3
"""Loops that can share one text between them: time grows with the name's length to this power."""
MAX_POSITIONS = 1000
"""Characters, classes and copies of them in a pattern."""
MAX_LOOP_POSITIONS = 80
"""Those of them that are repeated."""
_COPIES = 20
"""`x{5}` is looked at as five copies, but for more than these; `x{5,7}` as five and any number more."""
_SAMPLES = frozenset("aZ5_/.- \n\0é")
"""Characters that stand for the many that a pattern does not name."""
_TEXTS = 64
"""Kinds of text for which loops in a row are counted."""

_parse: Callable[[str], Any] = import_module("re._parser").parse


def why_slow(pattern: str) -> str | None:
    """What is wrong with a pattern that `re` compiles, or None. It refuses some that are fast, and none that is slow
    for the reasons above.
    """
    try:
        automaton = _Automaton(pattern)
    except OverflowError:
        return f"is too long: more than {MAX_POSITIONS} characters and repetitions"
    loops = automaton.loops()
    if sum(map(len, loops)) > MAX_LOOP_POSITIONS:
        return f"repeats too much: more than {MAX_LOOP_POSITIONS} characters"
    if any(automaton.is_ambiguous(loop) for loop in loops):
        return (
            "could take for ever: a repeated group can match one text in several ways, as in (a+)+ or (a|a)*; let"
            " each round end with a character that nothing else in the group matches, as in ([^/]+/)*"
        )
    if automaton.loops_in_a_row(loops) > MAX_LOOPS_IN_A_ROW:
        return f"could take very long: more than {MAX_LOOPS_IN_A_ROW} repetitions like .* can match the same text"
    return None


class _Piece(NamedTuple):
    """A part of the pattern: in how many ways can it be empty, and which positions can it begin and end with?

    A position that stands there twice can be reached in two ways; more are not told apart.
    """

    empty: int
    first: tuple[int, ...] = ()
    last: tuple[int, ...] = ()


class _Automaton:
    """Glushkov's: a position for each character of the pattern, an edge for each way from one to the next."""

    def __init__(self, pattern: str) -> None:
        tree = _parse(pattern)
        self._any_case = re.search(r"\(\?[a-zA-Z]*i", pattern) is not None
        self._alphabet = self._folded(_SAMPLES | set(_characters(tree)))
        self._chars: list[frozenset[str]] = []
        self._next: list[Counter[int]] = []
        """Positions that may follow each, with the number of ways."""
        self._sequence(tree)

    def _folded(self, chars: Iterable[str]) -> frozenset[str]:
        both = ((char.lower(), char.upper()) if self._any_case else (char,) for char in chars)
        return frozenset(char for pair in both for char in pair)

    def _position(self, chars: Iterable[str]) -> _Piece:
        if len(self._chars) >= MAX_POSITIONS:
            raise OverflowError
        self._chars.append(self._folded(chars))
        self._next.append(Counter())
        here = (len(self._chars) - 1,)
        return _Piece(0, here, here)

    def _sequence(self, items: Iterable[tuple[Any, Any]]) -> _Piece:
        pieces = (self._item(str(operation), argument) for operation, argument in items)
        return reduce(self._joined, pieces, _Piece(1))

    def _joined(self, one: _Piece, other: _Piece) -> _Piece:
        self._link(one, other)
        first, last = one.first + other.first * one.empty, other.last + one.last * other.empty
        return _Piece(min(one.empty * other.empty, 2), _paired(first), _paired(last))

    def _link(self, one: _Piece, other: _Piece) -> None:
        for position in one.last:
            self._next[position].update(other.first)

    def _item(self, operation: str, argument: Any) -> _Piece:
        match operation:
            case "LITERAL" | "NOT_LITERAL" | "IN" | "ANY":
                return self._position(_matched(operation, argument, self._alphabet))
            case "GROUPREF":
                return self._position(self._alphabet)
            case "SUBPATTERN":
                return self._sequence(argument[3])
            case "BRANCH":
                return self._either(argument[1])
            case "GROUPREF_EXISTS":
                return self._either([branch or () for branch in argument[1:]])
            case "MAX_REPEAT" | "MIN_REPEAT":
                return self._repeated(*argument)
            case "ATOMIC_GROUP":
                return self._never_taken_back(argument)
            case "POSSESSIVE_REPEAT":
                return self._never_taken_back(argument[2])._replace(empty=int(argument[0] == 0))
            case "ASSERT" | "ASSERT_NOT":
                self._sequence(argument[1])  # its own loops count, though nothing leads there
        return _Piece(1)  # and ^, $, \b

    def _either(self, branches: Iterable[Any]) -> _Piece:
        pieces = [self._sequence(branch) for branch in branches]
        first = tuple(position for piece in pieces for position in piece.first)
        last = tuple(position for piece in pieces for position in piece.last)
        return _Piece(min(sum(piece.empty for piece in pieces), 2), _paired(first), _paired(last))

    def _repeated(self, least: int, most: int, inside: Any) -> _Piece:
        copies = [self._sequence(inside) for _ in range(min(least, _COPIES))]
        if least > 1 and copies[0].empty:  # which of the copies takes a character, and which is empty?
            self._link(copies[0], copies[0])
            self._link(copies[0], copies[0])
        if most > least:
            rest = self._sequence(inside)
            if most > least + 1:
                self._link(rest, rest)
            copies.append(rest._replace(empty=min(rest.empty + 1, 2)))
        return reduce(self._joined, copies, _Piece(1))

    def _never_taken_back(self, inside: Any) -> _Piece:
        """What has matched in one way is tried in no other: one position for all of it."""
        begin = len(self._chars)
        piece = self._sequence(inside)
        chars = frozenset[str]().union(*self._chars[begin:])
        return self._position(chars)._replace(empty=min(piece.empty, 1))

    def loops(self) -> list[set[int]]:
        """Positions that lead back to themselves, in groups that lead to each other, the first one first."""
        reach = [_closure(self._next, [position]) for position in range(len(self._chars))]
        loops: list[set[int]] = []
        for position, beyond in enumerate(reach):
            if position in beyond and not any(position in loop for loop in loops):
                loops.append({other for other in beyond if position in reach[other]})
        return loops

    def is_ambiguous(self, loop: set[int]) -> bool:
        """Does a text lead from some position of the loop back to it in two ways?"""
        if any(ways > 1 for at in loop for to, ways in self._next[at].items() if to in loop):
            return True
        together = {(position, position) for position in loop}
        met, to_do = set[tuple[int, int]](), list(together)
        before: dict[tuple[int, int], set[tuple[int, int]]] = defaultdict(set)
        while to_do:
            if (pair := to_do.pop()) not in met:
                met.add(pair)
                for following in self._both_ways(pair, loop):
                    before[following].add(pair)
                    to_do.append(following)
        # Two ways that part and come together again: from there on all is as it was.
        return any(a != b for a, b in _closure(before, together))

    def _both_ways(self, pair: tuple[int, int], loop: set[int]) -> Iterator[tuple[int, int]]:
        for a in loop & self._next[pair[0]].keys():
            for b in loop & self._next[pair[1]].keys():
                if self._chars[a] & self._chars[b]:
                    yield a, b

    def loops_in_a_row(self, loops: list[set[int]]) -> int:
        """Most loops, one behind the other, that one text can be shared between in any way."""
        kinds = {frozenset[str]().union(*(self._chars[at] for at in loop)) for loop in loops}
        for kind in list(kinds):
            kinds |= {kind & other for other in kinds if len(kinds) < _TEXTS}
        return max((self._chain(loops, text) for text in kinds if text), default=0)

    def _chain(self, loops: list[set[int]], text: frozenset[str]) -> int:
        lone = set(range(len(self._chars))).difference(*loops)
        units = sorted([*loops, *({position} for position in lone)], key=min, reverse=True)
        longest: dict[int, int] = {}
        for unit in units:  # from the back: but for loops every edge leads on
            usable = {at for at in unit if self._chars[at] & text}
            beyond = max((longest.get(to, 0) for at in usable for to in self._next[at]), default=0)
            counts = unit in loops and frozenset[str]().union(*(self._chars[at] for at in unit)) >= text
            longest |= dict.fromkeys(usable, beyond + counts)
        return max(longest.values(), default=0)


def _paired(positions: tuple[int, ...]) -> tuple[int, ...]:
    """Each position at most twice."""
    return tuple(at for at, ways in Counter(positions).items() for _ in range(min(ways, 2)))


def _closure(edges: Any, starts: Iterable[Any]) -> set[Any]:
    """All that can be reached from there by one edge or more."""
    seen, to_do = set[Any](), list(starts)
    while to_do:
        fresh = set(edges[to_do.pop()]) - seen
        seen |= fresh
        to_do += fresh
    return seen


def _characters(items: Any) -> Iterator[str]:
    """Every character that the pattern names, and both ends of its ranges."""
    for item in items:
        match item:
            case (operation, int(code)) if str(operation) in ("LITERAL", "NOT_LITERAL"):
                yield chr(code)
            case (operation, (int(low), int(high))) if str(operation) == "RANGE":
                yield from (chr(low), chr(high))
            case _ if hasattr(item, "__getitem__"):  # a part of the pattern, or what an operation works on
                yield from _characters(item)


def _matched(operation: str, argument: Any, alphabet: frozenset[str]) -> frozenset[str]:
    """The characters of the alphabet that one item of the pattern matches."""
    match operation:
        case "LITERAL":
            return frozenset(chr(argument))
        case "NOT_LITERAL":
            return alphabet - {chr(argument)}
        case "RANGE":
            return frozenset(char for char in alphabet if argument[0] <= ord(char) <= argument[1])
        case "CATEGORY":
            kind = str(argument).removeprefix("CATEGORY_")
            escape = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}[kind.removeprefix("NOT_")]
            found = frozenset(char for char in alphabet if re.match(escape, char))
            return alphabet - found if kind.startswith("NOT_") else found
        case "IN":
            negated = str(argument[0][0]) == "NEGATE"
            parts = (_matched(str(op), value, alphabet) for op, value in argument[negated:])
            found = frozenset[str]().union(*parts)
            return alphabet - found if negated else found
    return alphabet
