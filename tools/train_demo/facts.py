"""The plain facts behind the knowledge questions, all written for this project.

Nothing here is meant to be complete: the demo model knows this little world and no other. Answers
are single words so that each is one token of the demo tokenizer, which keeps prompts short and
lets an attention head match an option with the word it was asked for.
"""

from __future__ import annotations

from tools.train_demo.geography import CAPITALS, CONTINENTS, CURRENCIES, LANGUAGES
from tools.train_demo.relations import Relation, both_ways, groups, pairs, successors, wordings

_SYMBOLS = pairs("""
    helium:He lithium:Li nitrogen:N oxygen:O fluorine:F neon:Ne sodium:Na magnesium:Mg
    aluminium:Al silicon:Si phosphorus:P sulfur:S chlorine:Cl argon:Ar potassium:K calcium:Ca
    titanium:Ti chromium:Cr manganese:Mn iron:Fe cobalt:Co nickel:Ni copper:Cu zinc:Zn
    arsenic:As bromine:Br krypton:Kr silver:Ag tin:Sn iodine:I xenon:Xe barium:Ba tungsten:W
    platinum:Pt gold:Au mercury:Hg lead:Pb bismuth:Bi radon:Rn radium:Ra uranium:U
    hydrogen:H cadmium:Cd gallium:Ga selenium:Se palladium:Pd caesium:Cs""")

_ANIMALS = groups(
    mammal="""dog cat horse cow sheep goat pig lion tiger bear wolf fox deer rabbit whale dolphin
        bat mouse elephant monkey zebra camel otter beaver seal hamster leopard giraffe donkey
        badger squirrel kangaroo""",
    bird="""eagle hawk owl robin sparrow crow duck goose swan penguin parrot ostrich pigeon turkey
        heron gull stork falcon raven finch""",
    fish="salmon trout tuna cod shark carp herring eel perch pike sardine haddock mackerel catfish",
    reptile="""snake lizard turtle crocodile gecko iguana python cobra tortoise chameleon alligator
        viper""",
    insect="""ant bee wasp fly beetle moth butterfly cricket grasshopper mosquito termite ladybird
        flea dragonfly""",
    amphibian="frog toad newt salamander axolotl treefrog",
)

_OPPOSITES = both_ways(
    pairs("""
    hot:cold big:small tall:short fast:slow hard:soft wet:dry light:dark full:empty rich:poor
    strong:weak early:late open:closed high:low near:far new:old thick:thin wide:narrow
    deep:shallow clean:dirty loud:quiet happy:sad brave:timid sharp:blunt sweet:bitter
    smooth:rough polite:rude true:false alive:dead awake:asleep cheap:costly safe:risky
    simple:complex bright:dim front:back above:below inside:outside push:pull buy:sell win:lose
    start:finish give:take arrive:depart love:hate laugh:cry remember:forget accept:refuse
    rise:fall attack:defend build:destroy north:south east:west victory:defeat question:answer
    friend:enemy summer:winter day:night peace:war birth:death sender:receiver teacher:pupil
    entrance:exit profit:loss""")
)

_YOUNG = pairs("""
    dog:puppy cat:kitten horse:foal cow:calf sheep:lamb goat:kid pig:piglet lion:cub deer:fawn
    duck:duckling goose:gosling swan:cygnet frog:tadpole eagle:eaglet owl:owlet rabbit:bunny
    kangaroo:joey hen:chick butterfly:caterpillar""")

_SOUNDS = pairs("""
    dog:barks cat:meows cow:moos sheep:bleats horse:neighs pig:grunts lion:roars wolf:howls
    duck:quacks owl:hoots snake:hisses bee:buzzes frog:croaks mouse:squeaks donkey:brays
    rooster:crows sparrow:chirps elephant:trumpets turkey:gobbles goose:honks""")

