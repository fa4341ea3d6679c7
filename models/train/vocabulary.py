"""Everything the model has words for: colours, shapes, numbers, printed words, and the names of icons.

Pure data and three small helpers; no torch, so that worker processes start fast.
"""

from __future__ import annotations

import zlib

# Anchor RGB values (0..255) of each colour word; scenes jitter around one of the anchors.
COLORS: dict[str, list[tuple[int, int, int]]] = {
    "red": [(220, 30, 35), (200, 16, 46), (239, 51, 64)],
    "orange": [(245, 130, 20), (255, 145, 0), (240, 115, 30)],
    "yellow": [(250, 220, 30), (255, 235, 60), (245, 205, 10)],
    "green": [(40, 160, 60), (20, 130, 50), (80, 190, 70)],
    "blue": [(40, 90, 210), (20, 60, 180), (50, 130, 235)],
    "purple": [(130, 50, 170), (110, 40, 150), (150, 80, 200)],
    "pink": [(250, 130, 180), (255, 160, 200), (240, 100, 165)],
    "brown": [(125, 75, 35), (105, 60, 30), (145, 90, 50)],
    "black": [(20, 20, 22), (35, 35, 38), (5, 5, 5)],
    "white": [(250, 250, 250), (240, 240, 242), (255, 255, 255)],
    "gray": [(130, 130, 133), (150, 150, 152), (110, 112, 115)],
}

# Order matters: the index is the shape's place in the sprite atlas.
SHAPES: list[str] = [
    "circle", "square", "triangle", "star", "heart", "diamond", "hexagon", "cross", "moon", "ring", "arrow", "oval",
]  # fmt: skip

NUMBERS = ["no", "one", "two", "three", "four", "five", "six"]

# Short common words for pictures of print. One in six (see `held_out`) is never printed in training.
WORDS: list[str] = """
able acid aged air also area army arm art away baby back bad bag ball band bank base bath bay bear beat bed bell belt
best big bike bill bird blue boat body bold bone book born both bow bowl box boy bread brick bridge bright bring bus
busy cake call calm camp car card care case cash cat chair chat city clay clean clear clock close cloud club coal coat
code coffee coin cold cook cool copper corn cost cow cup cut dance dark date dawn day deep deer desk dish dog door down
draw dream dress drink drive drop dry duck dust early earth east easy egg end even exit eye face fact fair fall farm
fast father fear field film find fine fire first fish five flag flat floor flower fly food foot forest fork four free
fresh friend frog fruit full fun game garden gas gate gift girl give glad glass goat gold good grain grass gray great
green ground group hair half hall hand happy hard hat heart heat heavy help hen here high hill home honey hope horse
hot hotel hour house hunt ice idea inn iron jam job join juice jump key kind king kiss kite knee lake lamp land large
last law leaf left leg lemon less letter life lift light lime line lion list little live long look loud love low luck
lunch mail main map mark market meal mean meat meet melon metal milk mill mind mine mint moon more music name near neck
nest net new news next nice night nine noise noon north nose note oak oats ocean off oil old one only open orange order
oven over owl page paint pan paper park part party past path peace pear pen pepper piano pick pie pig pin pipe place
plan plant plate play plum pond pool pot price pull push queen quick quiet rain ready red rest rice rich ride right
ring rise river road rock roof room root rose round run sad safe sail salt sand school sea seat seed sell send seven
sheep ship shirt shoe shop short show side sign silk silver sing sister six size skin sky sleep slow small smile snow
soap sock soft soil song soon soup south spoon sport spring stage star start station stay steel step stone stop store
storm street strong sugar summer sun sweet swim table tail tall taste tea team tell ten tent test thin three ticket tie
time tin today tool top town toy train tree trip true tulip turn two uncle under up valley view village voice walk wall
warm wash water wave way week well west wet wheat wheel white wide wild win wind window wine wing winter wolf wood wool
word work world yard year yellow yes you young zebra zero zone
""".split()

