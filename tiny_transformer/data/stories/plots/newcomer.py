"""Somebody new moves in; three rumours are told, the hero goes to see, and each rumour has its reason."""

from __future__ import annotations

RULES = {
    "newcomer": """
Somebody new had [built a house|put up a tent|opened a shop|parked a caravan] {_=place/spots}, [all in one
night|without a sound|just like that]. [Nobody had seen who, but everybody knew|Nobody knew anything, and everybody
said so|There was much talk about it].

"<oh>It {r1=rumours}," said {n1=friend_names} the {_=looks} {k1=friend_kinds}<how>.

"<oh>It {r2=rumours-r1}," said {n2=friend_names-n1} the {_=looks} {k2=friend_kinds-k1}<how>.

"And it {r3=rumours-r1-r2}," said {elder=elders}, who had [heard it from|been told so by] {_=looks.a}
{_=friend_kinds}.

{hero} {_=fears}. [But it is hard to be new.|But somebody had to say hello.|But what if it was hungry?] So {hero.he}
[packed|cooked|took] {dish=meals-meal}, buttoned up the {colour} {wear}, and went.<aside>

There stood {new=friend_names-n1-n2}, {_=looks.a} little {k=friend_kinds-k1-k2} with {_=features}. "<oh>[A
visitor|For me|You are the first]!" said {new}<how>. "[Come in|Mind the boxes|Please stay a while]."

"[They say|People say|I was told|Everybody knows] that you {r1.you@ordering}," said {hero}<how>.

"{r1.why@ordering}," said {new}<how>.

"And that you {r2.you@ordering}?"

"{r2.why@ordering}." {new} [poured the tea|laughed a little|turned {_=colours}]. "And do they say that I
{r3.you@ordering}? {r3.why@ordering}."

<newcomer_end>
""",
    "newcomer_end": """
[They shared the {dish} and spent the day {fun}, until {n1} came to look for {hero}, with {_=tools.a}. "<oh>[Are you still
alive|Has it eaten you|Is that {dish}]?" called {n1}<how>.
|So {hero} ran to fetch {n1}, {n2} and {elder}. They {_=fears}, but only until they saw the {_=cakes.many}.
|The next day {hero} walked all over {place} with {new} and said to everybody, "This is {new}." It took
{_=few_numbers} hours to shake all the hands.]

[#ending "You told me that it {r1@ordering}," {hero} said to {n1}. "Did I?" said {n1}<how>. "I must have meant
somebody else."
|Now, when {new} is away, {n2} is the first to ask when {new.he} is coming back.
|And what do they say about {new} today? That nobody makes better {_=cakes.many}, and this time it is true.
|<end who=new>]
""",
}
