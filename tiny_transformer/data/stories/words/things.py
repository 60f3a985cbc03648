"""What the stories are full of: treasures, clothes, food, tools, colours and numbers."""

from __future__ import annotations

from .build import nouns, numbers, phrases, words

TREASURES = nouns(
    """wooden whistle, little drum, tin boat, silver bell, blue marble, music box, glass star, paper lantern, toy train,
    spinning top, picture book, painted spoon, tiny teapot, rag doll, brass compass, golden key, feather pen, snow globe,
    pocket watch, jar of buttons=jars of buttons, puppet, kite, harmonica, magnifying glass, toy horse, lucky coin, seashell,
    velvet purse, sugar egg, telescope, clay bird, striped ball, tin soldier, paper crown,
    glass button, flute, silver spoon, wooden duck, fat notebook, moon lamp, cuckoo clock, bag of marbles=bags of marbles"""
)
TOOLS = nouns(
    """hammer, ladder, rope, bucket, broom, saw, needle, lantern, basket, shovel, spoon, blanket, candle, hook, wheel,
    brush, map, sack, pillow, fishing rod, teapot, umbrella, bell, ball of string=balls of string"""
)
CLOTHES = nouns(
    "scarf=scarves, hat, cap, coat, cape, sweater, waistcoat, apron, bow tie, jacket, shawl, hood, belt, raincoat, ribbon, bonnet"
)
COLOURS = words("red, blue, green, yellow, purple, orange, brown, pink, grey, silver, white, violet")
FRUIT = nouns(
    "apple, pear, plum, cherry, peach, fig, walnut, strawberry, carrot, turnip, radish, pumpkin, chestnut, acorn, lemon, onion"
)
CAKES = nouns(
    """cookie, muffin, bun, pancake, cupcake, tart, dumpling, waffle, doughnut, pie, pretzel, scone, biscuit,
    sausage roll, cheese roll, gingerbread star"""
)
MEALS = words(
    """pea soup, apple pie, warm bread, pancakes, noodle soup, honey cake, mushroom stew, porridge, cheese toast, plum jam,
    carrot cake, hot chocolate, baked potatoes, blueberry pudding, onion soup, cinnamon rolls, corn bread, rice pudding,
    tomato soup, toffee apples, buttered peas, fried bananas, dumplings, raspberry jelly, cheese pie, pumpkin soup,
    chestnut cake, potato salad, strawberry ice, walnut bread, cabbage rolls"""
)
JUNK = phrases(
    """
    a sleeping snail
    half a biscuit
    one very old sock
    a puddle
    a beetle in a hurry
    a grumpy toad
    three blades of grass
    a button nobody wanted
    some dust and a spider
    a soggy newspaper
    an empty nutshell
    a surprised mouse
    a family of ants having lunch
    somebody else's glove
    a very small stone
    a cold potato
    a hole, and inside it another hole
    a feather
    nothing but shadows
    a cobweb with no spider in it
    a walnut with a door in it
    the other old sock
    a cross-eyed pigeon
    a note that said please do not look here
    the end of a rainbow, but not the good end
    some jam
    a worm in a hat
    a very polite wasp
    """
)
SOUNDS = words(
    "bump, giggle, clatter, creak, rattle, whoosh, scratch, thump, hoot, squeak, rustle, gurgle, clang, sniffle, tap, growl, hum"
)
_WORDS = """one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen, fifteen, sixteen,
seventeen, eighteen, nineteen, twenty"""
NUMBERS = numbers(_WORDS, first=1)
FEW_NUMBERS = NUMBERS[1:6]  # two to six
MORE_NUMBERS = NUMBERS[6:11]  # seven to eleven
TWO_OR_THREE = NUMBERS[1:3]
THINGS = nouns(
    """hammer, bucket, broom, lantern, basket, kettle, pillow, umbrella, cake, cheese, cabbage, trumpet, clock, wig, mirror,
    sausage, pineapple, teapot, blanket, candle, flower pot, rocking chair, wooden leg, violin, ladder, birthday cake, balloon,
    hot water bottle, sack of flour=sacks of flour, pair of boots=pairs of boots, jar of pickles=jars of pickles, bath tub"""
)
