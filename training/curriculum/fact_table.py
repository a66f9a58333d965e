"""Several hundred well-known facts, by topic, with phrasings of statements and questions."""

from __future__ import annotations

from dataclasses import dataclass

from training.curriculum.wordlists import entries

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Topic:
    """Facts of one type. `{k}` stands for the key and `{v}` for the value in every clause.

    Attributes:
        pairs: Key and value of each fact.
        statement: The phrasing of the statement.
        questions: Phrasings of the question, for training.
        held_out: Phrasings of the question, never used in training.
    """

    pairs: Pairs
    statement: str
    questions: tuple[str, ...]
    held_out: tuple[str, ...]


def _pairs(text: str) -> Pairs:
    """Read `key: value` entries separated by semicolons, over any number of lines."""
    return tuple((key, value) for key, value in (entry.split(": ") for entry in entries(text)))


CAPITALS = _pairs("""
Peru: Lima; Norway: Oslo; Kenya: Nairobi; Japan: Tokyo; France: Paris; Germany: Berlin; Italy: Rome;
Spain: Madrid; Portugal: Lisbon; Greece: Athens; Austria: Vienna; Switzerland: Bern; Belgium: Brussels;
Denmark: Copenhagen; Sweden: Stockholm; Finland: Helsinki; Iceland: Reykjavik; Ireland: Dublin;
Poland: Warsaw; Hungary: Budapest; Romania: Bucharest; Bulgaria: Sofia; Serbia: Belgrade; Croatia: Zagreb;
Slovenia: Ljubljana; Slovakia: Bratislava; Albania: Tirana; Estonia: Tallinn; Latvia: Riga;
Lithuania: Vilnius; Ukraine: Kyiv; Belarus: Minsk; Russia: Moscow; Turkey: Ankara; Georgia: Tbilisi;
Armenia: Yerevan; Azerbaijan: Baku; Iran: Tehran; Iraq: Baghdad; Syria: Damascus; Lebanon: Beirut;
Jordan: Amman; Egypt: Cairo; Libya: Tripoli; Morocco: Rabat; Algeria: Algiers; Sudan: Khartoum;
Ethiopia: Addis Ababa; Somalia: Mogadishu; Uganda: Kampala; Rwanda: Kigali; Zambia: Lusaka;
Zimbabwe: Harare; Angola: Luanda; Namibia: Windhoek; Botswana: Gaborone; Mozambique: Maputo;
Madagascar: Antananarivo; Ghana: Accra; Nigeria: Abuja; Senegal: Dakar; Mali: Bamako; Niger: Niamey;
Cameroon: Yaounde; Gabon: Libreville; Togo: Lome; Liberia: Monrovia; India: New Delhi; Pakistan: Islamabad;
Nepal: Kathmandu; Bhutan: Thimphu; Bangladesh: Dhaka; China: Beijing; Mongolia: Ulaanbaatar; Vietnam: Hanoi;
Laos: Vientiane; Cambodia: Phnom Penh; Thailand: Bangkok; Malaysia: Kuala Lumpur; Indonesia: Jakarta;
Australia: Canberra; New Zealand: Wellington; Fiji: Suva; Canada: Ottawa; Cuba: Havana; Jamaica: Kingston;
Haiti: Port-au-Prince; Honduras: Tegucigalpa; Nicaragua: Managua; Costa Rica: San Jose; Colombia: Bogota;
Venezuela: Caracas; Ecuador: Quito; Bolivia: Sucre; Chile: Santiago; Argentina: Buenos Aires;
Uruguay: Montevideo; Paraguay: Asuncion; Brazil: Brasilia; Malta: Valletta; Cyprus: Nicosia; Qatar: Doha;
Oman: Muscat; Yemen: Sanaa; Afghanistan: Kabul; Uzbekistan: Tashkent; Kazakhstan: Astana
""")

CURRENCIES = _pairs("""
Japan: the yen; India: the rupee; China: the yuan; Russia: the ruble; Poland: the zloty; Sweden: the krona;
Hungary: the forint; Turkey: the lira; Switzerland: the franc; Thailand: the baht; Vietnam: the dong;
South Korea: the won; Peru: the sol; Guatemala: the quetzal; Israel: the shekel; Iran: the rial;
Iraq: the dinar; Egypt: the pound; Kenya: the shilling; South Africa: the rand; Nigeria: the naira;
Ghana: the cedi; Morocco: the dirham; Bulgaria: the lev; Albania: the lek; Ukraine: the hryvnia;
Armenia: the dram; Georgia: the lari; Brazil: the real; Mexico: the peso; Haiti: the gourde;
Honduras: the lempira; Paraguay: the guarani; Costa Rica: the colon; Bangladesh: the taka;
Mongolia: the tugrik; Malaysia: the ringgit; Laos: the kip; Myanmar: the kyat; Angola: the kwanza;
Zambia: the kwacha; Botswana: the pula; Ethiopia: the birr; Kazakhstan: the tenge
""")