# Name shown to people ("_" for a space), then "=" and the icon keys that draw it; without, the name with dashes is the
# key.
_ICON_NAMES = """
airplane ambulance american_football anchor ant avocado axe backpack bacon badger bagel balloon banana banjo basket
basketball bat bathtub battery beans bear beaver bed beer_mug beetle bell bell_pepper bicycle birthday_cake bison
blueberries bomb bone bouquet boxing_glove brain bread brick briefcase broccoli broom bucket bug burger=hamburger
burrito bus=bus,oncoming-bus butter butterfly cactus calendar camel=camel,two-hump-camel camera candle candy canoe
car=automobile,oncoming-automobile carrot castle cat=cat,cat-face cheese=cheese-wedge cherries chestnut chicken
chocolate=chocolate-bar christmas_tree church cigarette clipboard cloud cocktail=cocktail-glass coconut comet compass
cookie cow=cow,cow-face crab crayon credit_card crocodile croissant crown crutch cucumber cup_of_coffee=hot-beverage
cupcake dagger deer delivery_truck dog=dog,dog-face dolphin donkey door doughnut dove dragon dress drum duck dumpling
eagle ear ear_of_corn egg eggplant elephant envelope eye factory feather ferris_wheel fire fire_engine fish flamingo
flashlight flute fly foot fork_and_knife fountain fountain_pen four-leaf_clover fox french_fries frog fuel_pump garlic
ghost gem=gem-stone giraffe glass_of_milk glasses globe=globe-showing-americas,globe-showing-europe-africa gloves goat
goose gorilla grapes guitar hammer handbag headphones=headphone hedgehog helicopter hippo=hippopotamus honey_pot
bee=honeybee hook horse=horse,horse-face hospital hot_dog hot_pepper hourglass=hourglass-done,hourglass-not-done house
ice_cream=ice-cream,soft-ice-cream ice_skate jack-o-lantern jar jeans jellyfish joystick kangaroo key keyboard
knife=kitchen-knife kite kiwi=kiwi-fruit koala ladder ladybug=lady-beetle laptop lemon leopard light_bulb lion
lipstick lizard llama lobster locomotive lollipop magic_wand magnet
magnifying_glass=magnifying-glass-tilted-left,magnifying-glass-tilted-right mammoth mango maple_leaf microphone
microscope mirror monkey=monkey,monkey-face moose mosquito motorcycle motor_scooter
mountain=mountain,snow-capped-mountain mouse=mouse,mouse-face mouse_trap mouth mushroom musical_note necktie newspaper
nose octopus olive onion orangutan otter owl oyster paintbrush palm_tree pancakes panda paperclip parachute parrot
peach peacock peanuts pear pencil penguin phone=telephone phone_receiver=telephone-receiver piano=musical-keyboard
pickup_truck pie pig=pig,pig-face pill pineapple pizza plunger polar_bear police_car=police-car,oncoming-police-car
poodle popcorn postbox potato potted_plant pretzel printer puzzle_piece rabbit=rabbit,rabbit-face raccoon racing_car
radio rainbow apple=red-apple,green-apple rhinoceros ribbon robot rocket roller_skate rooster rose sailboat sandwich
satellite saxophone scarf school scissors scooter=kick-scooter scorpion screwdriver seal sewing_needle shark sheep=ewe
shield ship shirt=t-shirt shopping_cart shorts shower shrimp skateboard skull skunk sled sloth smartphone=mobile-phone
snail snake snowflake snowman=snowman,snowman-without-snow soap soccer_ball socks spaghetti spider spider_web spoon
squid steaming_bowl stethoscope stopwatch strawberry suitcase=luggage sun sunflower sunglasses sushi swan syringe taco
tangerine taxi=taxi,oncoming-taxi teapot teddy_bear telescope television tennis_ball=tennis tent test_tube thermometer
tiger=tiger,tiger-face toilet tomato tooth toothbrush top_hat tornado tractor
traffic_light=vertical-traffic-light,horizontal-traffic-light train=high-speed-train,bullet-train,train
tree=deciduous-tree,evergreen-tree trophy trumpet tulip turkey turtle dinosaur=t-rex,sauropod
umbrella=umbrella,closed-umbrella unicorn violin volcano volleyball waffle watch watermelon whale=whale,spouting-whale
wheel wheelchair=manual-wheelchair window wine_glass wolf worm wrench yarn yo-yo zebra padlock=locked statue=moai
high_heel=high-heeled-shoe running_shoe boot=womans-boot,hiking-boot coat crystal_ball gift=wrapped-gift
helmet=rescue-workers-helmet safety_pin seedling shopping_bags toolbox bullseye tram goggles hut kimono lotus
nesting_dolls mailbox=open-mailbox-with-raised-flag,closed-mailbox-with-raised-flag abacus melon
"""

# Said without "a": plural or uncountable.
_NO_ARTICLE = {
    "bacon", "beans", "blueberries", "bread", "broccoli", "butter", "candy", "cheese", "cherries", "chocolate",
    "french fries", "fire", "garlic", "glasses", "gloves", "grapes", "headphones", "jeans", "pancakes", "peanuts",
    "popcorn", "scissors", "shorts", "socks", "spaghetti", "sunglasses", "sushi", "soap", "yarn", "shopping bags",
    "nesting dolls", "goggles", "paper", "badminton",
}  # fmt: skip


def _parse_icons(text: str) -> dict[str, list[str]]:
    """{name: [icon keys]}."""
    icons: dict[str, list[str]] = {}
    for entry in text.split():
        name, _, keys = entry.partition("=")
        icons[name.replace("_", " ")] = keys.split(",") if keys else [name.replace("_", "-")]
    return icons


ICONS: dict[str, list[str]] = _parse_icons(_ICON_NAMES)


def with_article(name: str) -> str:
    """With what is said before it: "dog" -> "a dog", "owl" -> "an owl", "grapes" -> "grapes"."""
    if name in _NO_ARTICLE:
        return name
    # "unicorn" and "one" begin with a consonant sound.
    vowel = name[0] in "aeiou" and not name.startswith(("uni", "one", "eu"))
    return f"an {name}" if vowel or name == "x-ray" else f"a {name}"


def is_plural(name: str) -> bool:
    """Whether "are" follows the name rather than "is"."""
    return name in _NO_ARTICLE and name.endswith("s")


def held_out(word: str, every: int = 6) -> bool:
    """Whether this printed word is kept for evaluation: a fixed pseudo-random choice of one in `every`."""
    return zlib.crc32(word.encode()) % every == 0
