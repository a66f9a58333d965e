"""Python types for structured answers, and texts that a grammar allows, to be read back as values of the types."""

from __future__ import annotations

import enum
import random
import uuid
from collections import deque
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
from pydantic import BaseModel, Field
from pydantic.networks import IPvAnyAddress, IPvAnyInterface, IPvAnyNetwork
from typing_extensions import TypedDict

from adafuse_core import Grammar
from tests.oracle import OracleGrammar


class Colour(enum.Enum):
    RED = "r"
    GREEN = 3


class Shade(enum.Enum):
    LIGHT = "light grey"
    DARK = "dark"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 20


class Node(BaseModel):
    value: int
    children: list[Node] = []


class Branch(BaseModel):
    left: Leaf | Branch
    label: Annotated[str, Field(max_length=3)]


class Leaf(BaseModel):
    day: date


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=1, le=9)]


class Dog(BaseModel):
    kind: Literal["dog"]
    born: date


class Pet(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


class Booking(BaseModel):
    """The kind of object that applications ask for."""

    guest: Annotated[str, Field(min_length=2, max_length=12)]
    arrival: date
    at: datetime | None = None
    stay: timedelta
    price: Decimal
    rooms: list[Colour]
    notes: dict[int, str] = {}


class Point(NamedTuple):
    x: int
    y: float


class Row(TypedDict):
    day: date
    cells: list[Row]


@dataclass
class Order:
    number: int
    due: time
    parent: Order | None = None


TYPES: dict[str, Any] = {
    **{kind.__name__: kind for kind in (int, str, bool, bytes, date, datetime, time, timedelta, Decimal, Path)},
    **{kind.__name__: kind for kind in (uuid.UUID, IPv4Address, IPv6Address, IPv4Network, IPv6Network)},
    **{kind.__name__: kind for kind in (IPv4Interface, IPv6Interface, IPvAnyAddress, IPvAnyNetwork, IPvAnyInterface)},
    **{kind.__name__: kind for kind in (Colour, Level, Node, Branch, Pet, Booking, Point, Row, Order)},
    "none": None,
    "anything": Any,
    "literal": Literal["a", 1, None],
    "optional": int | None,
    "union": int | date | None,
    "bounded int": Annotated[int, Field(gt=-5, lt=100, multiple_of=3)],
    "positive": pydantic.PositiveInt,
    "bounded float": Annotated[float, Field(ge=0.5, lt=2.5)],
    "bounded str": Annotated[str, Field(min_length=2, max_length=5)],
    "pattern": Annotated[str, Field(pattern=r"^[A-Z]{3}-\d+$")],
    "unanchored pattern": Annotated[str, Field(pattern="[0-9]ab")],
    "price": Annotated[Decimal, Field(max_digits=5, decimal_places=2, gt=0)],
    "whole decimal": Annotated[Decimal, Field(max_digits=3)],
    "uuid4": pydantic.UUID4,
    "uuid7": pydantic.UUID7,
    "web address": pydantic.HttpUrl,
    "address": pydantic.AnyUrl,
    "socket": pydantic.WebsocketUrl,
    "database": pydantic.PostgresDsn,
    "aware": pydantic.AwareDatetime,
    "naive": pydantic.NaiveDatetime,
    "base64": pydantic.Base64Bytes,
    "base64 for URLs": pydantic.Base64UrlBytes,
    "secret": pydantic.SecretStr,
    "ints": dict[int, str],
    "days": dict[date, int],
    "ids": dict[uuid.UUID, bool],
    "named": dict[Literal["a", "b"], int],
    "flags": dict[bool, int],
    "shades": dict[Shade, int],
    "coded": dict[Annotated[str, Field(pattern="^[a-c]+$")], int],
    "tuple": tuple[int, date],
    "tuple of any length": tuple[time, ...],
    "set": set[int],
    "frozenset": frozenset[str],
    "deque": deque[bool],
    "bounded list": Annotated[list[date], Field(min_length=1, max_length=3)],
}


def texts(schema: dict[str, Any], count: int, longest: int = 40) -> list[str]:
    """The shortest answer that the grammar of a schema allows, and so many that go on at random and are then ended."""
    grammar = Grammar.json_schema(schema, lenient=True)
    draw, oracle, guide = random.Random(0), OracleGrammar(grammar.source()), grammar.guide()
    begun = ["", *(oracle.random_text(draw, draw.randrange(longest)) for _ in range(count))]
    return [text + (guide.after(text).short_ending or "") for text in begun]