LANGUAGES = _pairs("""
Brazil: Portuguese; Austria: German; Argentina: Spanish; Egypt: Arabic; Iran: Persian; Israel: Hebrew;
Kenya: Swahili; Pakistan: Urdu; Thailand: Thai; Vietnam: Vietnamese; Cambodia: Khmer; Laos: Lao;
Mongolia: Mongolian; Nepal: Nepali; Bhutan: Dzongkha; Ethiopia: Amharic; Somalia: Somali;
Haiti: Haitian Creole; Jamaica: English; Senegal: French; Bangladesh: Bengali; Armenia: Armenian;
Georgia: Georgian; Turkey: Turkish; Greece: Greek; Hungary: Hungarian; Finland: Finnish; Iceland: Icelandic;
Estonia: Estonian; Latvia: Latvian; Lithuania: Lithuanian; Romania: Romanian; Bulgaria: Bulgarian;
Albania: Albanian; Croatia: Croatian; Poland: Polish; Ukraine: Ukrainian; Denmark: Danish
""")

SYMBOLS = _pairs("""
hydrogen: H; helium: He; lithium: Li; boron: B; carbon: C; nitrogen: N; oxygen: O; fluorine: F; neon: Ne;
sodium: Na; magnesium: Mg; aluminium: Al; silicon: Si; phosphorus: P; sulfur: S; chlorine: Cl; argon: Ar;
potassium: K; calcium: Ca; titanium: Ti; chromium: Cr; manganese: Mn; iron: Fe; cobalt: Co; nickel: Ni;
copper: Cu; zinc: Zn; gallium: Ga; germanium: Ge; arsenic: As; bromine: Br; krypton: Kr; silver: Ag;
cadmium: Cd; tin: Sn; antimony: Sb; iodine: I; xenon: Xe; barium: Ba; tungsten: W; platinum: Pt; gold: Au;
mercury: Hg; lead: Pb; bismuth: Bi; radium: Ra; uranium: U; plutonium: Pu; palladium: Pd; rubidium: Rb
""")

YOUNG = _pairs("""
dog: a puppy; cat: a kitten; cow: a calf; horse: a foal; sheep: a lamb; goat: a kid; pig: a piglet;
hen: a chick; duck: a duckling; goose: a gosling; swan: a cygnet; deer: a fawn; bear: a cub;
kangaroo: a joey; frog: a tadpole; owl: an owlet; eagle: an eaglet; hare: a leveret; eel: an elver;
spider: a spiderling; fly: a maggot; seal: a pup; butterfly: a caterpillar; pigeon: a squab;
turkey: a poult; hedgehog: a hoglet; salmon: a parr; oyster: a spat; falcon: an eyas; platypus: a puggle;
llama: a cria
""")

AUTHORS = _pairs("""
Hamlet: William Shakespeare; Faust: Johann Wolfgang von Goethe; Don Quixote: Miguel de Cervantes;
Ulysses: James Joyce; War and Peace: Leo Tolstoy; Crime and Punishment: Fyodor Dostoevsky;
Moby Dick: Herman Melville; Emma: Jane Austen; Oliver Twist: Charles Dickens; Jane Eyre: Charlotte Bronte;
Wuthering Heights: Emily Bronte; Frankenstein: Mary Shelley; Dracula: Bram Stoker;
Treasure Island: Robert Louis Stevenson; The Jungle Book: Rudyard Kipling; Middlemarch: George Eliot;
The Time Machine: H. G. Wells; The Trial: Franz Kafka; The Magic Mountain: Thomas Mann;
Steppenwolf: Hermann Hesse; The Plague: Albert Camus; Madame Bovary: Gustave Flaubert;
Les Miserables: Victor Hugo; Candide: Voltaire; The Red and the Black: Stendhal; Germinal: Emile Zola;
The Divine Comedy: Dante Alighieri; The Decameron: Giovanni Boccaccio; The Odyssey: Homer;
The Aeneid: Virgil; Peer Gynt: Henrik Ibsen; The Seagull: Anton Chekhov; Dead Souls: Nikolai Gogol;
Pippi Longstocking: Astrid Lindgren; Pinocchio: Carlo Collodi; Peter Pan: J. M. Barrie;
Heidi: Johanna Spyri; Momo: Michael Ende; The Hobbit: J. R. R. Tolkien; Dune: Frank Herbert;
Solaris: Stanislaw Lem; Neuromancer: William Gibson; Animal Farm: George Orwell;
Brave New World: Aldous Huxley; Lolita: Vladimir Nabokov; Beloved: Toni Morrison;
The Little Prince: Antoine de Saint-Exupery; The Name of the Rose: Umberto Eco
""")

