"""Small moments any story can use: how somebody feels or speaks, and what else happened nearby."""

from __future__ import annotations

from .build import nouns, phrases, rows, words

JOYS = phrases(
    """
    smiled from ear to ear
    danced a little dance
    laughed out loud
    jumped three times into the air
    felt warm all over
    clapped and clapped
    could not stop grinning
    turned a somersault
    hummed a happy tune
    hugged everybody twice
    shouted hooray
    felt as light as a feather
    spun around until the world spun too
    giggled until the hiccups came
    beamed like a lamp
    felt ten feet tall
    hopped home on one leg
    sang without knowing the words
    kissed a very surprised fence post
    wanted to tell the whole world
    cheered and threw a shoe into the air
    rolled in the grass
    nearly burst
    felt like a birthday
    """
)
SORROWS = phrases(
    """
    sat down on a stone and sighed
    blinked back a tear
    felt a lump in the throat
    went very quiet
    kicked a pebble, and then felt sorry for the pebble
    cried a little, but only on one side
    stared at the ground
    felt as small as a crumb
    made a long face
    sniffed three times
    did not even want cake
    looked at the clouds for a long while
    sighed so hard that a curtain moved
    had nothing to say
    felt the day turn grey
    wanted to go straight back to bed
    turned pale, and then pink, and then pale again
    counted to ten and still felt awful
    sat in a corner with a bucket on
    drooped like a wet sock
    """
)
FEARS = phrases(
    """
    trembled like a leaf
    held very still
    crept under the blanket
    swallowed hard
    felt a cold tickle on the neck
    counted to ten, and then to ten again
    looked through two fingers
    forgot how to breathe
    grabbed the nearest pillow
    whispered a very small oh no
    took one step back
    felt two knees knocking together
    thought of somewhere else to be
    tried to look like a lamp
    hummed, to keep the dark away
    stood there with hair like a broom
    """
)
CRIES = words(
    """oh dear, goodness me, bless my buttons, well now, my whiskers, good heavens, hm, dear me, good grief, fancy that,
    thunder and jam, oh my, upon my word, by my boots, great puddles, snails and cabbage, great onions, my word, aha, oho,
    well I never, pickles and pepper, my stars, good gracious, mercy me, wait a moment, look here, oh bother, hush, my ears,
    sugar and salt, goodness"""
)
MANNERS = phrases(
    """
    softly
    in a small voice
    with a full mouth
    very fast
    after a while
    with a wink
    in a deep voice
    to nobody in particular
    with both eyes shut
    a little too loudly
    in one breath
    quite calmly
    with a cough
    from the bottom of the heart
    with a grin
    in surprise
    slowly
    kindly
    out of breath
    between two hiccups
    over one shoulder
    like a teacher
    with a mouthful of crumbs
    in a whisper
    without blinking
    upside down
    in a singing voice
    with great dignity
    """
)
USES = phrases(
    """
    wore it like a hat
    stirred the soup with it
    walked around it twice
    hung it from the ceiling
    sat on it
    took a careful bite
    gave it a name
    put it to bed
    danced with it
    asked it to tea
    painted it blue
    sang to it
    """
)
ASIDES = phrases(
    """
    A snail watched all this and told nobody.
    Somewhere a door closed, but it has nothing to do with this story.
    The wind turned a page and went on reading.
    Two ants stopped to discuss it.
    Far away a bell rang for lunch.
    The clouds leaned in to hear better.
    A worm looked up, saw nothing new, and went back to work.
    It smelled of wet leaves and toast.
    A butterfly landed on a fence and fell asleep.
    The sun peeked around a cloud to see what would happen.
    A frog said exactly what you would expect.
    Nobody noticed the ladybird, who had seen everything.
    A leaf came down slowly, as if it had all day.
    The church clock was wrong, as usual.
    A cat yawned so widely that a bird yawned too.
    In a kitchen a kettle began to sing.
    Three crows made a bet about it.
    An old dog opened one eye and closed it again.
    The shadows grew a little longer.
    A bee flew by with important business.
    Even the puddles looked interested.
    A hen laid an egg out of pure surprise.
    Somebody nearby was practising the trumpet, badly.
    A spider had to start again from the beginning.
    Up in the sky, a goose was late for something.
    It began to rain, thought better of it, and stopped.
    The moon was already up, just to be early.
    A fly walked across all of this without wiping its feet.
    """
)
FUN = phrases(
    """
    counting clouds
    baking mud pies
    jumping over puddles
    telling riddles
    collecting round stones
    feeding the ducks
    drawing with chalk
    playing hide and seek
    reading old maps
    building towers
    singing silly songs
    watching trains
    picking berries
    skipping stones
    making paper hats
    chasing soap bubbles
    climbing trees
    talking to beetles
    flying kites
    rolling down hills
    making up long words
    catching leaves
    painting gates
    balancing spoons
    """
)
FEATURES = phrases(
    """
    a chipped tooth
    enormous feet
    a squeaky voice
    ears that stuck out
    a round belly
    freckles on the nose
    very bright eyes
    one grey eyebrow
    the loudest sneeze in the world
    a crooked smile
    cold toes
    a long memory
    a short temper
    a very good nose
    knees that cracked
    a laugh like a trumpet
    wobbly legs
    ink on both elbows
    hair that would not lie down
    a pocket full of string
    """
)
LOOKS = words(
    """old, fat, grumpy, tiny, sleepy, elegant, muddy, handsome, nervous, giddy, wise, lonely, famous, fluffy, skinny, spotted,
    forgetful, merry, serious, bald, dusty, freckled, wobbly, whistling, limping, hairy, plump, gloomy, well-dressed, ticklish"""
)
SHAPES = words(
    """shiny, dusty, crooked, enormous, rusty, patched, sticky, tiny, heavy, brand-new, striped, wobbly, lopsided, smelly,
    wrinkled, polished, spotted, squeaky, round, secondhand, flat, hairy, frozen, lukewarm"""
)
MONTHS = words("January, February, March, April, May, June, July, August, September, October, November, December")
CREEPERS = nouns("ant, ladybird, flea, snail, caterpillar, bumblebee, beetle, spider, tadpole, moth, worm, cricket")
TOGETHER = phrases(
    """
    play with them until dark
    show them to the moon
    set them side by side and tell stories about them
    swap them, just for fun
    race them down the hill
    polish them and count their scratches
    """
)
CRASHES = words("Crash, Bang, Clink, Clatter, Smash, Crack, Clonk, Tinkle")
LIARS = phrases(
    """
    a big black bird
    a burglar
    a cross-eyed monkey
    a bear on a bicycle
    a very tall cat
    a lost camel
    a runaway pig
    a pirate
    a snow goose
    a sleepwalking cow
    """
)
LIE_PARTS = words(
    """red eyes, muddy boots, a false beard, wings like doors, a wet nose, a wooden leg, striped socks, bad breath, a tail like
    a rope, an umbrella, green teeth, a sack full of spoons, two left feet, no manners at all"""
)
HELPERS = nouns(
    """silver fish=silver fish, golden beetle, talking frog, tiny star, moth, wet little fairy, snail with a crown, white mouse,
    spider, lost cloud, winking newt, dragonfly"""
)
# to: what is wished; came: how it came; but: what was wrong with it; short: what it is called afterwards.
WISHES = rows(
    "to came but short",
    """
    for a rain of pancakes | pancakes fell from the sky, flat and warm | nobody could open a door any more for pancakes | the pancakes
    to be as tall as a tree | the ground went away, and birds flew by | no bed was long enough, and the birds built nests | the long legs
    for a hundred puppies | there were puppies everywhere, with wet noses | they all needed a walk, each in another direction | the puppies
    that it were always Sunday | all the bells rang | the shops stayed closed, and the bread ran out | the Sundays
    to be able to fly | both feet left the ground | there was no way to stop, and it was windy | the flying
    for a river of lemonade | the river turned yellow and began to fizz | the fish got hiccups and complained | the lemonade
    that everything would sing | the spoons sang, and the chairs, and the potatoes | none of them knew the same song | the singing potatoes
    for a very big present | a box came down, as big as a house | it landed on the house | the box
    to be invisible | there was nothing left to see but a hat | everybody sat down on the same chair, and there was a scream | the scream
    for summer all year | it grew hot, and the snow was gone | the butter ran away, and so did the snowman | the heat
    for an elephant | an elephant stood in the kitchen | it would not go out by the door it had not come in by | the elephant
    that animals wore clothes | every hen had a hat on | the cows wanted pockets, and then they wanted coats | the cows in coats
    for more snow than ever | it snowed until the chimneys were gone | nobody could find the front door, or the street | the snow
    for a voice like a lion | out came a roar | it could not be turned down, and the windows broke | the roar
    for soft beds everywhere | there was a bed on every corner | the whole place lay down and nobody baked any bread | the beds
    for a hundred balloons | a hundred balloons came up over the roofs | they lifted the washing, and then the dog | the balloons
    """,
)
# bare and you: what they say of the newcomer; why: what it really was.
RUMOURS = rows(
    "- you why",
    """
    has teeth like rakes | have teeth like rakes | Those are my rakes. I like a tidy garden
    eats stones for breakfast | eat stones for breakfast | They are rolls. I am not a good baker
    howls at the moon | howl at the moon | That is me singing. I do it better in the bath
    has three heads | have three heads | Two of them are for my hats
    sleeps in a coffin | sleep in a coffin | It is the box of my big clock. The bed has not come yet
    breathes fire | breathe fire | My chimney smokes so badly that I cough
    hates everybody | hate everybody | I have not met anybody
    digs graves at night | dig graves at night | I plant onions, and by day it is too hot
    keeps a monster in the cellar | keep a monster in the cellar | That is my washing machine. It is quite old
    never sleeps | never sleep | I read with a lamp on. Nobody sends me to bed
    throws children into a pot | throw children into a pot | I only threw radishes. Somebody has been telling stories
    walks through walls | walk through walls | There is a very small door at the back
    has eyes that glow | have eyes that glow | Those are my glasses. I can hardly see you without them
    turns visitors into frogs | turn visitors into frogs | The frogs were here before me. They are very quiet
    laughs in the dark | laugh in the dark | I know a good joke about a mushroom
    has a hook for a hand | have a hook for a hand | It is for the curtains
    """,
)
WONDERS = words(
    """the end of the rainbow, the place where the wind sleeps, a mountain made of glass, the biggest tree in the world,
    the sea behind the sea, a waterfall that falls up, the house of the moon, a castle on one leg, the echo that answers first,
    a lake full of stars, the very last lamp post, a stone that hums"""
)
