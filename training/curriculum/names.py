"""Invented and real names, words and numbers for passages and tool calls.

The second list of each pair is held out: it never appears in the training data.
"""

from __future__ import annotations

import random

from training.curriculum.wordlists import words

_ONSETS = words(
    """
    b br c ch cl cr d dr f fl fr g gl gr h j k kl kr l m n p pl pr qu r s sc sh sk sl sm sn sp st str sw t th
    tr v w y z
    """
)
_VOWELS = words("a e i o u a e i o ai au ea ee ia ie oa oo ou")
_CODAS = ["", *words("b ck d ff g k l ld ll lm m mp n nd ng nk nt p r rd rk rm rn rt s sk ss st t th v x z")]
_ENDINGS = words(
    """
    a o i e y en er in on us ia ano etta ford ham ton well mere wick dale stead by more field berg holm land
    ville ska ow
    """
)

FIRST_NAMES = (
    words(
        """
    Anna Boris Carla David Elena Felix Greta Hugo Irene Jonas Karin Leo Maria Nils Olga Pablo Rosa Simon
    Tessa Victor Wanda Yusuf Zoe Amir Bella Conrad Daisy Emil Fatima George Hannah Ivan Julia Kofi Laura
    Martin Nora Oscar Paula Rafael Sofia Thomas Ursula Walter Grace Henry Lily Peter Alice Samuel
    """
    ),
    words(
        """
    Milena Tobias Ottilie Gaspard Ines Ruben Adele Klaus Priya Wendell Ingrid Mateo Saskia Lorenz Noemi
    Barnaby
    """
    ),
)
LAST_NAMES = (
    words(
        """
    Adler Baker Castell Dorn Eriksen Fisher Gomez Holt Ivanov Jensen Keller Larsen Moretti Novak Olsen
    Petrov Quinn Rossi Schmidt Turner Ueda Varga Weber Young Zeller Brandt Carter Dubois Fontana Harper
    Kowalski Lindgren Mendes Nakamura Okafor Parker Reyes Silva Tanaka Wood
    """
    ),
    words(
        """
    Brimlow Tarkova Vesely Hartnell Quist Delorme Omondi Ferrante Sandoval Wickham Yardley Kessel
    Marchetti
    """
    ),
)
CITIES = (
    [
        *words(
            """
    Paris London Berlin Rome Madrid Oslo Lima Tokyo Cairo Vienna Dublin Prague Warsaw Athens Lisbon Moscow
    Beijing Delhi Nairobi Boston Chicago Denver Seattle Toronto Montreal Sydney Melbourne Perth Auckland
    Mumbai Shanghai Osaka Kyoto Seoul Bangkok Hanoi Jakarta Istanbul Milan Naples Turin Venice Munich
    Hamburg Cologne Zurich Geneva Lyon Nice Porto Bilbao Valencia Antwerp Rotterdam Glasgow Cardiff Leeds
    Bergen Helsinki Stockholm Riga Krakow Budapest Bogota Quito Santiago Havana Dallas Houston Miami Rio
    Dakar Lagos Accra Tunis Amsterdam Brussels Copenhagen
    """
        ),
        "New York",
        "San Francisco",
        "Los Angeles",
        "Buenos Aires",
        "Cape Town",
        "Hong Kong",
        "Mexico City",
        "Tel Aviv",
    ],
    words(
        """
    Gdansk Tampere Malaga Toulouse Leipzig Kassel Trieste Calgary Austin Portland Nagoya Busan Mombasa
    Casablanca Izmir Odessa Maribor Plovdiv Ghent Utrecht Aarhus Galway Bristol Cordoba Cusco Brisbane
    Phoenix Vancouver Palermo Salzburg
    """
    ),
)
_PLACES_HELD_OUT = words(
    """
    Quellmark Ardenby Torvessa Milchester Ostrava Pennygate Halvorn Brixmoor Sunderby Larkhaven Zamorin
    Fennwick Oldreth Caskara Jorrinhal Wolvesey Tidepool Umbermill Krestwood Nimbrol Isolde Marrakel
    Peverell Dunmarrow Greyhollow Ravensby Velluno Corrigan Hexley Bramblow
    """
)


def place(rng: random.Random, held_out: bool) -> str:
    """The name of a place, real or invented."""
    if held_out:
        return rng.choice(_PLACES_HELD_OUT)
    return invented(rng) if rng.random() < 0.85 else rng.choice(CITIES[0])


def person(rng: random.Random, held_out: bool) -> str:
    """A first and a last name."""
    if held_out or rng.random() < 0.4:
        return f"{rng.choice(FIRST_NAMES[held_out])} {rng.choice(LAST_NAMES[held_out])}"
    first = rng.choice(FIRST_NAMES[0]) if rng.random() < 0.5 else invented(rng)
    return f"{first} {invented(rng)}"


def city(rng: random.Random, held_out: bool) -> str:
    """A city for a tool call."""
    if held_out:
        return rng.choice(CITIES[1])
    return rng.choice(CITIES[0]) if rng.random() < 0.5 else invented(rng)


def invented(rng: random.Random) -> str:
    """A made-up name such as "Trelda" that is not a held-out one."""
    while True:
        syllables = [_syllable(rng) for _ in range(rng.choice((1, 1, 1, 2)))]
        name = ("".join(syllables) + rng.choice(_ENDINGS)).capitalize()
        if rng.random() < 0.05:
            name = f"{rng.choice(('Saint', 'New', 'Old', 'Port', 'Upper'))} {name}"
        if name not in _HELD_OUT:
            return name


def _syllable(rng: random.Random) -> str:
    onset = rng.choice(_ONSETS) if rng.random() < 0.85 else ""
    return onset + rng.choice(_VOWELS) + rng.choice(_CODAS)


def year(rng: random.Random) -> str:
    """A year as text."""
    return str(rng.randint(1200, 2030))


def clock_time(rng: random.Random) -> str:
    """A time of day such as 14:05."""
    return f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"


def number(rng: random.Random) -> str:
    """A number of one to four digits."""
    return str(rng.randint(2, 10 ** rng.choice((1, 2, 2, 3, 3, 4)) + 2))


_HELD_OUT = frozenset((*FIRST_NAMES[1], *LAST_NAMES[1], *CITIES[1], *_PLACES_HELD_OUT))
