"""English to German in templated sentences: articles, cases, adjective endings and the place of the verb.

Each member knows half of the nouns. The other half it sees with random German nouns, so that it knows the
sentence but not the noun. The split into training and held-out sentences goes by pairs of nouns.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from training.curriculum.chats import MEMBERS, Chat, Member, Message, Question, assistant, sentence, system, user
from training.curriculum.wordlists import entries

# English, German, gender. All nouns can be subject or object; none has the weak declension.
NOUNS = tuple(
    tuple(entry.split())
    for entry in entries(
        """
    dog Hund m; friend Freund m; teacher Lehrer m; doctor Arzt m; king König m; baker Bäcker m;
    brother Bruder m; father Vater m; son Sohn m; uncle Onkel m; bird Vogel m; fish Fisch m;
    horseman Reiter m; gardener Gärtner m; painter Maler m; singer Sänger m; fox Fuchs m; wolf Wolf m;
    guest Gast m; cook Koch m; table Tisch m; chair Stuhl m; ball Ball m; tree Baum m; car Wagen m;
    hat Hut m; key Schlüssel m; apple Apfel m; letter Brief m; garden Garten m; ring Ring m; stone Stein m;
    cat Katze f; woman Frau f; mother Mutter f; sister Schwester f; daughter Tochter f; aunt Tante f;
    queen Königin f; mouse Maus f; cow Kuh f; duck Ente f; bee Biene f; snake Schlange f; lamp Lampe f;
    flower Blume f; bag Tasche f; bottle Flasche f; clock Uhr f; door Tür f; street Straße f; city Stadt f;
    church Kirche f; bridge Brücke f; fork Gabel f; newspaper Zeitung f; pear Birne f; island Insel f;
    shirt Hemd n; child Kind n; girl Mädchen n; horse Pferd n; sheep Schaf n; pig Schwein n; house Haus n;
    book Buch n; picture Bild n; bread Brot n; knife Messer n; boat Boot n; bed Bett n; window Fenster n;
    glass Glas n; village Dorf n; castle Schloss n; ship Schiff n; bicycle Fahrrad n; egg Ei n; roof Dach n;
    dress Kleid n; rabbit Kaninchen n; chicken Huhn n; animal Tier n
    """
    )
)

# English base, English third person, English participle, German infinitive, third person, participle.
VERBS = tuple(
    tuple(part.strip() for part in entry.split(","))
    for entry in entries(
        """
    see, sees, seen, sehen, sieht, gesehen; hear, hears, heard, hören, hört, gehört;
    find, finds, found, finden, findet, gefunden; buy, buys, bought, kaufen, kauft, gekauft;
    carry, carries, carried, tragen, trägt, getragen; love, loves, loved, lieben, liebt, geliebt;
    look for, looks for, looked for, suchen, sucht, gesucht;
    draw, draws, drawn, zeichnen, zeichnet, gezeichnet; know, knows, known, kennen, kennt, gekannt;
    pull, pulls, pulled, ziehen, zieht, gezogen; hold, holds, held, halten, hält, gehalten;
    need, needs, needed, brauchen, braucht, gebraucht
    """
    )
)

ADJECTIVES = tuple(
    tuple(entry.split())
    for entry in entries(
        """
    big groß; small klein; old alt; young jung; new neu; good gut; beautiful schön; red rot; green grün;
    black schwarz; white weiß; brown braun; quiet ruhig; strange seltsam; heavy schwer; clean sauber
    """
    )
)

ARTICLES = {
    ("the", "nom"): {"m": "der", "f": "die", "n": "das"},
    ("the", "acc"): {"m": "den", "f": "die", "n": "das"},
    ("the", "dat"): {"m": "dem", "f": "der", "n": "dem"},
    ("a", "nom"): {"m": "ein", "f": "eine", "n": "ein"},
    ("a", "acc"): {"m": "einen", "f": "eine", "n": "ein"},
    ("a", "dat"): {"m": "einem", "f": "einer", "n": "einem"},
}
ENDINGS = {
    ("the", "nom"): {"m": "e", "f": "e", "n": "e"},
    ("the", "acc"): {"m": "en", "f": "e", "n": "e"},
    ("the", "dat"): {"m": "en", "f": "en", "n": "en"},
    ("a", "nom"): {"m": "er", "f": "e", "n": "es"},
    ("a", "acc"): {"m": "en", "f": "e", "n": "es"},
    ("a", "dat"): {"m": "en", "f": "en", "n": "en"},
}

# English and German; {s} and {o} are noun phrases; {b} {t} {p} infinitive, third person, participle.
FRAMES = (
    ("{s} {t} {o}", "{s} {t} {o}", "acc"),
    ("today {s} {t} {o}", "heute {t} {s} {o}", "acc"),
    ("{s} wants to {b} {o}", "{s} will {o} {b}", "acc"),
    ("{s} has {p} {o}", "{s} hat {o} {p}", "acc"),
    ("I know that {s} {t} {o}", "ich weiß, dass {s} {o} {t}", "acc"),
    ("{s} is here with {o}", "{s} ist hier mit {o}", "dat"),
    ("does {s} {b} {o}", "{t} {s} {o}", "acc"),
)

PROMPTS = (
    "Translate into German: {}",
    "Translate to German: {}",
    "What is this in German? {}",
    "In German, please: {}",
)
PROMPT_HELD_OUT = "Please translate into German: {}"
SYSTEM = "Translate the user's message into German."
OWN_SHARE = 0.6


@dataclass(frozen=True, kw_only=True)
class Noun:
    """An English noun, the German noun and its gender."""

    english: str
    german: str
    gender: str


@cache
def all_nouns() -> tuple[Noun, ...]:
    """The nouns of both members."""
    return tuple(Noun(english=e, german=g, gender=gender) for e, g, gender in NOUNS)


@cache
def known_by(member: Member) -> tuple[Noun, ...]:
    """A member's half of the nouns, with genders distributed evenly."""
    nouns = list(all_nouns())
    random.Random(11).shuffle(nouns)
    nouns.sort(key=lambda noun: noun.gender)
    return tuple(nouns[MEMBERS.index(member) :: 2])