ARTISTS = _pairs("""
the Mona Lisa: Leonardo da Vinci; Guernica: Pablo Picasso; The Scream: Edvard Munch;
The Night Watch: Rembrandt; The Starry Night: Vincent van Gogh; The Kiss: Gustav Klimt;
Water Lilies: Claude Monet; The Birth of Venus: Sandro Botticelli; The Milkmaid: Johannes Vermeer;
Las Meninas: Diego Velazquez; The Persistence of Memory: Salvador Dali; Nighthawks: Edward Hopper;
American Gothic: Grant Wood; The Hay Wain: John Constable; The Sleeping Gypsy: Henri Rousseau;
The Third of May: Francisco Goya; The School of Athens: Raphael; The Ambassadors: Hans Holbein;
Liberty Leading the People: Eugene Delacroix; The Card Players: Paul Cezanne;
The Great Wave: Katsushika Hokusai; Hunters in the Snow: Pieter Bruegel; Whaam: Roy Lichtenstein;
The Son of Man: Rene Magritte
""")

COMPOSERS = _pairs("""
The Magic Flute: Wolfgang Amadeus Mozart; Fidelio: Ludwig van Beethoven; Aida: Giuseppe Verdi;
Tosca: Giacomo Puccini; Carmen: Georges Bizet; Parsifal: Richard Wagner; The Four Seasons: Antonio Vivaldi;
The Messiah: George Frideric Handel; The Creation: Joseph Haydn; Swan Lake: Pyotr Tchaikovsky;
Bolero: Maurice Ravel; La Mer: Claude Debussy; Salome: Richard Strauss; The Planets: Gustav Holst;
Rusalka: Antonin Dvorak; The Moldau: Bedrich Smetana; Finlandia: Jean Sibelius;
The Rite of Spring: Igor Stravinsky; Peter and the Wolf: Sergei Prokofiev;
Scheherazade: Nikolai Rimsky-Korsakov; The Barber of Seville: Gioachino Rossini;
Winterreise: Franz Schubert; Rhapsody in Blue: George Gershwin; Der Freischuetz: Carl Maria von Weber
""")

INVENTORS = _pairs("""
the telephone: Alexander Graham Bell; the light bulb: Thomas Edison; dynamite: Alfred Nobel;
the lightning rod: Benjamin Franklin; the safety razor: King Camp Gillette; the ball pen: Laszlo Biro;
the zeppelin: Ferdinand von Zeppelin; the saxophone: Adolphe Sax; the printing press: Johannes Gutenberg;
the telegraph code: Samuel Morse; the safety lift: Elisha Otis; the pneumatic tyre: John Dunlop;
the cotton gin: Eli Whitney; the revolver: Samuel Colt; the mercury barometer: Evangelista Torricelli;
the battery: Alessandro Volta; the World Wide Web: Tim Berners-Lee; the diesel engine: Rudolf Diesel;
the television set: John Logie Baird; the stethoscope: Rene Laennec; the pendulum clock: Christiaan Huygens;
the miner's lamp: Humphry Davy; the reading script for the blind: Louis Braille;
the hot-air balloon: the Montgolfier brothers; the motor plane: the Wright brothers;
the magic cube: Erno Rubik; the jet engine: Frank Whittle; the Linux kernel: Linus Torvalds
""")

