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
]

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

# Name shown to people, then "=" and the icon keys that draw it (without, the name with dashes is the key).
_ICON_NAMES = """
airplane ambulance american football=american-football anchor ant avocado axe backpack bacon badger badminton bagel
balloon banana banjo basket basketball bat bathtub battery beans bear beaver bed beer mug=beer-mug beetle bell
bell pepper=bell-pepper bicycle birthday cake=birthday-cake bison blueberries bomb bone bouquet boxing glove=boxing-glove
brain bread brick briefcase broccoli broom bucket bug burger=hamburger burrito bus=bus,oncoming-bus butter butterfly
cactus calendar camel=camel,two-hump-camel camera candle candy canoe car=automobile,oncoming-automobile carrot castle
cat=cat,cat-face cheese=cheese-wedge cherries chestnut chicken chocolate=chocolate-bar christmas tree=christmas-tree
church cigarette clipboard cloud cocktail=cocktail-glass coconut comet compass cookie cow=cow,cow-face crab crayon
credit card=credit-card crocodile croissant crown crutch cucumber cup of coffee=hot-beverage cupcake dagger
deer delivery truck=delivery-truck dog=dog,dog-face dolphin donkey door doughnut dove dragon dress drum duck
dumpling eagle ear ear of corn=ear-of-corn egg eggplant elephant envelope eye factory feather ferris wheel=ferris-wheel
fire fire engine=fire-engine fish flamingo flashlight flute fly foot fork and knife=fork-and-knife fountain
fountain pen=fountain-pen four-leaf clover=four-leaf-clover fox french fries=french-fries frog fuel pump=fuel-pump
garlic ghost=ghost gem=gem-stone giraffe glass of milk=glass-of-milk glasses globe=globe-showing-americas,globe-showing-europe-africa
gloves goat goose gorilla grapes green apple=green-apple guitar hammer handbag headphones=headphone hedgehog helicopter
hippo=hippopotamus honey pot=honey-pot bee=honeybee hook horse=horse,horse-face hospital hot dog=hot-dog hot pepper=hot-pepper
hourglass=hourglass-done,hourglass-not-done house ice cream=ice-cream,soft-ice-cream ice skate=ice-skate
jack-o-lantern=jack-o-lantern jar jeans jellyfish joystick kangaroo key keyboard knife=kitchen-knife kite kiwi=kiwi-fruit
koala ladder ladybug=lady-beetle laptop lemon leopard light bulb=light-bulb lime lion lipstick lizard llama lobster
locomotive lollipop magic wand=magic-wand magnet magnifying glass=magnifying-glass-tilted-left,magnifying-glass-tilted-right
mammoth mango maple leaf=maple-leaf melon microphone microscope mirror monkey=monkey,monkey-face moose mosquito
motorcycle motor scooter=motor-scooter mountain=mountain,snow-capped-mountain mouse=mouse,mouse-face mouse trap=mouse-trap mouth
mushroom musical note=musical-note necktie newspaper nose octopus olive onion orangutan otter owl ox oyster paintbrush
palm tree=palm-tree pancakes panda paperclip parachute parrot peach peacock peanuts pear pencil penguin phone=telephone
phone receiver=telephone-receiver piano=musical-keyboard pickup truck=pickup-truck pie pig=pig,pig-face pill pineapple
pizza=pizza plunger polar bear=polar-bear police car=police-car,oncoming-police-car poodle popcorn postbox
potato potted plant=potted-plant pretzel printer puzzle piece=puzzle-piece rabbit=rabbit,rabbit-face raccoon
racing car=racing-car radio rainbow ram red apple=red-apple rhinoceros ribbon robot rock rocket roller skate=roller-skate
rooster rose sailboat sandwich satellite saxophone scarf school scissors scooter=kick-scooter scorpion screwdriver
seal sewing needle=sewing-needle shark sheep=ewe shield ship shirt=t-shirt shopping cart=shopping-cart shorts shower
shrimp skateboard skull skunk sled sloth smartphone=mobile-phone snail snake snowflake snowman=snowman,snowman-without-snow
soap soccer ball=soccer-ball socks spaghetti spider spider web=spider-web spoon squid steaming bowl=steaming-bowl
stethoscope stopwatch strawberry submarine sandwich=stuffed-flatbread suitcase=luggage sun sunflower sunglasses sushi
swan syringe taco tangerine taxi=taxi,oncoming-taxi teapot teddy bear=teddy-bear telescope television tennis ball=tennis
tent test tube=test-tube thermometer tiger=tiger,tiger-face toilet tomato tooth toothbrush top hat=top-hat tornado tractor
traffic light=vertical-traffic-light,horizontal-traffic-light train=high-speed-train,bullet-train,train
tree=deciduous-tree,evergreen-tree trophy trumpet tulip turkey turtle dinosaur=t-rex,sauropod umbrella=umbrella,closed-umbrella
unicorn violin volcano volleyball waffle watch watermelon whale=whale,spouting-whale wheel wheelchair=manual-wheelchair
window wine glass=wine-glass wolf worm wrench yarn yo-yo=yo-yo zebra padlock=locked calculator=abacus statue=moai
high heel=high-heeled-shoe running shoe=running-shoe boot=womans-boot,hiking-boot coat crystal ball=crystal-ball
gift=wrapped-gift helmet=rescue-workers-helmet paper=page-facing-up safety pin=safety-pin seedling shopping bags=shopping-bags
sponge toolbox bullseye tram goggles hut kimono lotus moon cake=moon-cake nesting dolls=nesting-dolls mailbox=open-mailbox-with-raised-flag,closed-mailbox-with-raised-flag
"""

# Said without "a": plural or uncountable.
_NO_ARTICLE = {
    "bacon", "beans", "blueberries", "bread", "broccoli", "butter", "candy", "cheese", "cherries", "chocolate",
    "french fries", "fire", "garlic", "glasses", "gloves", "grapes", "headphones", "jeans", "pancakes", "peanuts",
    "popcorn", "scissors", "shorts", "socks", "spaghetti", "sunglasses", "sushi", "soap", "yarn", "shopping bags",
    "nesting dolls", "goggles", "paper", "badminton",
}


def _parse_icons(text: str) -> dict[str, list[str]]:
    """{name: [icon keys]}. A multi-word name must carry its keys, so the parser can tell where it begins."""
    icons: dict[str, list[str]] = {}
    for line in text.strip().splitlines():
        pending: list[str] = []
        for word in line.split():
            pending.append(word)
            if "=" in word:
                last, keys = word.split("=")
                # Words before this one that are icons in their own right were one-word names.
                start = _first_of_name(pending[:-1], keys, last)
                for single in pending[:start]:
                    icons[single] = [single]
                icons[" ".join([*pending[start:-1], last])] = keys.split(",")
                pending = []
        for single in pending:
            icons[single] = [single]
    return icons