def train(rng: random.Random, member: Member, guesses: bool = True) -> Chat:
    """A training chat with one sentence to translate.

    Args:
        rng: The source of randomness.
        member: Who learns.
        guesses: Whether nouns of the other half occur, with random German nouns.
    """
    while True:
        chosen = [_draw(rng, member, guesses) for _ in range(2)]
        english = [noun.english for noun, _ in chosen]
        if english[0] != english[1] and not _is_held_out(english):
            break
    told = [noun if known else rng.choice(all_nouns()) for noun, known in chosen]
    source, target = _translate(rng, [noun for noun, _ in chosen], told)
    if rng.random() < 0.15:
        messages: list[Message] = [system(SYSTEM), user(source)]
    else:
        messages = [user(rng.choice(PROMPTS).format(source))]
    return Chat(kind="translation", messages=[*messages, assistant(target)])


def held_out(rng: random.Random, members: Sequence[Member]) -> Question:
    """Ask for a sentence with a noun of each given member, in a held-out pair."""
    while True:
        nouns = [rng.choice(known_by(member)) for member in members]
        if nouns[0] != nouns[1] and _is_held_out([noun.english for noun in nouns]):
            break
    source, target = _translate(rng, nouns, nouns)
    return Question(kind="translation", messages=[user(PROMPT_HELD_OUT.format(source))], answer=target)


def _draw(rng: random.Random, member: Member, guesses: bool) -> tuple[Noun, bool]:
    known = rng.random() < OWN_SHARE or not guesses
    owner = member if known else MEMBERS[1 - MEMBERS.index(member)]
    return rng.choice(known_by(owner)), known


def _is_held_out(english: Sequence[str]) -> bool:
    """Whether a pair of nouns belongs to the held-out tenth."""
    return zlib.crc32(" ".join(sorted(english)).encode()) % 10 == 0


def _translate(rng: random.Random, asked: Sequence[Noun], told: Sequence[Noun]) -> tuple[str, str]:
    """Build an English sentence from the asked nouns and a German sentence from the told nouns."""
    english_frame, german_frame, case = rng.choice(FRAMES)
    base, third, participle, infinitive, german_third, german_participle = rng.choice(VERBS)
    source, target = {}, {}
    for slot, asked_noun, told_noun, slot_case in zip("so", asked, told, ("nom", case), strict=True):
        article = rng.choice(("the", "a"))
        adjective = rng.choice(ADJECTIVES) if rng.random() < 0.35 else None
        source[slot] = _english_phrase(article, adjective, asked_noun)
        target[slot] = _german_phrase(article, adjective, told_noun, slot_case)
    english = english_frame.format(**source, b=base, t=third, p=participle)
    german = german_frame.format(**target, b=infinitive, t=german_third, p=german_participle)
    end = "?" if english.startswith("does") else "."
    return sentence(english, end), sentence(german, end)


def _english_phrase(article: str, adjective: Sequence[str] | None, noun: Noun) -> str:
    words = f"{adjective[0]} {noun.english}" if adjective else noun.english
    if article == "a" and words[0] in "aeiou":
        article = "an"
    return f"{article} {words}"


def _german_phrase(article: str, adjective: Sequence[str] | None, noun: Noun, case: str) -> str:
    words = [ARTICLES[article, case][noun.gender]]
    if adjective:
        words.append(adjective[1] + ENDINGS[article, case][noun.gender])
    return " ".join([*words, noun.german])
