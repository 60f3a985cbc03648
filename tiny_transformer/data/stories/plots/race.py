"""A silly race: somebody boasts, somebody gets stuck, and somebody has to decide what winning is."""

from __future__ import annotations

RULES = {
    "race": """
[Every {_=months} there was|Once a year, in {_=months}, there was|On the first Sunday in {_=months} came] the great
{_=races} race, once around {place} and back. [The first prize was|The winner got|Whoever came first got]
{prize=treasures.a}, the second prize was {second=cakes.a}, and the third prize was {third=fruit.a}.

"<oh>[I shall win|I always win|You may as well stay at home]," said {rival=friend_names} the {_=looks}
{k1=friend_kinds}<how>. "I have [the longest legs|trained since {_=months}|eaten {_=few_numbers} breakfasts|new
socks]."

"I just like [the noise|the view|the part with the {third}]," said {slow=friend_names-rival} the {_=looks}
{k2=friend_kinds-k1}<how>. {hero} [said nothing|took a deep breath|thought of the {prize}] and tied the {colour}
{wear} a little tighter.

[Three, two, one, go|A whistle blew|{_=elders} dropped {_=clothes.a}]! {rival} was first, {hero} was second, and
{slow} was third[, by quite a bit|, and waving to people|, and still eating {_=meals-meal}|]. They ran past
{_=jobs.shop}, [over the bridge|through the park|around the pond] and [through the mud|through somebody's
washing|around {_=looks.a} cow].<aside>

Then there was a loud {_=sounds}. {rival} had [fallen into a ditch|got stuck in a fence|run into a pond|slipped on
{_=junk}]!

<race_turn>
""",
    "race_turn": """
[{hero} looked at the road ahead. It was empty. {hero} looked back at {rival}. <race_help>
|{hero} stopped to look, and so did {_=few_numbers} others, and soon everybody [was standing there, giving
advice|stood around and gave advice|knew what to do, and nobody did it]. <race_slow>
|"Keep going," called {rival}<how>. "One of us should see the end of it." <race_win>]
""",
    "race_help": """
"<oh>[Hold on|Give me your hand|Do not wriggle]," said {hero}<how>, and threw {rival} one end of the {wear}. {rival}
came out with a {_=sounds}. One shoe stayed behind.

So they [walked the rest|went on arm in arm|hopped the rest, on three shoes]. {slow} was first, and they were second
and last.

[#ending They cut the {second} in two, and {rival} gave {hero} the bigger half. "I am sorry I boasted," {rival.he}
said<how>.
|"Why did you stop?" asked {slow}. "You could have won {prize.a}." "I have won {k1.a}," said {hero}<how>, and {rival}
{_=joys}.
|{slow} did not know what to do with {prize.a}, and gave it to {hero}. "For the best stop I ever saw," {slow.he} said.
|<end who=rival>]
""",
    "race_slow": """
"Pull," said one. "Push," said another. "Have you tried {_=tools.a}?" asked a third. Nobody saw {slow} go by, [step
by step|humming|as slowly as a cloud|with {_=things.a} under one arm].

When {rival} was out at last, they heard [clapping|a trumpet|cheering] from far away. {slow} had won.

[#ending "How did you do it?" they all asked. "I just did not stop," said {slow}<how>.
|{rival} {_=sorrows}. Then {rival.he} began to laugh, and {hero} laughed, too. [It was the slowest race of all
time|They still had not finished by supper|Nobody remembers who came last].
|{slow} put the {prize} over the fireplace and ate the {second} and the {third} as well, because nobody else had come
in yet.
|<end who=slow>]
""",
    "race_win": """
So {hero} ran on, [past the mill|up the hill|through the long grass], with the {colour} {wear} flying behind, and
nobody was in front. {hero} {_=joys}.

{slow} came second, and third was {rival}, covered in mud [from top to toe|up to the eyebrows].

[#ending {hero} gave {rival} the {prize} to hold for a whole week. "You would have had it, but for that ditch,"
{hero.he} said<how>.
|So {hero} got the {prize}, {slow} got the {second}, and {rival} got the {third} and a very hot bath.
|"Next year I shall win," said {rival}<how>. "Next year we shall see," said {hero}, and gave {rival.him} a towel.
|<end who=rival>]
""",
}
