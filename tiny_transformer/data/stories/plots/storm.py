"""A tale within the story: told on a stormy night, and of use the next day."""

from __future__ import annotations

RULES = {
    "storm": """
One night in {_=months} there was [a storm|such a storm that the cows flew|thunder]. The windows went {noise=sounds},
the roof went {_=sounds-noise}, and {hero} {_=fears}. {elder=elders} [lit a candle|sat down on the bed|brought
{_=meals-meal}|shut the {_=shapes} door]. "<oh>[I know a tale for such nights|Did I ever tell you this one|Move over,
and listen]," said {elder}<how>.

<storm_tale>
""",
    "storm_tale": """
["There was once a giant," {elder} began, <tale_giant>
|"There once was {_=looks.a} {who=friend_kinds} who wanted the moon," {elder} began, <tale_moon>
|"There was once a king with {gold=more_numbers} {kept=treasures.many}," {elder} began, <tale_king>
|"There was a mountain right in front of the window of {_=looks.a} {who=friend_kinds}," {elder} began,
<tale_mountain>]
""",
    "tale_giant": """
"who was as big as {_=large_sizes}, as {_=looks} as {_=friend_kinds.a}, and afraid of nothing but {small=creepers.many}.
Whenever he saw {small.a}, he climbed up a tree, and the tree broke. That made {trees=more_numbers} trees a week."

"[What a silly giant|I know somebody like that|Poor trees|I like {small.many}]," said {hero}<how>.

"One day {small.a} sat in front of his door, and he could not get out for {_=few_numbers} days. Then he asked it,
very politely, for its name. It was called {name=friend_names}. And it is hard to be afraid of somebody called
{name}."

The next day {hero} met the big {_=looks} dog that barked behind {_=jobs.shop}. {hero} {_=fears}. Then {hero.he}
remembered the giant. "<oh>What is your name?" {hero.he} asked<how>. The dog stopped barking. Nobody had ever asked.
"{dog=friend_names-name}," it said.<aside>

[#ending "Were you not afraid?" asked {elder} that evening. "Nobody could be afraid of somebody called {dog}," said
{hero}<how>.
|Since then {dog} walks {hero} to school, and all the other dogs say hello.
|"Are you afraid of anything, {dog}?" asked {hero}. The dog looked around. "Of {small.many}," it whispered.
|<end who=dog>]
""",
    "tale_moon": """
"and threw {_=tools.a} at it, and missed. It climbed on {_=sizes}, and could not reach. Then one night it looked into
a bucket of water, and there was the moon!"

"[That was only a picture|I have done that, too|It must have been cold|I see it already]," said {hero}<how>.

"It put a lid on the bucket and [carried|rolled|danced] it home. In the morning [it took off the lid, and the moon
was gone|the moon was gone]. The {who} was sad for {_=few_numbers} days. But at night [it was back|there it was
again|it lay in the water again]. [So it left the lid off|Since then it has left the lid off]."

The next day {hero} caught a beautiful {small=creepers} {_=place/spots}. It was {c1=colours} and {_=colours-c1}, and
{hero.he} put it in a jar. It [sat in the corner|did not eat|stopped shining|looked at {hero}].<aside> [{hero} looked
at the lid, thought of the {who}, and took it off|Then {hero} thought of the {who}, and opened the jar].

[#ending In the evening the {small} came back by itself and sat down on the {colour} {wear}, as if it lived there.
|It flew away at once. But the next summer there were {_=more_numbers} of them in the garden, and {elder} said that
they had come to say thank you.
|"Where is your {small}?" asked {elder}. "Outside," said {hero}<how>, "with the moon."
|<end who=elder>]
""",
    "tale_king": """
"and {_=features}, but not one friend. One day a beggar came, and the king gave her {a=two_or_three}, because she had
{_=features}. That left {left1=gold-a}. Then a child came, and he gave it {b=two_or_three}. That left
{left2=left1-b}."

"[Soon he will have nothing|What a strange king|I would keep them all|I would give away {_=few_numbers}]," said
{hero}<how>.

"But the beggar came back with {_=fruit.a}, and the child came back with {_=cakes.a}. Every day he had fewer
{kept.many} and more [friends|guests|people at his table]. When the last one was gone, he did not notice. He was
[dancing|laughing|{_=fun}]."

The next day {hero} had {_=meals-meal} for lunch, and [on the same bench|across the table|under the next tree] sat
{friend=friend_names} the {_=looks} {animal=friend_kinds}, who had nothing. {hero} thought of the king, and gave
away half. It was [a little hard|harder than it looks|not easy: the middle part was the best].<aside>

[#ending The day after that, {friend} brought {_=fruit.a} and broke it in two. It has gone on like this ever since.
|"And what did you get for it?" asked {elder}. "Somebody to eat it with," said {hero}<how>.
|That afternoon they were {fun} together, and {friend} turned out to be even better at it.
|<end who=friend>]
""",
    "tale_mountain": """
"and everybody laughed. It looked at the mountain for {_=more_numbers} days. Then it put one stone into its pocket
and carried it away."

"[One stone is nothing|That will take years|Poor pocket|I would use {_=tools.a}]," said {hero}<how>.

"That is what the mountain said. The next day it carried away {a=few_numbers} stones, and the day after that
{b=few_numbers}, which makes {all=a+b}. It sang a little. And one {_=months} morning, when it was very old, it opened
the curtains, and there was [the sea|the sea, with a sail on it|the whole wide sea]."

The next day {hero} had to clean up the shed. There lay {t1=things.a}, {t2=things.a-t1}, {t3=things.a-t1-t2}, and
behind them a mountain of other things. {hero} {_=sorrows}. Then {hero.he} laughed and took out the {t1@ordering}.
After it came the {t2@ordering}, and after that the {t3@ordering}.<aside>

[#ending By evening the floor could be seen, and at the very back was {_=treasures.a} that {elder} had been
looking for since {elder.he} was small.
|"How did you do it?" asked {elder}. "Like the {who}," said {hero}<how>. "But my mountain had {t2.a@ordering} in it."
|When the shed was empty, there was a window in the back wall. You could see all of {place} from there.
|<end who=elder>]
""",
}
