"""How stories begin and end, and the small scenes that several plots share.

`beginning` binds what every plot can count on: place, trait, kind, hero, colour, wear, fun, meal. A slot called `_`
is
written and forgotten.
"""

from __future__ import annotations

RULES = {
    "hero": """
{trait=traits.a} [2*|little |young ][4*{kind=children}|6*{kind=animals}] [3*named|called] {hero=kind/names}
""",
    "beginning": """
[#opening
 12*Once upon a time[3*, {place=places.in}, there lived <hero>.|2* there was <hero>, who lived {place=places.in}.]
| 3*There was once <hero>, who lived {place=places.in}.
| 2*Far away, {place=places.in}, lived <hero>.
| 2*Not so long ago, {place=places.in}, there lived <hero>.
| 2*This is the story of <hero>, and it happened {place=places.in}.
| 2*Do you know the tale of <hero>? It happened {place=places.in}.
| Everybody {place=places.in} knew <hero>.
| Long before you were born, {place=places.in}, there was <hero>.
]
[{hero.He} {trait.habit}, and {hero.he} [was never seen without|never went out without|even slept in|was very
proud of] {colour=colours.a} {wear=clothes}.
| You [could spot|would know|could not miss|could tell] {hero.him} [from far off|anywhere|in any crowd|even at night]
by
{hero.his} {colour=colours} {wear=clothes}. {hero.He} {trait.habit}.
| {hero} wore {colour=colours.a} {wear=clothes} [in every kind of weather|summer and winter|to school and to bed|on
land and in the bath], and {hero.he} {trait.habit}.
| {hero} had {_=features} and {colour=colours.a} {wear=clothes}, and {hero.he} {trait.habit}.
]
[{hero.He} loved two things: {fun=fun} and {meal=meals}.
| Nobody was better at {fun=fun}, and nobody ate more {meal=meals}.
| When {hero.he} was not busy {fun=fun}, {hero.he} was eating {meal=meals}.
| A good day, thought {hero}, was a day of {fun=fun} with {meal=meals} at the end.
]
""",
    "date": """
[{_=winter} [December|January|February]|{_=spring} [March|April|May]
|{_=summer} [June|July|August]|{_=autumn} [September|October|November]]
""",
    "when": "<date> [morning|afternoon|evening|day]",
    # Something else that happens; each option but the first starts with the space before it.
    "aside": "[4*|2* {_=asides}"
    "| {_=looks.A} {_=friend_kinds} was {_=fun} {_=place/spots}."
    "| In the distance {_=looks.a} {_=friend_kinds} went by with {_=things.a}."
    "| It smelled of {_=meals} and [wet leaves|old boots|rain|adventure|trouble]."
    "| Somebody had left {_=shapes.a} {_=things} {_=place/spots}, and nobody knew why.]",
    # What the hero did when things went wrong.
    "sadly": "[{hero}|Poor {hero}|Then {hero}] {_=sorrows}.",
    "friend": "{friend=friend_names} the {_=looks} {animal=friend_kinds}",
    "friend_comes": """
[Just then <friend> came by|Along came <friend>|Over the fence looked <friend>|Who should pass by then but <friend>],
{fun2=fun-fun}.
""",
    # One line of somebody's speech can begin and end in many ways.
    "oh": "[|{_=cries.Cap}! ]",
    "how": "[| {_=manners}]",
    # The last lines; `who` is somebody who was there.
    "end": """
[#ending
 3*That evening there {meal.was} {meal} for everybody, and {who} ate [three bowls|four plates|two helpings|more than
anyone].
| 3*And from that day on, {hero} {trait.later}.
| 2*"{trait.praise}," said {who}<how>[|, and {hero} had to agree|, and {hero} blushed].
| 2*{hero} and {who} are still friends. You can see them {_=place/spots}, {fun}.
| 2*Then {hero} went home, hung up the {colour} {wear}, and slept [until noon|like a stone|without a single
dream|very well].
| They laughed about it all the way home, and once more over the {meal}.
| And if you ask the {place.folk}, they will tell you it is true.
| They still tell this story {place.in}, over {meal}.
| And {hero}? {hero.He} {_=joys}, and then there {meal.was} {meal}.
| The next day {hero} was {fun} again, as if nothing had happened.
]
""",
}
