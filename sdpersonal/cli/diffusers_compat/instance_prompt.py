"""Parse DreamBooth prompts such as "a photo of sks dog" to find their subject.

diffusers uses one prompt for all photos. Here the subject has its own token, in many different sentences.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...errors import UserError, printable
from ...prompts import Token, to_token_word

# All of these are for texts with single spaces between words: on runs of white space they would take far too long.
_ARTICLE = r"(?:(?:an?|the|my|one)\s)?"
_MEDIA = (
    "photo|photograph|photography|picture|pic|image|portrait|painting|drawing|illustration|render|rendering|sketch|"
    "snapshot|shot|headshot|close-?up|selfie|icon|artwork|art|poster|cartoon|logo|collage|photoshoot|figure|scan"
)
_STYLE = re.compile(rf"{_ARTICLE}(?P<medium>\S+(?:\s\S+){{0,3}}?)?\s?\bin\s(?:the\s)?style\sof\s{_ARTICLE}", re.I)
_IN_STYLE = re.compile(
    r"(?:in\s(?:an?\s|the\s)?)?(?<![^\s,])(?P<name>[^\s,]+)[\s_-]{1,3}(?:art[\s-]{0,3})?style\b", re.I
)
_BY = re.compile(r"\bby\s(?P<name>[^\s,]+)\s?$", re.I)
_OPENING = re.compile(rf"{_ARTICLE}(?:\S+\s){{0,3}}?(?:{_MEDIA})s?\s(?:of|showing)\s{_ARTICLE}", re.I)
# Words at which a subject ends and its surroundings begin.
_REST = re.compile(
    r"\s?[,;:.!]\s?|\s(?=(?:in|on|at|with|under|near|by|beside|behind|against|from|and|over|inside|outside|next|wearing|"
    r"holding|sitting|standing|lying|looking|walking|running|riding|that|which|who|smiling|laughing|posing|"
    r"playing|eating|drinking|sleeping|jumping|flying|driving|reading|as|is)\s)",
    re.I,
)
_PEOPLE = re.compile(
    r"(person|persons|people|humans?|(wo)?m[ae]n|boys?|girls?|1girl|1boy|guys?|lady|ladies|gentlem[ae]n|(fe)?male|face|"
    r"baby|child|children|kids?|actor|actress|homme|femme|mann|frau|hombre|mujer|persona|personne)",
    re.I,
)
_NAMED = re.compile(
    r",?\s(?:(?:(?:who|that|which)\s)?(?:is|was)\s)?(?:named|called|nicknamed|(?:known|identified|labell?ed)\sas|"
    r"a\.?k\.?a\.?|(?:by|with|of)\sthe\sname(?:\sof)?|(?:whose|(?:and\s)?(?:his|her|its|their))\sname\sis)\s",
    re.I,
)
# An identifier of the concept: a word in brackets, or one that no language has.
_HELD = r"(?:<[^<>]+>)+|\[[A-Za-z0-9*_-]+\]"
_RARE = re.compile(
    rf"(?:{_HELD}|tok|ohwx|olis|bnha|rinks|xyz|[b-df-hj-np-tv-xz]{{3,6}}|[^\W\d_]+\*|[^\W_]*[a-z][0-9][^\W_]*)", re.I
)
_NO_NAMES = re.compile(
    r"nsfw|hdr|dvd|jpg|png|gif|mr|mrs|dr|nft|html|vhs|lcd|cctv|pvc|1girl|1boy|[0-9]+[a-z]?|mp[34]|html5", re.I
)
_NO_NOUN = re.compile(rf"(?:an?|the|my|one|named|called|{_MEDIA}|{_RARE.pattern})s?", re.I)
_UNFILLED = re.compile(r"\{[^{}]*\}|\$\{?\w+|%s|\[(?:name|filewords)\]", re.I)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NOUNS = _words(
    """
    person people human man woman boy girl guy lady male female face baby child kid men women character figure figurine
    animal pet dog puppy corgi retriever cat kitten bear horse cow pig sheep bird duck parrot penguin fish fox wolf lion
    tiger rabbit mouse hamster dragon monster creature robot toy doll plush plushie teddy stuffed action lego car truck
    bike bicycle motorcycle bus train plane airplane boat ship spaceship house building castle church bridge city street
    room chair table sofa lamp bed desk bag backpack handbag purse shoe shoes sneaker boot hat cap shirt dress jacket
    coat suit glasses sunglasses watch ring necklace jewelry bottle can cup mug glass bowl plate vase pot teapot candle
    clock book phone camera laptop computer keyboard headphones guitar piano violin ball sculpture statue painting
    drawing illustration icon logo poster sticker tattoo flower tree plant leaf fruit apple food cake pizza burger
    sandwich bread mountain landscape forest beach sea river sky cloud sword gun helmet mask armor soldier knight
    anime hero object thing product item pattern texture fabric font style art soldier student teacher retriever poodle
    terrier bulldog shepherd husky wine water golden
    """
)
_NOT_NOUNS = _words("is as of was are has outdoors indoors outside inside alone solo here there closeup close-up")
_DESCRIBING = _words(
    """
    my your his her our their a an the this that some cute beautiful small big large little old young new red blue green
    black white yellow pink brown grey gray golden happy sad wooden plastic fluffy funny nice good best real realistic
    single male female handsome pretty dirty clean broken classic modern vintage
    """
)


@dataclass(frozen=True)
class Subject:
    """The subject of a prompt: its phrase ("sks dog"), the class noun ("dog"), the kind, and the rest of the prompt.

    name: the words that the token is made of, if they differ from the phrase.
    """

    phrase: str
    noun: str
    kind: str
    rest: str = ""
    name: str = ""

    @property
    def token(self) -> str:
        """Return the token, `<me/sks-dog>`. Raises UserError if the words leave no name."""
        return token_from_words((self.name or self.phrase).replace("/", " "), "--instance_prompt")


def parse_subject(instance_prompt: str, class_prompt: str | None = None, noun: str | None = None) -> Subject:
    """Find what the photos of a DreamBooth command show. noun: the class noun, if it is known already.

    Raises UserError if the prompt does not tell, or if it is ambiguous.
    """
    if unfilled := _UNFILLED.search(instance_prompt):
        raise UserError(
            f"--instance_prompt {printable(instance_prompt, 60)!r} holds {printable(unfilled[0], 30)}, not filled in.",
            "Write it like 'a photo of sks dog', or add --token '<me/my-dog>' --class dog.",
        )
    if noun is None and class_prompt is not None:
        noun = _split_phrase(class_prompt)[0] or None
    text = re.sub(r"\s(?=['\u2019]s\b)", "", " ".join(instance_prompt.split()))
    subject = _style(text, noun) or _named(text, noun) or _by_identifier(text, noun) or _by_order(text, noun)
    if subject is None or not subject.phrase or not _is_noun(subject.noun, subject.kind):
        raise UserError(
            f"--instance_prompt {printable(instance_prompt, 60)!r} does not say what kind of thing it is.",
            "Write it like 'a photo of sks dog', or add --token '<me/my-dog>' --class dog.",
        )
    return subject


def _style(text: str, noun: str | None) -> Subject | None:
    """Match "a painting in the style of sks", "zwx style", "a portrait by sks"."""
    if (opening := _STYLE.match(text + " ")) and not _holds_identifier(opening["medium"] or ""):
        phrase, around = _split_phrase(text)
        return Subject(phrase, noun or opening["medium"] or "style", "style", around)
    if (match := _IN_STYLE.search(text)) and _may_be_name(match["name"]):
        return Subject(match[0].strip(), noun or "style", "style", _rest(text, match), f"{match['name']} style")
    if (match := _BY.search(text)) and _is_identifier(match["name"]):
        return Subject(match["name"], noun or "style", "style", text[: match.start()].strip(" ,"))
    return None


def _named(text: str, noun: str | None) -> Subject | None:
    """Match "a photo of a man named sks"."""
    match = _NAMED.search(text)
    if not match:
        return None
    before, (name, around) = _noun_before(text[: match.start()]), _cut(text[match.end() :])
    words = name.split()
    if not before or not words or len(words) > 3:
        return None
    noun = noun or before
    return Subject(f"{before}{match[0]}{name}", noun, _kind(noun), around, f"{name} {noun}")


def _by_identifier(text: str, noun: str | None) -> Subject | None:
    """Read the words around the one identifier of the subject, wherever it is."""
    spaced = re.sub(rf"(?<!>)({_HELD})(?=[^\s,.<'])", r"\1 ", text)
    words = [word for word in re.split(r"[\s,;:.!]+", spaced) if _is_identifier(_bare(word))]
    if len({_bare(word).lower() for word in words}) > 1:
        raise UserError(
            f"--instance_prompt {printable(text, 60)!r} names more than one: "
            f"{printable(', '.join(map(_bare, words[:4])), 60)}.",
            "Train them one after the other, or give --token '<me/my-dog>' --class dog.",
        )
    if not words:
        return None
    at = spaced.index(words[0])
    name, start, end = _bare(words[0]), spaced[:at], spaced[at + len(words[0]) :]
    after, around = _cut(end.strip(" ")) if re.match(r"\s+[^,;:.!\s]", end) else ("", end.strip(" ,.;:"))
    after = re.sub(r"^(?:the|an?)\s+", "", after, flags=re.I) if _may_be_noun(after) else ""
    if after:
        return Subject(f"{words[0]} {after}", noun or after, _kind(noun or after), around, f"{name} {after}")
    before = _noun_before(start)
    if before:
        phrase = spaced[spaced.rindex(before, 0, at) : at + len(words[0])]
        return Subject(phrase, noun or before, _kind(noun or before), _after(end), f"{name} {noun or before}")
    follows = re.sub(r"^(?:the|an?)\s+", "", _cut(end.strip(" ,;:."))[0], flags=re.I)
    if noun is None and re.match(r"\s*,", end) and follows.lower() in _NOUNS:
        return Subject(
            f"{words[0]}{end[: end.index(follows)]}{follows}", follows, _kind(follows), "", f"{name} {follows}"
        )
    return Subject(name, noun, _kind(noun), _after(end)) if noun else None


def _by_order(text: str, noun: str | None) -> Subject | None:
    """Match "a photo of rex dog", where the identifier is a known word: the noun beside it shows which it is."""
    phrase, around = _split_phrase(text)
    words = phrase.split()
    known = [word.lower().strip("'") in _NOUNS for word in words]
    if noun is not None:
        return Subject(phrase, noun, _kind(noun), around) if words else None
    if len(words) < 2 or len(words) > 5:
        return None
    if not known[0] and known[-1] and words[0].lower() not in _DESCRIBING:
        rest = " ".join(words[_first_of_noun(words) :])
        return Subject(phrase, rest, _kind(rest), around)
    if all(known[:-1]) and not known[-1] and words[-1].lower() not in _DESCRIBING:
        rest = " ".join(words[:-1])
        return Subject(phrase, rest, _kind(rest), around, f"{words[-1]} {rest}")
    return None


def _first_of_noun(words: list[str]) -> int:
    """Return where the known words at the end begin: 2 in "emma watson woman", 1 in "rex golden retriever"."""
    first = len(words) - 1
    while first > 1 and words[first - 1].lower().strip("'") in _NOUNS | _DESCRIBING:
        first -= 1
    return first


def _may_be_noun(after: str) -> bool:
    """Return whether words behind an identifier can be its class: no place ("in the snow"), no verb ("jogging")."""
    first = after.lower().split(" ", 1)[0]
    if _REST.match(f" {after} ") or first in _NOT_NOUNS:
        return False
    return not first.endswith("ing") or first in _NOUNS or len(first) < 5


def _is_noun(noun: str | None, kind: str) -> bool:
    """Return whether the noun can be the class: "photo" is no subject of photos, but a style may be of paintings."""
    if not noun or not _NO_NOUN.fullmatch(noun):
        return bool(noun)
    return kind == "style" and bool(re.fullmatch(_MEDIA, noun, re.I))


def _kind(noun: str | None) -> str:
    return "person" if noun and _PEOPLE.fullmatch(noun.split()[-1].strip("'")) else "object"


def _is_identifier(word: str) -> bool:
    """Return whether people use the word as an identifier."""
    return bool(_RARE.fullmatch(word)) and not _NO_NAMES.fullmatch(word)


def _holds_identifier(text: str) -> bool:
    return any(_is_identifier(_bare(word)) for word in text.split())


def _may_be_name(word: str) -> bool:
    return _is_identifier(word) or word.lower() not in _DESCRIBING | _NOUNS | {"of", "in", "with", "and"}


def _bare(word: str) -> str:
    """Remove a possessive ending and quotation marks."""
    return re.sub(r"['\u2019]s$", "", word.strip("\"\u201c\u201d'()"))


def _noun_before(text: str) -> str:
    """Return the class noun at the end of "a photo of a golden retriever", "" if there is none."""
    rest = text.rstrip(" ,;:\"'(\u201c")
    opening = _OPENING.match(rest + " ")
    rest = rest[opening.end() :] if opening else re.sub(rf"^{_ARTICLE}", "", rest, flags=re.I)
    # In any language an article or a preposition precedes it.
    rest = re.split(
        r"(?:\b(?:an?|the|of|de|du|des|une?|d'une?|von|einem|einer|eines|di|del|da|um|uma|una)\s+|,\s*)", rest
    )[-1]
    words = rest.split()
    if (
        not words
        or len(words) > 3
        or re.fullmatch(rf"(?:{_MEDIA}|masterpiece|quality|of|named|called)s?", words[-1], re.I)
    ):
        return ""
    return rest.strip()


def _rest(text: str, match: re.Match[str]) -> str:
    return text[match.end() :].strip(" ,.;:")


def _after(text: str) -> str:
    return text.strip(" ,.;:\"'")


def _cut(text: str) -> tuple[str, str]:
    """Split the words before the surroundings from the surroundings."""
    padded = text + " "
    cut = _REST.search(padded)
    return (padded[: cut.start()] if cut else padded).strip(" .,;:\"'"), padded[cut.end() :].strip(" .,") if cut else ""


def token_from_words(words: str, flag: str) -> str:
    """Make a token: `<me/sks-dog>` of "sks dog", `<me/cat-toy>` of "<cat-toy>"; a token with an owner stays.

    Raises UserError if no letters or digits are left for a name.
    """
    inner = words.strip().strip("<>[]")
    if re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", inner):
        return str(Token.parse(inner))
    name = to_token_word(inner, max_length=None)
    if not name or not inner.isascii() or not inner.isprintable():
        raise UserError(
            f"{flag} {printable(words, 60)!r} makes no token.", "Add --token '<me/my-cat>' (a-z, 0-9 and -)."
        )
    return str(Token.parse(f"<me/{name}>"))


def _split_phrase(prompt: str) -> tuple[str, str]:
    """Split "a photo of a sks dog in a bucket" into ("sks dog", "in a bucket")."""
    text = _normalize(prompt)
    opening = _STYLE.match(text) or _OPENING.match(text) or re.match(_ARTICLE, text, re.I)
    rest = text[opening.end() :] if opening else text
    cut = _REST.search(rest)
    phrase = rest[: cut.start()] if cut else rest
    return phrase.strip(" .,;:\"'"), rest[cut.end() :].strip(" .,") if cut else ""


def _normalize(prompt: str) -> str:
    return " ".join(prompt.split()) + " "  # so that an opening ends in a space even where nothing follows