RIVERS = _pairs("""
Paris: the Seine; London: the Thames; Rome: the Tiber; Florence: the Arno; Lisbon: the Tagus;
Seville: the Guadalquivir; Dublin: the Liffey; Hamburg: the Elbe; Cologne: the Rhine; Munich: the Isar;
Frankfurt: the Main; Bremen: the Weser; Berlin: the Spree; Vienna: the Danube; Prague: the Vltava;
Warsaw: the Vistula; Moscow: the Moskva; Saint Petersburg: the Neva; Cairo: the Nile; Baghdad: the Tigris;
Buenos Aires: the Rio de la Plata; Shanghai: the Huangpu; Lyon: the Rhone; Bordeaux: the Garonne;
Bern: the Aare; Turin: the Po; Verona: the Adige; Glasgow: the Clyde; Liverpool: the Mersey;
Newcastle: the Tyne; Riga: the Daugava; New Orleans: the Mississippi
""")

OPPOSITES = _pairs("""
hot: cold; big: small; fast: slow; young: old; early: late; rich: poor; full: empty; wet: dry; hard: soft;
light: heavy; dark: bright; deep: shallow; wide: narrow; thick: thin; long: short; loud: quiet;
clean: dirty; cheap: expensive; strong: weak; brave: cowardly; sweet: bitter; sharp: blunt; rough: smooth;
open: closed; asleep: awake; alive: dead; ancient: modern; guilty: innocent; lazy: diligent; near: far;
noisy: silent; proud: humble; raw: cooked; safe: dangerous; simple: complicated; straight: crooked;
tight: loose; true: false; ugly: beautiful; useful: useless; vacant: occupied; victory: defeat;
arrival: departure; profit: loss; summer: winter; love: hatred; import: export; maximum: minimum
""")

PLURALS = _pairs("""
mouse: mice; goose: geese; tooth: teeth; foot: feet; child: children; ox: oxen; man: men; louse: lice;
die: dice; leaf: leaves; knife: knives; wolf: wolves; thief: thieves; loaf: loaves; cactus: cacti;
crisis: crises; fungus: fungi; criterion: criteria; datum: data; larva: larvae; index: indices;
person: people; half: halves; calf: calves; hero: heroes; sheep: sheep; fish: fish; analysis: analyses;
nucleus: nuclei; thesis: theses
""")

GROUPS = _pairs("""
lions: a pride; wolves: a pack; bees: a swarm; fish: a school; geese: a gaggle; crows: a murder;
ships: a fleet; actors: a troupe; whales: a pod; owls: a parliament; ants: a colony; sailors: a crew;
singers: a choir; stars: a constellation; flowers: a bouquet; cards: a deck; stairs: a flight;
islands: an archipelago; keys: a bunch; soldiers: an army; quails: a covey; larks: an exaltation;
cattle: a herd; foxes: a skulk; monkeys: a troop; ravens: an unkindness
""")

HOMES = _pairs("""
bee: a hive; bear: a den; beaver: a lodge; bird: a nest; badger: a sett; rabbit: a burrow; spider: a web;
horse: a stable; pig: a sty; dog: a kennel; hen: a coop; pigeon: a loft; eagle: an eyrie; otter: a holt;
squirrel: a drey; cow: a byre; lion: a lair; hamster: a cage; goldfish: a bowl; snail: a shell;
monk: a monastery; king: a palace; soldier: a barracks; hermit: a cell; prisoner: a jail; sailor: a ship
""")

SCIENCES = _pairs("""
plants: botany; animals: zoology; insects: entomology; birds: ornithology; fish: ichthyology;
rocks: petrology; earthquakes: seismology; fossils: palaeontology; caves: speleology;
the weather: meteorology; the stars: astronomy; maps: cartography; coins: numismatics; stamps: philately;
flags: vexillology; the heart: cardiology; the skin: dermatology; the eye: ophthalmology;
the blood: haematology; the kidneys: nephrology; poisons: toxicology; tissues: histology; fungi: mycology;
algae: phycology; bells: campanology; wine: oenology; the origin of words: etymology;
handwriting: graphology; old writings: palaeography; volcanoes: volcanology
""")

