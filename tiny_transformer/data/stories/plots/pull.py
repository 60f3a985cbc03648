"""Something grows far too big, a chain of friends pulls, and the smallest of all makes the difference."""

from __future__ import annotations

RULES = {
    "pull": """
[In {_=months} {hero}|Last {_=months} {hero}|On the first day of {_=months}, {hero}] planted {veg=vegetables.a}
{_=place/spots}. Every day {hero.he} [watered it|sang to it|read it the newspaper|told it jokes|tucked it in with the
{wear}|fed it {_=meals-meal}], and it grew.
It grew as big as {_=sizes}, and then as big as {_=large_sizes}. "<oh>[Time to pull it out|That is enough|Tomorrow we
eat it|It is looking at me]," said {hero}<how>.

{hero} pulled [and pulled|with both hands|until the {wear} split]. The {veg} [did not move|did not even notice|only
went {_=sounds}|seemed to yawn]. So {hero.he} called {n1=friend_names} the {_=looks} {k1=friend_kinds}.
{n1} pulled {hero}, and {hero} pulled the {veg}. [Nothing|Not a bit|It stayed where it was]!<aside>

Then came {n2=friend_names-n1} the {_=looks} {k2=friend_kinds-k1}, straight from {_=fun-fun}. {n2} pulled
{n1@ordering}, {n1@ordering} pulled {hero}, and {hero} pulled the {veg}. [It shook a little|One leaf came off|A
button came off|Somebody sneezed].
Then came {n3=friend_names-n1-n2} the {_=looks} {k3=friend_kinds-k1-k2} with {_=tools.a}. {n3} pulled {n2@ordering},
{n2@ordering} pulled {n1@ordering}, {n1@ordering} pulled {hero}, and {hero} pulled the {veg}. {hero} {_=sorrows}.

"[May I help|Can I pull, too|Do you need me]?" asked a [tiny|very small|thin|high] voice. It was {_=colours.a}
{tiny=creepers}. {n3} [laughed|snorted|giggled|bent down to look]. "<oh>[You|Somebody as small as you|With those
legs]?"

<pull_turn>
[{hero} fell on {n1@ordering}, {n1@ordering} fell on {n2@ordering}, and {n2@ordering} fell on
{n3@ordering}|{n3@ordering} sat on the ground, {n2@ordering} on {n3@ordering}, {n1@ordering} on {n2@ordering}, and
{hero} on top].

<pull_end>
""",
    "pull_turn": """
["[You are all pulling at different times|You pull like {_=looks} {_=friend_kinds.many}|You have to pull together],"
said the {tiny}<how>. "One, two, three!" And at three, [pop|plop|whoosh], out it came.
|The {tiny} [crept into the ground|dug a tunnel|climbed down a crack] and [nibbled through|untied|tickled] the very
last root. [Pop|Plop|Whoosh], out came the {veg}.
|But the {tiny} walked up {n3}'s nose, and {n3} sneezed like {_=monsters}. [Pop|Plop|Whoosh], out it came.]
""",
    "pull_end": """
[#ending They cooked {big=few_numbers} big pots and {small=few_numbers} small pots of soup. That made
{pots=big+small} pots, and the {tiny} got the first spoon.
|They hollowed it out, and now {n1}, {n2} and {n3} live in it. The {tiny} has the best room, with a window.
|"Who is the strongest?" asked {n1}<how>. Everybody looked at the {tiny}, and the {tiny} turned red.
|They ate it for {_=more_numbers} days, with {_=meals-meal}, with {meal}, and then with both. After that, nobody
wanted to see {veg.a} for a year.
|And {hero} kept one seed for next year. The {tiny} is guarding it.
|<end who=n3>]
""",
}
