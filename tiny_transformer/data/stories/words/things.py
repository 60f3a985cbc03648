"""What the stories are full of: treasures, clothes, food, tools, colours and numbers."""

from __future__ import annotations

from .build import dishes, nouns, numbers, phrases, rows, words

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
MEALS = dishes(
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
    a blade of grass
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
VEGETABLES = nouns("turnip, pumpkin, carrot, radish=radishes, cabbage, potato=potatoes, leek, beetroot, onion, parsnip")
SIZES = phrases(
    """
    a bathtub
    two pigs
    a wardrobe
    a barrel of apples
    the baker after lunch
    an armchair
    a big drum
    a calf
    """
)
LARGE_SIZES = phrases(
    """
    a cow
    a rowing boat
    a church bell
    a haystack
    a small shed
    a cart horse
    a piano
    a hay wagon
    a garden wall
    a merry-go-round
    """
)
MONSTERS = phrases(
    """
    a dragon with a cold
    a giant looking for socks
    a ghost on roller skates
    a crocodile with a drum
    a witch chopping onions
    a bear in big boots
    a robber eating toast
    a troll with a toothache
    a pirate counting spoons
    the moon falling down the stairs
    a wolf in wooden shoes
    a whale that has lost its way
    an owl as big as a house
    a skeleton doing exercises
    a monster with ninety-nine teeth
    something without a name
    """
)
INSTRUMENTS = nouns(
    "trumpet, fiddle, tuba, flute, drum, trombone, banjo, bassoon, pair of cymbals=pairs of cymbals, accordion"
)
PARTS = rows(
    "- the",
    """
    four wheels | the four wheels
    an old door | the old door
    a bed sheet | the bed sheet
    a barrel | the barrel
    a broken ladder | the broken ladder
    two long planks | the two long planks
    an old umbrella | the old umbrella
    a wash basket | the wash basket
    a church bench | the church bench
    a broomstick | the broomstick
    a tin roof | the tin roof
    a kitchen table | the kitchen table
    a big balloon | the big balloon
    half a bicycle | the half bicycle
    a wooden gate | the wooden gate
    a bathtub | the bathtub
    a mattress | the mattress
    a bunch of springs | the bunch of springs
    """,
)
# dream: what the hero wants; flop: what the first try does; works: what the second does.
PROJECTS = rows(
    "- a dream flop works",
    """
    boat | a boat | sail around the world | sank like a spoon | sailed twice around the ducks and back
    flying machine | a flying machine | fly over the rooftops | fell over like a tired cow | flew from one haystack to the next
    racing cart | a racing cart | be faster than the wind | rolled into a hedge, backwards | went down the hill like thunder
    submarine | a submarine | see the bottom of the pond | filled up like a teacup | went down with a gurgle, and even came up again
    rocket | a rocket | visit the moon | coughed once and lay down | went as high as the weathercock, which is nearly the moon
    tree house | a tree house | live among the birds | came down faster than it went up | stayed up, and the birds moved in at once
    merry-go-round | a merry-go-round | go round and round all day | went round once and fell apart | went round until everybody felt ill and happy
    caravan | a caravan | sleep somewhere else every night | lost its roof, and then its walls | rolled down the road as proudly as a palace
    roller coaster | a roller coaster | scream and be happy | stopped at the very top and tipped over | screeched, and so did they
    time machine | a time machine | have yesterday once more | shook, smoked, and broke in two | hummed, and lunch came an hour early
    """,
)
RACES = words(
    "egg-and-spoon, wheelbarrow, backwards, sack, one-legged, pancake, bathtub, blindfold, wooden shoe, piggyback"
)