TOPICS: tuple[Topic, ...] = (
    Topic(
        pairs=CAPITALS,
        statement="the capital of {k} is {v}",
        questions=(
            "what is the capital of {k}",
            "which city is the capital of {k}",
            "name the capital of {k}",
            "what is the name of the capital of {k}",
        ),
        held_out=("what city is the capital of {k}", "which is the capital city of {k}"),
    ),
    Topic(
        pairs=CURRENCIES,
        statement="the currency of {k} is {v}",
        questions=(
            "what is the currency of {k}",
            "which currency is used in {k}",
            "which money do they use in {k}",
            "name the currency of {k}",
        ),
        held_out=("what currency is used in {k}", "which currency do they use in {k}"),
    ),
    Topic(
        pairs=LANGUAGES,
        statement="the main language of {k} is {v}",
        questions=(
            "what is the main language of {k}",
            "which language is spoken in {k}",
            "which language do people speak in {k}",
            "name the main language of {k}",
        ),
        held_out=("what language is spoken in {k}", "which is the main language of {k}"),
    ),
    Topic(
        pairs=SYMBOLS,
        statement="the chemical symbol of {k} is {v}",
        questions=(
            "what is the chemical symbol of {k}",
            "which symbol does {k} have in chemistry",
            "what is the symbol for {k}",
            "name the chemical symbol of {k}",
        ),
        held_out=("which chemical symbol does {k} have", "what is the chemical symbol for {k}"),
    ),
    Topic(
        pairs=YOUNG,
        statement="the young of the {k} is called {v}",
        questions=(
            "what is the young of the {k} called",
            "what do we call the young of the {k}",
            "what is a young {k} called",
            "what is the name for a baby {k}",
        ),
        held_out=("what is a baby {k} called", "what do we call a young {k}"),
    ),
    Topic(
        pairs=AUTHORS,
        statement="{k} was written by {v}",
        questions=(
            "who wrote {k}",
            "who is the author of {k}",
            "by whom was {k} written",
            "name the author of {k}",
        ),
        held_out=("who was the author of {k}", "which author wrote {k}"),
    ),
    Topic(
        pairs=ARTISTS,
        statement="{k} was painted by {v}",
        questions=(
            "who painted {k}",
            "who is the painter of {k}",
            "by whom was {k} painted",
            "name the painter of {k}",
        ),
        held_out=("which painter painted {k}", "who was the painter of {k}"),
    ),
    Topic(
        pairs=COMPOSERS,
        statement="{k} was composed by {v}",
        questions=(
            "who composed {k}",
            "who is the composer of {k}",
            "by whom was {k} composed",
            "name the composer of {k}",
        ),
        held_out=("which composer composed {k}", "who was the composer of {k}"),
    ),
    Topic(
        pairs=INVENTORS,
        statement="{k} was invented by {v}",
        questions=(
            "who invented {k}",
            "who is the inventor of {k}",
            "by whom was {k} invented",
            "name the inventor of {k}",
        ),
        held_out=("who was the inventor of {k}", "which person invented {k}"),
    ),
    Topic(
        pairs=RIVERS,
        statement="the river in {k} is {v}",
        questions=(
            "which river flows through {k}",
            "what is the river in {k} called",
            "which river is in {k}",
            "name the river in {k}",
        ),
        held_out=("what river flows through {k}", "which is the river in {k}"),
    ),
    Topic(
        pairs=OPPOSITES,
        statement="the opposite of {k} is {v}",
        questions=(
            "what is the opposite of {k}",
            "which word is the opposite of {k}",
            "which word means the contrary of {k}",
            "name the opposite of {k}",
        ),
        held_out=("what word is the opposite of {k}", "which is the opposite of {k}"),
    ),
    Topic(
        pairs=PLURALS,
        statement="the plural of {k} is {v}",
        questions=(
            "what is the plural of {k}",
            "which form is the plural of {k}",
            "how do you write the plural of {k}",
            "name the plural of {k}",
        ),
        held_out=("which word is the plural of {k}", "which is the plural of {k}"),
    ),
    Topic(
        pairs=GROUPS,
        statement="a group of {k} is called {v}",
        questions=(
            "what is a group of {k} called",
            "what do we call a group of {k}",
            "which word is used for a group of {k}",
            "what is the name for many {k} together",
        ),
        held_out=("which name is used for a group of {k}", "what is the word for a group of {k}"),
    ),
    Topic(
        pairs=HOMES,
        statement="the home of the {k} is {v}",
        questions=(
            "what is the home of the {k}",
            "where does the {k} live",
            "what is the home of the {k} called",
            "in which home does the {k} live",
        ),
        held_out=("which home does the {k} live in", "what do we call the home of the {k}"),
    ),
    Topic(
        pairs=SCIENCES,
        statement="the study of {k} is called {v}",
        questions=(
            "what is the study of {k} called",
            "which science studies {k}",
            "what do we call the study of {k}",
            "name the study of {k}",
        ),
        held_out=("which field studies {k}", "what is the name for the study of {k}"),
    ),
)
