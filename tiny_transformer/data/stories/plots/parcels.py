"""Three parcels for three neighbours: the list is told, mixed up, and put right in order."""

from __future__ import annotations

RULES = {
    "parcels": """
{boss=elders} had [hurt one foot|caught a cold|lost both pairs of glasses|a cake in the oven|sat down on a nail], and
there were three parcels to [deliver|carry|bring round].

"<oh>[Of course|Easy|Leave it to me|I never get lost]!" said {hero}<how>.

"Then listen. {p1=things.A} for {n1=friend_names} the {_=looks} {k1=friend_kinds}, {p2=things.a-p1} for
{n2=friend_names-n1} the {_=looks} {k2=friend_kinds-k1}, and {p3=things.a-p1-p2} for {n3=friend_names-n1-n2} the
{_=looks} {k3=friend_kinds-k1-k2}."

[{hero} said it over and over|All down the path {hero} sang|To remember it, {hero} sang|{hero} told it to both
shoes]: "{p1.Bare@ordering} for {n1@ordering}, {p2@ordering} for {n2@ordering}, {p3@ordering} for {n3@ordering}!"

[But then|Everything went well until] <parcels_trouble> [When all was quiet again|A moment later|After that], [the
labels were gone|every label was off|the labels lay in a puddle]. "{p2.Bare} for {n1}," sang {hero}, "{p3} for {n2},
{p1} for {n3}?" It sounded [almost right|nearly right|fine|even better].<aside>

So {n1} got {p2.a}, said, "<oh>[How odd|How kind|How useful|At last]," and {use=uses}.
{n2} got {p3.a}, asked, "<oh>[Is this a joke|Who sent me this|Is it my birthday|Does it bite]?" and {use2=uses-use}.
And {n3}, who had waited [all week|since {_=months}] for {p3.a}, got {p1.a} and {_=sorrows}.

<parcels_right>
""",
    "parcels_trouble": """
[a gust of wind came around the corner.|{_=looks.a} dog barked from behind a gate.|{hero} tripped over {_=junk}.|it
rained as if somebody had tipped a bucket.|a bee wanted to know what was in the parcels.|the {_=looks} mayor asked
the way.]
""",
    "parcels_right": """
[[Before long|At noon|Soon], three neighbours [stood at the door, all talking at once|came up the path, not
smiling|knocked, one louder than the other]. {hero} {_=fears}. "I mixed them up," {hero.he} said<how>, and went
around once more, slowly: {p1} for {n1}, {p2} for {n2}, {p3} for {n3}.

<parcels_end>
|In the middle of the {meal} {hero} remembered the song. It was the {p1} for {n1}, the {p2} for {n2} and the {p3} for
{n3}! {hero.He} ran out [with a lantern|without any shoes|with {meal} all over the {wear}] and knocked at every door
until all was right.

<parcels_end>
|But when {hero} came to change them back, {n1} would not give up the {p2}. {n2} [loved|was married to|could not live
without] the {p3}, and even {n3} had grown fond of the {p1}. "<oh>Then it was a lucky mistake," said {boss}<how>.

<parcels_end>]
""",
    "parcels_end": """
[#ending
{boss} gave {hero} {pay=few_numbers} {cake=cakes.many} for it, [one|two] more than {hero.he} had hoped for.
|The next time, {hero} wrote it all inside the {colour} {wear}: {p1@ordering}, {p2@ordering}, {p3@ordering}.
|That evening {n1}, {n2} and {n3} sang the parcel song together, [twice|much too loudly|with the words all wrong].
|<end who=boss>]
""",
}