_COLOURS = groups(
    yellow="banana canary lemon sunflower mustard daffodil chick",
    red="tomato strawberry blood ruby cherry poppy brick",
    green="grass spinach lettuce emerald cucumber moss pea",
    white="milk snow salt chalk swan flour ivory",
    black="coal raven tar soot ink liquorice",
    orange="carrot pumpkin apricot tangerine basketball",
    brown="chocolate coffee bark cinnamon walnut",
    blue="sapphire sky denim cornflower bluebell",
)

_FOODS = groups(
    fruit="apple pear plum cherry grape mango peach melon banana lemon apricot strawberry",
    vegetable="carrot cabbage onion spinach turnip leek broccoli cauliflower lettuce radish",
    grain="wheat rice barley oats rye maize millet",
    meat="beef pork ham bacon mutton venison veal",
    dairy="milk butter cheese yoghurt cream",
    spice="pepper cinnamon nutmeg saffron ginger clove cumin",
    drink="coffee tea juice wine beer lemonade cider",
)

_TOOLS = pairs("""
    scalpel:surgeon anvil:blacksmith plough:farmer easel:painter oven:baker chisel:sculptor
    telescope:astronomer stethoscope:doctor trowel:bricklayer net:fisherman scissors:tailor
    blackboard:teacher hose:firefighter spanner:mechanic cleaver:butcher rake:gardener
    gavel:judge compass:sailor saw:carpenter drill:dentist loom:weaver camera:photographer
    baton:conductor cockpit:pilot saddle:jockey whistle:referee kiln:potter razor:barber""")

_MATERIALS = pairs("""
    bread:flour wine:grapes cheese:milk glass:sand paper:wood jumper:wool candle:wax tyre:rubber
    brick:clay omelette:eggs chips:potatoes coin:metal boot:leather raisin:grapes jam:fruit
    butter:milk tofu:soya cider:apples shirt:cotton ketchup:tomatoes popcorn:maize honey:nectar
    rope:hemp furniture:wood yoghurt:milk vase:clay""")

_HOMES = pairs("""
    bird:nest bee:hive dog:kennel horse:stable pig:sty spider:web rabbit:burrow lion:den
    cow:barn fish:water monk:monastery soldier:barracks king:palace prisoner:cell camper:tent
    nun:convent hen:coop beaver:lodge astronaut:station fox:earth""")

_SPORTS = pairs("""
    racket:tennis bat:cricket puck:hockey oar:rowing saddle:riding glove:boxing club:golf
    arrow:archery hoop:basketball sword:fencing ski:skiing sail:sailing cue:snooker
    goggles:swimming bicycle:cycling rook:chess dart:darts shuttlecock:badminton""")

_PLACES = pairs("""
    book:library bread:bakery meat:butchery painting:museum money:bank medicine:pharmacy
    letter:postbox film:cinema train:railway aeroplane:airport ship:harbour patient:hospital
    lesson:school prayer:church trial:court play:theatre tiger:zoo tractor:farm wine:cellar
    grave:cemetery treadmill:gymnasium sample:laboratory""")

