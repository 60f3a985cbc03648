"""Something breaks, the hero hides it and tells a lie, and the lie grows until the truth is easier."""

from __future__ import annotations

RULES = {
    "broken": """
{elder=elders} had {_=shapes.a} {thing=treasures} [that nobody was allowed to touch|that stood on the highest
shelf|that lived under glass]. It was [very old|from far away|a present from the queen|said to be lucky|worth
{_=more_numbers} cows|{_=more_numbers} years older than {elder.himself}].

One <when>, {hero} was {fun} indoors. {_=crashes}! The {thing} [lay on the floor|was all over the carpet|had turned
into a puzzle], in {pieces=more_numbers} pieces.
{hero} {_=fears}. Then {hero.he} hid all {pieces@copy} pieces {_=place/spots}. [Nobody saw|Only {_=creepers.a} saw].

"<oh>Where is my {thing}?" asked {elder} at supper<how>.

"It was {liar=liars}," said {hero}<how>. "It had {f1=lie_parts}, and {f2=lie_parts-f1}."

"{f1.Cap@ordering}?" asked {elder}.

"And {f2@ordering}," said {hero}<how>, "and {f3=lie_parts-f1-f2}." [With every word it grew|Now it was too late to
stop|It was a good lie, and it tasted of soap].

{hero} could not eat any {meal}. [Whenever {hero.he} closed both eyes|All night long|In every dream|Behind every
door], there was {liar.the}, with {f1@ordering}, {f2@ordering} and {f3@ordering}, and it said<how>, "I did not do it."

<broken_turn>
""",
    "broken_turn": """
[In the morning {hero} fetched the pieces. <broken_tell>
|The next day {elder} [nailed up|painted|hung out] a sign. "Wanted: {liar}. Reward: {reward=few_numbers}
{cake=cakes.many}." <broken_sign>
|But the next morning, who was sweeping the yard [as a punishment|with a very small broom|in tears]?
{friend=friend_names} the {_=looks} {animal=friend_kinds}. "They say I did it," said {friend}<how>. <broken_friend>]
""",
    "broken_tell": """
"It was me," {hero.he} said<how>. "I was {fun}[| where I should not| again]."

{elder} [put the kettle on|blew {elder.his} nose|said nothing for a whole minute]. "I know," said {elder.he}.
"{liar.Cap} does not leave {_=few_numbers} threads of {colour.a} {wear} on the shelf."

[#ending "Why did you not say so?" asked {hero}. "Because it had to be you who said it," said {elder}<how>, and gave
{hero.him} the glue.
|"I broke it myself once, when I was little," said {elder}<how>. And they glued the new cracks beside the old one.
|Then {hero} ate {meal}, {_=few_numbers} plates of it, and slept like a stone.
|<end who=elder>]
""",
    "broken_sign": """
{hero} read it twice, and {_=sorrows}. Then {hero.he} crossed out {liar} and wrote {hero}.

"<oh>Then the reward is yours," said {elder}<how>. "{reward.Cap@copy} {cake.many}, for catching {hero.him} so
bravely."

[#ending {hero} ate one and gave {elder} the others. They tasted much better than the lie.
|And then they glued the {thing} together. One piece is missing still. {elder} says it is the door for {liar.the}.
|"Will you ever do it again?" asked {elder}. "Break something? I think so," said {hero}<how>. "Hide it? No."
|<end who=elder>]
""",
    "broken_friend": """
{hero} took the broom out of {friend}'s hands and marched to {elder}. "<oh>It was not {liar.the}, and it was not
{friend}. It was me!"

{elder} [sat down|took off {elder.his} glasses|nearly dropped the {_=tools}]. "That was hard to say," said
{elder.he}<how>. "Harder than sweeping."

[#ending {hero} swept the yard for {_=few_numbers} days, and {friend} came and swept, too, just for company.
|{hero} said sorry to {friend}, with {_=cakes.a} in each hand. {friend} took both and forgave {hero.him} at once.
|And what of {liar.the}? It was never seen again.
|<end who=friend>]
""",
}
