"""Subjects of the invented passages: kinds of things, their attributes, and frames of sentences and questions.

In every frame `{e}` is the thing's name, `{p}` a pronoun for it and `{v}` the answer, which is copied literally.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from training.curriculum import names
from training.curriculum.wordlists import entries, words

COLOURS = words("red blue green yellow black white grey brown orange purple silver golden pink")
SHADES = ("dark", "light", "pale", "bright", "deep")
MATERIALS = words(
    """
    oak steel brick granite glass copper marble bamboo concrete iron pine bronze clay leather wool
    """
)
MONTHS = words(
    """
    January February March April May June July August September October November December
    """
)
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
UNITS_LENGTH = ("metres", "kilometres", "feet", "miles")
UNITS_WEIGHT = ("kilograms", "tons", "grams", "pounds")
COINS = ("crowns", "euros", "dollars", "pounds", "francs")
FOODS = entries(
    """
    apples; bread; cheese; fish; honey; soup; rice; lentils; plums; smoked eel; onion soup; barley cakes;
    salted herring; rye bread; lemon tart; goat cheese; fresh oysters; pickled turnips; roast chestnuts;
    plum jam; black tea; grilled trout
    """
)
THINGS = words(
    """
    boats lamps clocks ropes carpets bottles violins candles bells baskets shoes maps kites pumps tiles hats
    mirrors ladders paints umbrellas buttons spoons drums kettles sails
    """
)
SPOTS = entries(
    """
    behind the old mill; next to the station; on the north shore; under the stone bridge;
    above the market hall; near the lighthouse; in the cellar; on the third floor; beside the river;
    at the edge of the forest; in the main square; on the top shelf; in the blue drawer;
    opposite the town hall; between two hills; in the east wing; by the south gate
    """
)
TRADES = words(
    """
    painter baker sailor teacher nurse engineer farmer tailor pilot lawyer potter gardener doctor librarian
    """
)

Value = Callable[[random.Random, bool], str]


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """An attribute of a thing.

    Attributes:
        value: Draws a value; the second argument tells whether it is held out.
        told: Frames of statements; the last one is held out.
        asked: Frames of questions; the last one is held out.
    """

    value: Value
    told: tuple[str, ...]
    asked: tuple[str, ...]


def _colour(rng: random.Random, _: bool) -> str:
    colour = rng.choice(COLOURS)
    return f"{rng.choice(SHADES)} {colour}" if rng.random() < 0.4 else colour


def _measure(units: tuple[str, ...]) -> Value:
    return lambda rng, _: f"{names.number(rng)} {rng.choice(units)}"


def _one_of(options: list[str]) -> Value:
    return lambda rng, _: rng.choice(options).strip()


def _date(rng: random.Random, _: bool) -> str:
    return f"{rng.choice(MONTHS)} {rng.randint(1, 28)}" if rng.random() < 0.5 else rng.choice(MONTHS)


def _maker(rng: random.Random, held_out: bool) -> str:
    return names.person(rng, held_out) if rng.random() < 0.7 else f"the {names.place(rng, held_out)} family"


def _things(rng: random.Random, _: bool) -> str:
    return rng.choice(THINGS) if rng.random() < 0.7 else f"{rng.choice(COLOURS)} {rng.choice(THINGS)}"


ATTRIBUTES: dict[str, Attribute] = {
    "founded": Attribute(
        value=lambda rng, _: names.year(rng),
        told=(
            "{e} was founded in {v}.",
            "{e} was established in {v}.",
            "{p} was founded in {v}.",
            "{e}, founded in {v}, is well known.",
            "{p} goes back to the year {v}.",
            "In {v}, {e} was founded.",
            "{e} has existed since {v}.",
        ),
        asked=(
            "When was {e} founded?",
            "In which year was {e} founded?",
            "What year was {e} established?",
            "Since when has {e} existed?",
            "In what year was {e} founded?",
        ),
    ),
    "opened": Attribute(
        value=lambda rng, _: names.year(rng),
        told=(
            "{e} was built in {v}.",
            "{p} was built in {v}.",
            "{e} was opened in {v}.",
            "It was in {v} that {e} was built.",
            "{p} dates from {v}.",
            "{e} was finished in {v}.",
        ),
        asked=(
            "When was {e} built?",
            "In which year was {e} built?",
            "What year was {e} opened?",
            "When was {e} finished?",
            "In what year was {e} built?",
        ),
    ),
    "colour": Attribute(
        value=_colour,
        told=(
            "{e} is {v}.",
            "{p} is painted {v}.",
            "The colour of {e} is {v}.",
            "{p} has been {v} for many years.",
            "Everyone knows that {e} is {v}.",
            "{e} is painted {v}.",
        ),
        asked=(
            "What colour is {e}?",
            "Which colour does {e} have?",
            "What is the colour of {e}?",
            "What color is {e}?",
            "Which colour is {e}?",
        ),
    ),
    "owner": Attribute(
        value=_maker,
        told=(
            "{e} belongs to {v}.",
            "{p} is owned by {v}.",
            "The owner of {e} is {v}.",
            "Today {p} belongs to {v}.",
            "{v} owns {e}.",
            "{e} is owned by {v}.",
        ),
        asked=(
            "Who owns {e}?",
            "Who is the owner of {e}?",
            "To whom does {e} belong?",
            "Whose is {e}?",
            "Who does {e} belong to?",
        ),
    ),
    "leader": Attribute(
        value=names.person,
        told=(
            "{e} is run by {v}.",
            "{p} is led by {v}.",
            "The head of {e} is {v}.",
            "{v} runs {e}.",
            "{v} is in charge of {e}.",
            "{e} is led by {v}.",
        ),
        asked=(
            "Who runs {e}?",
            "Who leads {e}?",
            "Who is the head of {e}?",
            "Who is in charge of {e}?",
            "Who is running {e}?",
        ),
    ),
    "founder": Attribute(
        value=names.person,
        told=(
            "{e} was founded by {v}.",
            "{p} was started by {v}.",
            "The founder of {e} was {v}.",
            "{v} founded {e}.",
            "It was {v} who started {e}.",
            "{e} was started by {v}.",
        ),
        asked=(
            "Who founded {e}?",
            "Who started {e}?",
            "Who was the founder of {e}?",
            "By whom was {e} founded?",
            "Who is the founder of {e}?",
        ),
    ),
    "maker": Attribute(
        value=names.person,
        told=(
            "{e} was designed by {v}.",
            "{p} was built by {v}.",
            "The designer of {e} was {v}.",
            "{v} designed {e}.",
            "{e} is the work of {v}.",
            "{e} was built by {v}.",
        ),
        asked=(
            "Who designed {e}?",
            "Who built {e}?",
            "Who was the designer of {e}?",
            "By whom was {e} designed?",
            "Who is the designer of {e}?",
        ),
    ),
    "height": Attribute(
        value=_measure(("metres", "feet", "centimetres")),
        told=(
            "{e} is {v} tall.",
            "{p} is {v} high.",
            "The height of {e} is {v}.",
            "{p} rises to {v}.",
            "{e} stands {v} tall.",
            "{e} is {v} high.",
        ),
        asked=(
            "How tall is {e}?",
            "How high is {e}?",
            "What is the height of {e}?",
            "What height does {e} have?",
            "How high does {e} rise?",
        ),
    ),
    "length": Attribute(
        value=_measure(UNITS_LENGTH),
        told=(
            "{p} is {v} long.",
            "{p} measures {v} from end to end.",
            "The length of {e} is {v}.",
            "{p} is {v} in length.",
            "{e} is {v} long.",
        ),
        asked=(
            "How long is {e}?",
            "What is the length of {e}?",
            "What length does {e} have?",
            "How long does {e} measure?",
        ),
    ),
    "weight": Attribute(
        value=_measure(UNITS_WEIGHT),
        told=(
            "{e} weighs {v}.",
            "{p} weighs {v}.",
            "The weight of {e} is {v}.",
            "{p} has a weight of {v}.",
            "{e} weighs in at {v}.",
        ),
        asked=(
            "How much does {e} weigh?",
            "How heavy is {e}?",
            "What is the weight of {e}?",
            "What does {e} weigh?",
        ),
    ),
    "price": Attribute(
        value=_measure(COINS),
        told=(
            "{e} costs {v}.",
            "A ticket for {e} costs {v}.",
            "The price of {e} is {v}.",
            "{p} costs {v}.",
            "You pay {v} for {e}.",
            "{e} can be had for {v}.",
        ),
        asked=(
            "How much does {e} cost?",
            "What is the price of {e}?",
            "What does {e} cost?",
            "How much do you pay for {e}?",
            "How much is {e}?",
        ),
    ),
    "opens": Attribute(
        value=lambda rng, _: names.clock_time(rng),
        told=(
            "{e} opens at {v}.",
            "{p} opens at {v}.",
            "The doors of {e} open at {v}.",
            "Every morning {p} opens at {v}.",
            "{e} opens every day at {v}.",
        ),
        asked=(
            "When does {e} open?",
            "At what time does {e} open?",
            "At which hour does {e} open?",
            "What time does {e} open?",
        ),
    ),
    "closes": Attribute(
        value=lambda rng, _: names.clock_time(rng),
        told=(
            "{e} closes at {v}.",
            "{p} closes at {v}.",
            "The doors of {e} close at {v}.",
            "In the evening {p} closes at {v}.",
            "{e} closes every day at {v}.",
        ),
        asked=(
            "When does {e} close?",
            "At what time does {e} close?",
            "At which hour does {e} close?",
            "What time does {e} close?",
        ),
    ),
    "place": Attribute(
        value=names.place,
        told=(
            "{e} is in {v}.",
            "{p} lies in {v}.",
            "{e} can be found in {v}.",
            "You will find {e} in {v}.",
            "{p} is located in {v}.",
            "{e} is located in {v}.",
        ),
        asked=(
            "Where is {e}?",
            "In which town is {e}?",
            "Where can {e} be found?",
            "Where does {e} lie?",
            "Where is {e} located?",
        ),
    ),
    "spot": Attribute(
        value=_one_of(SPOTS),
        told=("{e} stands {v}.", "{p} is {v}.", "{e} is kept {v}.", "You will find {e} {v}.", "{e} is {v}."),
        asked=(
            "Where does {e} stand?",
            "Where is {e} kept?",
            "Where can I find {e}?",
            "Where will I find {e}?",
        ),
    ),
    "material": Attribute(
        value=_one_of(MATERIALS),
        told=(
            "{e} is made of {v}.",
            "{p} is made of {v}.",
            "{p} is built of {v}.",
            "{e} consists of {v}.",
            "{e} was made from {v}.",
        ),
        asked=(
            "What is {e} made of?",
            "Of which material is {e} made?",
            "Which material is {e} built of?",
            "What does {e} consist of?",
        ),
    ),
    "famous": Attribute(
        value=_one_of(FOODS),
        told=(
            "{e} is famous for {v}.",
            "{p} is known for {v}.",
            "People love {e} for {v}.",
            "Visitors of {e} come for {v}.",
            "{e} is known for {v}.",
        ),
        asked=(
            "What is {e} famous for?",
            "What is {e} known for?",
            "For what is {e} famous?",
            "What makes {e} famous?",
        ),
    ),
    "makes": Attribute(
        value=_things,
        told=(
            "{e} makes {v}.",
            "{p} sells {v}.",
            "{p} produces {v}.",
            "{e} is a maker of {v}.",
            "{e} produces {v}.",
        ),
        asked=(
            "What does {e} make?",
            "What does {e} produce?",
            "What does {e} sell?",
            "Which things does {e} make?",
        ),
    ),
    "staff": Attribute(
        value=lambda rng, _: f"{names.number(rng)} people",
        told=(
            "{e} employs {v}.",
            "{p} employs {v}.",
            "There are {v} at work in {e}.",
            "At {e}, {v} work every day.",
            "{e} gives work to {v}.",
        ),
        asked=(
            "How many people work at {e}?",
            "How many people does {e} employ?",
            "How many workers does {e} have?",
            "How many people are employed by {e}?",
        ),
    ),
    "month": Attribute(
        value=_date,
        told=(
            "{e} takes place in {v}.",
            "{p} begins in {v}.",
            "{p} is held in {v}.",
            "Every year {e} starts in {v}.",
            "{e} is held in {v}.",
        ),
        asked=(
            "When does {e} take place?",
            "When is {e} held?",
            "In which month is {e}?",
            "When does {e} start?",
        ),
    ),
    "day": Attribute(
        value=_one_of(DAYS),
        told=(
            "{e} is closed on {v}.",
            "{p} stays closed on {v}.",
            "The day of rest at {e} is {v}.",
            "On {v}, {e} is closed.",
        ),
        asked=("On which day is {e} closed?", "When is {e} closed?", "Which day is {e} closed?"),
    ),
    "trade": Attribute(
        value=lambda rng, _: f"a {rng.choice([t for t in TRADES if t[0] != 'e'])}",
        told=(
            "{e} is {v}.",
            "{e} works as {v}.",
            "{p} works as {v}.",
            "{p} is {v} by trade.",
            "{e} became {v}.",
        ),
        asked=(
            "What is {e}'s job?",
            "What does {e} do for a living?",
            "What is the job of {e}?",
            "As what does {e} work?",
        ),
    ),
    "born": Attribute(
        value=lambda rng, _: names.year(rng),
        told=(
            "{e} was born in {v}.",
            "{p} was born in {v}.",
            "{e}, born in {v}, likes the sea.",
            "{v} is the year {e} was born.",
        ),
        asked=("When was {e} born?", "In which year was {e} born?", "What year was {e} born?"),
    ),
    "home": Attribute(
        value=names.place,
        told=(
            "{e} lives in {v}.",
            "{p} lives in {v}.",
            "{e} has a house in {v}.",
            "{p} moved to {v}.",
            "{e} has lived in {v} for years.",
        ),
        asked=("Where does {e} live?", "In which town does {e} live?", "What town does {e} live in?"),
    ),
    "eats": Attribute(
        value=_one_of(FOODS),
        told=(
            "{e} eats {v}.",
            "{p} mostly eats {v}.",
            "The favourite food of {e} is {v}.",
            "{p} likes {v} best.",
            "{e} likes to eat {v}.",
        ),
        asked=("What does {e} eat?", "What is the favourite food of {e}?", "What does {e} like to eat?"),
    ),
    "collects": Attribute(
        value=_things,
        told=(
            "{e} collects {v}.",
            "{p} collects {v}.",
            "{p} has a large collection of {v}.",
            "The house of {e} is full of {v}.",
            "{e} likes to collect {v}.",
        ),
        asked=(
            "What does {e} collect?",
            "Which things does {e} collect?",
            "What is in the collection of {e}?",
            "What does {e} like to collect?",
        ),
    ),
    "power": Attribute(
        value=lambda rng, _: f"{names.number(rng)} {rng.choice(('watts', 'volts', 'kilowatts', 'horsepower'))}",
        told=("{e} needs {v}.", "{p} runs on {v}.", "The power of {e} is {v}.", "{e} has {v}."),
        asked=("How much power does {e} need?", "What is the power of {e}?", "How much power has {e}?"),
    ),
    "seats": Attribute(
        value=lambda rng, _: f"{names.number(rng)} {rng.choice(('guests', 'visitors', 'passengers'))}",
        told=(
            "{e} has room for {v}.",
            "{p} holds {v}.",
            "There is space for {v} in {e}.",
            "{e} can take {v}.",
        ),
        asked=(
            "How many people fit in {e}?",
            "For how many is there room in {e}?",
            "How many people can {e} hold?",
        ),
    ),
    "code": Attribute(
        value=lambda rng, _: f"{rng.choice('ABCDEFGHKLMNPRSTUVWXYZ')}{rng.choice(('', '-'))}{names.number(rng)}",
        told=(
            "The code of {e} is {v}.",
            "The number of {e} is {v}.",
            "{e} has the code {v}.",
            "{e} carries the code {v}.",
        ),
        asked=("What is the code of {e}?", "Which code does {e} have?", "What code does {e} carry?"),
    ),
}

# Name of the thing, pronoun, attributes, and whether {n} in the name is a person instead of a place.
KINDS: tuple[tuple[str, str, str, bool], ...] = (
    ("{n} Harbour", "it", "founded length leader colour place opens closes seats famous", False),
    ("the {n} Festival", "it", "founded founder month price famous place leader seats", False),
    ("the {n} Fair", "it", "founded founder month price famous opens closes", False),
    ("the {n} pump", "it", "maker weight price power colour spot code material", False),
    ("the {n} engine", "it", "maker weight price power opened owner code length", False),
    ("the {n} printer", "it", "maker weight price power colour code height owner", False),
    ("{n}", "she", "trade born home eats collects", True),
    ("{n}", "he", "trade born home eats collects", True),
    ("{n} Works", "it", "founded founder leader makes staff place owner", False),
    ("the {n} company", "it", "founded founder leader makes staff place owner", False),
    ("{n} and Sons", "it", "founded leader makes staff place opens day", False),
    ("the {n} fox", "it", "eats weight length colour place", False),
    ("the {n} owl", "it", "eats weight height colour place", False),
    ("the {n} lizard", "it", "eats weight length colour place", False),
    ("the {n} Tower", "it", "opened maker height material colour owner price opens closes", False),
    ("{n} Castle", "it", "opened owner height material place price opens day", False),
    ("the {n} Museum", "it", "opened founder leader price opens closes day famous spot", False),
    ("{n} Library", "it", "opened leader opens closes day spot seats colour", False),
    ("the {n} Bridge", "it", "opened maker length height material colour place", False),
    ("the {n} Hotel", "it", "opened owner price seats colour spot famous staff", False),
    ("the {n} bakery", "it", "founded owner opens closes day famous spot", False),
    ("the ship {n}", "it", "maker length weight owner colour seats opened leader", False),
    ("the {n} train", "it", "length price seats colour maker power opens", False),
    ("{n} School", "it", "founded leader place staff opens colour day", False),
    ("the key of {n}", "it", "spot colour material code weight", False),
    ("the lamp of {n}", "it", "spot colour material price maker height", False),
    ("the {n} clock", "it", "spot maker opened height material weight price", False),
    ("the village of {n}", "it", "founded famous leader colour staff", False),
)
FILLERS = (
    "Many people like it.",
    "The weather there is often mild.",
    "It is mentioned in several old letters.",
    "Children come here in the summer.",
    "Nobody knows exactly why.",
    "It has a long history.",
    "The neighbours are very proud.",
    "A small path leads to the sea.",
)
