"""A noise in the night: what it might be, who comes along, and what it is."""

from __future__ import annotations

RULES = {
    "night": """
[In the middle of|Late|Just before the end of] one {_=months} night, {hero} woke up. {noise=sounds.Cap}, it went,
{_=place/spots}. {noise.Cap}, {noise}, {noise}.

"It is {m1=monsters}," thought {hero}, and {_=fears}. "It is {m2=monsters-m1}, at least."
[Staying in bed was no good, either.|But not knowing was even worse.|But what if it wanted the {meal}?|It sounded
hungry.] So {hero.he} put on the {colour} {wear}, took {t1=tools.a} and {t2=tools.a-t1}, and woke
{friend=friend_names} the {_=looks} {animal=friend_kinds}.

"<oh>[It is the middle of the night|I was dreaming of {_=meals-meal}|The moon has fallen down]," said {friend}<how>.
{noise.Cap}! "That is {_=monsters-m1-m2}," said {friend}, and {_=fears}. "You carry the {t1}. I carry the {t2} and
stay behind you."

[{steps1=few_numbers.Cap} steps to the gate, {steps2=few_numbers} steps to the corner: {all=steps1+steps2} steps in
the dark|They crept past {_=jobs.shop}|They walked so close together that they had only one shadow].<aside> {hero}
lifted the {t1}, and <night_found>
""",
    "night_found": """
[there crouched {_=looks.a} little {baby=animals}, crying. <night_baby>
|there stood {elder=elders} in {_=colours.a} nightshirt, eating {dish=meals-meal}. <night_elder>
|there was {_=shapes.a} {thing=things}, swinging in the wind. <night_thing>
|there sat {player=friend_names-friend} the {_=looks} {k=friend_kinds-animal} with {tune=instruments.a}.
<night_music>]
""",
    "night_baby": """
"I [fell out of bed|followed a moth|went to look at the moon|was playing pirate]," said the little {baby}<how>, "and
now I cannot find my house."

{hero} wrapped it in the {wear}, and they knocked at {_=more_numbers} doors. Behind the last one stood a mother who
{_=joys}.

[#ending "So that is what {m1} sounds like," said {friend}<how>.
|Now the little {baby} wears a bell, and when it goes {noise} at night, {hero} just turns over and smiles.
|She made {meal} for everybody, although it was four in the morning.
|<end who=friend>]
""",
    "night_elder": """
"[Sh|Do not tell anyone|You have seen nothing]," said {elder}<how>. "I cannot sleep when I think of {dish}."

{friend} put down the {t2}. "<oh>Is there [any left|enough for three|another spoon]?" There was.

[#ending They ate until the sun came up, and at breakfast nobody was hungry. Nobody ever found out why.
|"I thought you were {m1}," said {hero}. "So did I, when I saw you with that {t1}," said {elder}<how>.
|Since then they meet there every {_=months}, at midnight, with {meal} and very quiet spoons.
|<end who=elder>]
""",
    "night_thing": """
"<oh>Is that all?" asked {friend}<how>. "I was afraid of {thing.a}!"

{hero} [tied it down with the {wear}|took it down|turned it around], and it was quiet. It was so quiet that [they
could hear their own hearts|neither of them could sleep].

[#ending So they sat on the steps until morning, and {friend} told the story of {m1} that turned out to be {thing.a}.
It got longer every time.
|In the morning {hero} hung a sign on it: this is only {thing.a}.
|And do you know what? {hero} misses the {noise} a little, now and then.
|<end who=friend>]
""",
    "night_music": """
"I am learning to play," said {player}<how>, "but I am so [bad|shy|loud|slow] that I only practise when everybody is
asleep."

{player} played something. {noise.Cap}, {noise}, it went. "<oh>It is [not very good|terrible|like a falling
cupboard]," said {friend}, "but it has [feeling|a good beat|courage] in it."

[#ending So {hero} beat on the {t1}, and {friend} on the {t2}, and they all played together. Lights went on all over
{place}, and somebody threw {_=clothes.a}.
|From then on {player} practised in the daytime, and by {_=months} it sounded almost like music.
|"I was afraid of you," said {hero}<how>. "I was afraid of everybody," said {player}. And they both {_=joys}.
|<end who=player>]
""",
}