_MONTHS = successors(
    "January February March April May June July August September October November December"
)
_WEEKDAYS = successors("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

KNOWLEDGE: dict[str, Relation] = {
    "capital": Relation(
        CAPITALS,
        wordings(
            "What is the capital of {k}? | Which city is the capital of {k}?"
            " | {k} has which capital?"
        ),
        wordings(
            "The capital of {k} is {v}. | {v} is the capital of {k}. | {k} has the capital {v}."
        ),
    ),
    "continent": Relation(
        CONTINENTS,
        wordings(
            "Which continent is {k} in? | On which continent is {k}? | {k} lies on which continent?"
        ),
        wordings("{k} is in {v}. | {k} lies on the continent of {v}."),
    ),
    "language": Relation(
        LANGUAGES,
        wordings(
            "Which language is spoken in {k}? | What do people speak in {k}?"
            " | {k} has which language?"
        ),
        wordings("People in {k} speak {v}. | The language of {k} is {v}."),
    ),
    "currency": Relation(
        CURRENCIES,
        wordings(
            "Which currency is used in {k}? | What is the money of {k}? | {k} has which currency?"
        ),
        wordings("The currency of {k} is the {v}. | People in {k} pay with the {v}."),
    ),
    "symbol": Relation(
        _SYMBOLS,
        wordings(
            "What is the symbol of {k}? | Which symbol stands for {k}?"
            " | Which is the chemical symbol of {k}?"
        ),
        wordings("The symbol of {k} is {v}. | {v} is the symbol of {k}."),
    ),
    "animal": Relation(
        _ANIMALS,
        wordings(
            "What kind of animal is a {k}? | A {k} is which kind of animal?"
            " | To which animal class does a {k} belong?"
        ),
        wordings("A {k} is a {v}. | The {k} is a kind of {v}."),
    ),
    "opposite": Relation(
        _OPPOSITES,
        wordings(
            "What is the opposite of {k}? | Which word means the opposite of {k}?"
            " | Which word is contrary to {k}?"
        ),
        wordings("The opposite of {k} is {v}. | {k} is the opposite of {v}."),
    ),
    "young": Relation(
        _YOUNG,
        wordings(
            "What is a young {k} called? | Which word names a young {k}?"
            " | What is the offspring of a {k}?"
        ),
        wordings("A young {k} is called a {v}. | A {v} is a young {k}."),
    ),
    "sound": Relation(
        _SOUNDS,
        wordings(
            "What does a {k} do when it makes a sound? | Which verb fits the sound of a {k}?"
            " | How does a {k} call?"
        ),
        wordings("A {k} {v}. | The {k} {v} when it makes a sound."),
    ),
    "colour": Relation(
        _COLOURS,
        wordings(
            "Which colour goes with {k}? | What is the usual colour of {k}?"
            " | Name the colour of {k}."
        ),
        wordings("The colour of {k} is {v}. | {k} is usually {v}."),
    ),
    "food": Relation(
        _FOODS,
        wordings(
            "What kind of food is {k}? | To which food group does {k} belong?"
            " | {k} is which kind of food?"
        ),
        wordings("The food {k} is a kind of {v}. | {k} counts as {v}."),
    ),
    "tool": Relation(
        _TOOLS,
        wordings("Who works with a {k}? | Whose tool is a {k}? | Which worker needs a {k}?"),
        wordings("A {k} is the tool of a {v}. | The {v} works with a {k}."),
    ),
    "material": Relation(
        _MATERIALS,
        wordings("What is {k} made from? | Which material gives {k}? | From what do we make {k}?"),
        wordings("{k} is made from {v}. | We make {k} from {v}."),
    ),
    "home": Relation(
        _HOMES,
        wordings(
            "Where does a {k} live? | What is the home of a {k}? | Which home belongs to a {k}?"
        ),
        wordings("A {k} lives in a {v}. | The home of a {k} is a {v}."),
    ),
    "sport": Relation(
        _SPORTS,
        wordings(
            "In which sport is a {k} used? | Which sport needs a {k}?"
            " | A {k} belongs to which sport?"
        ),
        wordings("A {k} is used in {v}. | In {v} people use a {k}."),
    ),
    "place": Relation(
        _PLACES,
        wordings(
            "Where would you look for a {k}? | Which place goes with a {k}?"
            " | Where does a {k} belong?"
        ),
        wordings("You find a {k} at the {v}. | The place for a {k} is the {v}."),
    ),
    "month": Relation(
        _MONTHS,
        wordings(
            "Which month comes after {k}? | What month follows {k}?"
            " | Name the month right after {k}."
        ),
        wordings("After {k} comes {v}. | {v} follows {k}."),
    ),
    "weekday": Relation(
        _WEEKDAYS,
        wordings(
            "Which day comes after {k}? | What day follows {k}? | Name the day right after {k}."
        ),
        wordings("After {k} comes {v}. | {v} follows {k}."),
    ),
}
