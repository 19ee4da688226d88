"""Scenes in words: captions of a scene in English and Chinese, and reading one.

English captions are words between spaces.  Chinese ones are read by the longest word that fits, because nothing
stands between their words.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace

from ..errors import RequestError
from .scene import COLOURS, SHAPES, Layout, Scene, Thing, is_held_out, random_scene

#: Which prompts the pipeline was trained on, for people.
GRAMMAR = f"""\
[a picture of] THING [PLACE] [on grass|on sand] [at night|by day]
THING above|below|left of|right of THING, THING and THING, or THING, THING and THING (from left to right)
THING:  a [small|big] [striped] COLOUR SHAPE
COLOUR: {", ".join(COLOURS)}
SHAPE:  {", ".join(SHAPES)}
PLACE:  on the left, on the right, at the top, at the bottom, in the middle
中文：   夜晚，草地上，一个小的红色条纹圆形在一个蓝色方形上面
"""

_PLACES_EN = {
    "left": ("on the left",),
    "right": ("on the right",),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "middle": ("in the middle", ""),
}
_PLACES_ZH = {"left": "左边", "right": "右边", "top": "上方", "bottom": "下方", "middle": "中间"}

#: By layout: how the first thing stands to the second, and how the second to the first.
_RELATIONS_EN: dict[Layout, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "row": (("left of", "to the left of"), ("right of", "to the right of")),
    "column": (("above", "over"), ("below", "under")),
}
_RELATIONS_ZH: dict[Layout, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "row": (("左边", "左侧"), ("右边", "右侧")),
    "column": (("上面", "上方"), ("下面", "下方")),
}

_TIMES_EN = {"day": ("", "", "by day"), "night": ("at night",)}
_TIMES_ZH = {"day": ("", "", "白天"), "night": ("夜晚", "晚上")}
_GROUNDS_EN = {"": "", "grass": "on grass", "sand": "on sand"}
_GROUNDS_ZH = {"": "", "grass": "草地上", "sand": "沙地上"}

_COLOURS_ZH = dict(zip(COLOURS, ("红色", "橙色", "黄色", "绿色", "蓝色", "紫色", "白色"), strict=True))
_SHAPES_ZH = dict(zip(SHAPES, ("圆形", "方形", "三角形", "十字", "圆环"), strict=True))
_SIZES_ZH = {"small": "小的", "big": "大的"}

#: What a word means, as (kind, value); words that mean nothing are of the kind "".
_EN: dict[str, tuple[str, str]] = {
    **{word: ("colour", word) for word in COLOURS},
    **{word: ("shape", word) for word in SHAPES},
    "small": ("size", "small"),
    "big": ("size", "big"),
    "striped": ("striped", ""),
    "left": ("side", "left"),
    "right": ("side", "right"),
    "top": ("side", "top"),
    "bottom": ("side", "bottom"),
    "middle": ("side", "middle"),
    "above": ("relation", "above"),
    "over": ("relation", "above"),
    "below": ("relation", "below"),
    "under": ("relation", "below"),
    "of": ("of", ""),
    "and": ("and", ""),
    ",": ("and", ""),
    "night": ("time", "night"),
    "day": ("time", "day"),
    "grass": ("ground", "grass"),
    "sand": ("ground", "sand"),
    **dict.fromkeys(("a", "an", "the", "on", "in", "at", "to", "by", "is", "there", "picture", "."), ("", "")),
}
_ZH: dict[str, tuple[str, str]] = {
    **{word: ("colour", name) for name, word in _COLOURS_ZH.items()},
    **{word: ("shape", name) for name, word in _SHAPES_ZH.items()},
    **{word: ("size", name) for name, word in _SIZES_ZH.items()},
    "条纹": ("striped", ""),
    **{word: ("side", name) for name, word in _PLACES_ZH.items()},
    "左侧": ("side", "left"),
    "右侧": ("side", "right"),
    "上面": ("side", "top"),
    "下面": ("side", "bottom"),
    "和": ("and", ""),
    "、": ("and", ""),
    **{word: ("time", time) for time, words in _TIMES_ZH.items() for word in words if word},
    **{word: ("ground", name) for name, word in _GROUNDS_ZH.items() if word},
    **dict.fromkeys(("一个", "在", "的", "有", "，", "。", ",", "."), ("", "")),
}

#: Every word that a caption may have; Chinese ones, too.
WORDS = [*_EN, *_ZH]

_CHINESE = re.compile(r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]")
_LONGEST = max(map(len, _ZH))

_EXAMPLE = "a red circle above a blue square at night"


def captions(scene: Scene, rng: random.Random, language: str | None = None) -> str:
    """One of the captions of a scene; ``language`` is ``en`` or ``zh``, or either when None."""
    language = language or rng.choice(("en", "en", "zh"))
    return _english(scene, rng) if language == "en" else _chinese(scene, rng)


def held_out(count: int, seed: int = 0) -> list[tuple[Scene, str]]:
    """Scenes that were never trained on, each with a caption."""
    rng = random.Random(f"held-out {seed}")  # noqa: S311
    found: list[tuple[Scene, str]] = []
    while len(found) < count:
        scene = random_scene(rng)
        if is_held_out(scene):
            found.append((scene, captions(scene, rng)))
    return found


def unknown_words(text: str) -> list[str]:
    """Words of a prompt that no caption has, each once, in order."""
    found = dict.fromkeys(word for word, meaning in _words(text) if meaning is None)
    return list(found)


def read(text: str) -> Scene:
    """What a caption asks for.

    Raises:
        RequestError: when it has no words, unknown words, or does not follow the grammar.
    """
    words = _words(text)
    if not words:
        raise RequestError("the prompt is empty", hint=_EXAMPLE)
    if unknown := unknown_words(text):
        raise RequestError("unknown words in the prompt", saw=", ".join(unknown), expected="words of the grammar")
    is_chinese = bool(_CHINESE.search(text))
    return _Reading([meaning for _, meaning in words if meaning and meaning[0]], is_chinese).scene()


class _Reading:
    """The words of one caption, taken from left to right."""

    def __init__(self, words: list[tuple[str, str]], is_chinese: bool) -> None:
        self._words = words
        self._is_chinese = is_chinese
        self._things: list[Thing] = []
        self._relation = ""
        self._place = ""
        self._time = "day"
        self._ground = ""

    def scene(self) -> Scene:
        adjectives: dict[str, str] = {}
        for at, (kind, value) in enumerate(self._words):
            following = self._words[at + 1][0] if at + 1 < len(self._words) else ""
            if kind in ("colour", "size", "striped"):
                adjectives[kind] = value
            elif kind == "shape":
                self._things.append(_thing(adjectives, value))
                adjectives = {}
            elif kind == "time":
                self._time = value
            elif kind == "ground":
                self._ground = value
            elif kind == "relation" or (kind == "side" and following == "of"):
                self._relation = value
            elif kind == "side":
                self._place = value
        if adjectives:
            raise RequestError("the prompt does not say which shape", hint=_EXAMPLE)
        return self._placed()

    def _placed(self) -> Scene:
        if not self._things:
            raise RequestError("no things in the prompt", hint=_EXAMPLE)
        if len(self._things) > 3:
            raise RequestError("too many things", saw=f"{len(self._things)}", expected="one, two or three")
        things = tuple(self._things)
        rest = Scene(things, time=self._time, ground=self._ground)
        if len(things) == 1:
            if self._relation:
                raise RequestError("the prompt does not say of what", saw=self._relation, hint=_EXAMPLE)
            return replace(rest, place=self._place or "middle")
        relation = self._relation
        if self._is_chinese and self._place:
            # "A在B上面": the side follows both things.
            relation = {"top": "above", "bottom": "below"}.get(self._place, self._place)
        elif self._place:
            raise RequestError("only a thing alone has a place", saw=self._place, hint=_EXAMPLE)
        if len(things) == 3:
            if relation:
                raise RequestError("three things stand in a row, without a relation", saw=relation)
            return replace(rest, layout="row", place="")
        layout: Layout = "column" if relation in ("above", "below") else "row"
        if relation in ("below", "right"):
            rest = replace(rest, things=things[::-1])
        return replace(rest, layout=layout, place="")


def _thing(adjectives: dict[str, str], shape: str) -> Thing:
    if "colour" not in adjectives:
        raise RequestError(f"the prompt does not say which colour the {shape} has", hint=_EXAMPLE)
    return Thing(adjectives["colour"], shape, adjectives.get("size", ""), "striped" in adjectives)


def _words(text: str) -> list[tuple[str, tuple[str, str] | None]]:
    """Each word with its meaning, None for an unknown one."""
    text = text.strip().lower()
    if not _CHINESE.search(text):
        return [(word, _EN.get(word)) for word in re.findall(r"[^\s,.]+|[,.]", text)]
    found: list[tuple[str, tuple[str, str] | None]] = []
    at = 0
    unknown = ""
    while at < len(text):
        word = next((text[at : at + n] for n in range(_LONGEST, 0, -1) if text[at : at + n] in _ZH), None)
        if word is None:
            unknown += text[at]
            at += 1
            continue
        if unknown.strip():
            found.append((unknown.strip(), None))
        unknown = ""
        found.append((word, _ZH[word]))
        at += len(word)
    if unknown.strip():
        found.append((unknown.strip(), None))
    return found


# ---------------------------------------------------------------- saying


def _english(scene: Scene, rng: random.Random) -> str:
    things = [_thing_en(thing) for thing in scene.things]
    if len(things) == 1:
        what = f"{things[0]} {rng.choice(_PLACES_EN[scene.place])}"
    elif len(things) == 3:
        what = f"{things[0]}, {things[1]} and {things[2]}"
    else:
        forward, backward = _RELATIONS_EN[scene.layout]
        is_backward = rng.random() < 0.5
        relation = rng.choice(backward if is_backward else forward)
        if scene.layout == "row" and rng.random() < 0.2:
            is_backward, relation = False, "and"
        first, second = reversed(things) if is_backward else things
        what = f"{first} {relation} {second}"
    opening = rng.choice(("", "", "", "a picture of ", "there is "))
    time, ground = rng.choice(_TIMES_EN[scene.time]), _GROUNDS_EN[scene.ground]
    if time == "at night" and rng.random() < 0.2:
        text = f"at night, {opening}{what} {ground}"
    else:
        text = f"{opening}{what} {ground} {time}"
    return " ".join(text.split())


def _thing_en(thing: Thing) -> str:
    words = [thing.size, "striped" if thing.is_striped else "", thing.colour, thing.shape]
    said = " ".join(word for word in words if word)
    return f"{'an' if said[0] in 'aeiou' else 'a'} {said}"


def _chinese(scene: Scene, rng: random.Random) -> str:
    things = [_thing_zh(thing) for thing in scene.things]
    if len(things) == 1:
        place = _PLACES_ZH[scene.place]
        forms = [f"{things[0]}在{place}", f"{place}有{things[0]}"]
        if scene.place == "middle":
            forms.append(things[0])
        what = rng.choice(forms)
    elif len(things) == 3:
        what = f"{things[0]}、{things[1]}和{things[2]}"
    else:
        forward, backward = _RELATIONS_ZH[scene.layout]
        is_backward = rng.random() < 0.5
        first, second = reversed(things) if is_backward else things
        what = f"{first}在{second}{rng.choice(('', '的'))}{rng.choice(backward if is_backward else forward)}"
        if scene.layout == "row" and rng.random() < 0.2:
            what = f"{things[0]}和{things[1]}"
    time, ground = rng.choice(_TIMES_ZH[scene.time]), _GROUNDS_ZH[scene.ground]
    return "，".join(part for part in (time, ground, what) if part)


def _thing_zh(thing: Thing) -> str:
    size = _SIZES_ZH.get(thing.size, "")
    striped = "条纹" if thing.is_striped else ""
    return f"一个{size}{_COLOURS_ZH[thing.colour]}{striped}{_SHAPES_ZH[thing.shape]}"
