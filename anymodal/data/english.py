"""The little English that captions and answers need: articles, plurals, numbers."""

import re

NUMBERS = ("zero", "one", "two", "three", "four")

_IRREGULAR = {
    "mouse": "mice", "goose": "geese", "wolf": "wolves", "leaf": "leaves", "shelf": "shelves", "tooth": "teeth",
    "foot": "feet", "ox": "oxen", "man": "men", "woman": "women", "child": "children", "person": "people",
    "knife": "knives", "fish": "fish", "blowfish": "blowfish", "jellyfish": "jellyfish", "sheep": "sheep",
    "deer": "deer", "moose": "moose", "bison": "bison", "shrimp": "shrimp", "squid": "squid", "aircraft": "aircraft",
    "die": "dice", "scarf": "scarves", "elf": "elves",
}  # fmt: skip
_ES = ("s", "x", "z", "ch", "sh", "tomato", "potato", "mango", "hero", "volcano", "mosquito")
_SOUNDS_LIKE_YOU = ("uni", "eu", "ewe", "one", "us ", "ut", "ufo", "uk")
_SOUNDS_LIKE_VOWEL = ("hour", "x-ray", "heir", "sos", "ng ", "mx")
# Words that end in s and stand for one thing all the same.
_SINGULAR_S = ("ss", "us", "is", "tennis", "canvas", "gas", "lens", "om", "christmas", "rhinoceros")
_NO_ARTICLE = (
    "bread", "spaghetti", "sushi", "sake", "bacon", "popcorn", "butter", "garlic", "ginger root", "corn", "rice",
    "cooked rice", "curry rice", "salt", "ice", "shaved ice", "bubble tea", "mate", "money with wings", "dna", "yarn",
    "thread", "fog", "foggy", "coral", "cooking", "camping", "canned food", "oden", "dango", "fondue", "custard",
    "leafy green", "wood", "soap", "infinity", "passport control", "ice hockey", "field hockey", "badminton",
    "ping pong", "tennis", "bowling", "lacrosse", "horse racing", "falafel", "flatbread", "zzz", "construction",
    "people hugging", "santa claus", "mrs. claus", "mx claus", "performing arts", "rolling on the floor laughing",
    "mount fuji", "aries", "taurus", "gemini", "cancer", "leo", "virgo", "libra", "scorpio", "sagittarius", "capricorn",
    "aquarius", "pisces", "ophiuchus", "customs", "baggage claim", "left luggage", "no entry", "om", "star-struck",
    "running water", "potable water", "non-potable water", "eyes", "smoke",
)  # fmt: skip
_NO_ARTICLE_START = ("no ", "people ", "men ", "women ", "input ")
_THE = ("flag of ", "map of ", "kaaba", "statue of", "tokyo tower")


def is_plural(name: str) -> bool:
    """Say whether a name already speaks of several things or of a pair ("grapes", "glasses of milk")."""
    head = re.split(" (?:of|with|on|in|over|holding|lifting) ", name)[0].split()[-1]
    return head.endswith("s") and not head.endswith(_SINGULAR_S)


def with_article(name: str) -> str:
    """Put "a", "an", "the" or nothing before a lower-case name, as speech would.

    >>> [with_article(name) for name in ("apple", "unicorn", "hourglass", "grapes", "flag of norway")]
    ['an apple', 'a unicorn', 'an hourglass', 'grapes', 'the flag of norway']
    """
    if name.startswith(_THE):
        return f"the {name}"
    bare = name in _NO_ARTICLE or name.startswith(_NO_ARTICLE_START) or name.endswith(("o'clock", "-thirty"))
    if bare or is_plural(name):
        return name
    if name.startswith(_SOUNDS_LIKE_YOU):
        return f"a {name}"
    return f"an {name}" if name.startswith((*"aeiouå", *_SOUNDS_LIKE_VOWEL)) else f"a {name}"


def plural(name: str) -> str:
    """Return the plural of a lower-case name, whose head is its last word or stands before "of" or "with".

    >>> [plural(name) for name in ("red apple", "mouse", "cherry", "slice of pizza", "glasses", "day")]
    ['red apples', 'mice', 'cherries', 'slices of pizza', 'glasses', 'days']
    """
    for joint in (" of ", " with "):
        if joint in name:
            head, rest = name.split(joint, 1)
            return f"{plural(head)}{joint}{rest}"
    *before, head = name.split(" ")
    if is_plural(name):
        many = head
    elif head in _IRREGULAR:
        many = _IRREGULAR[head]
    elif head.endswith("y") and head[-2:-1] not in set("aeiou"):
        many = f"{head[:-1]}ies"
    else:
        many = f"{head}es" if head.endswith(_ES) else f"{head}s"
    return " ".join([*before, many])


def counted(name: str, number: int) -> str:
    """Return "an apple" for one and "three apples" for three; `number` is in [1, 4]."""
    return with_article(name) if number == 1 else f"{NUMBERS[number]} {plural(name)}"


def listed(phrases: list[str]) -> str:
    """Join phrases as speech does: "a, b and c"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
