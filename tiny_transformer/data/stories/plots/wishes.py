"""Somebody small is rescued and grants three wishes; the first two come true too well."""

from __future__ import annotations

RULES = {
    "wishes": """
{hero} was out walking one <when>, and there was {helper=helpers.a}, [caught|stuck|shivering|crying] {_=place/spots}.
"<oh>[Please let me out|Help me, please|Do not just stand there]," it said<how>.
{hero} [untangled it with {_=tools.a}|lifted it up in the {wear}|pulled, gently, until it was free|fed it
{_=meals-meal}].

"Thank you," said the {helper}<how>. "[You have three wishes|Three wishes are yours|That makes three wishes]. [Think
first|Use them well|Nobody ever does this right]."

{hero} [did not think at all|thought for one second|closed both eyes]. "I wish {w1=wishes.to}!" [There was a
{_=sounds}|It smelled of {_=fruit.many}|Everything turned {_=colours} for a moment], and {w1.came}. That was
[wonderful|great fun|lovely] for about {_=few_numbers} minutes. But {w1.but}. {hero} {_=sorrows}.

"<oh>[What have you done|Is this your doing|Was that really necessary]?" asked {friend=friend_names} the {_=looks}
{animal=friend_kinds}<how>.

"[Wait, I have two more|The next one will be better|I can mend that]," said {hero}<how>. "I wish {w2=wishes.to-w1}!"
And {w2.came}, [on top of everything|as well|right beside {friend}], but {w2.but}.<aside>

"First {w1.short@ordering}, and now {w2.short@ordering}," said {friend}<how>. "[Please stop|Give me that wish|Let me
sit down]."

<wishes_last>
""",
    "wishes_last": """
[{hero} thought for {_=few_numbers} hours. "I wish," {hero.he} said at last<how>, "that everything were as it was
this morning." And it was.
|{hero} looked at {friend}, who had [mud up to the ears|lost one shoe|not complained very much]. "You have the last
one," {hero.he} said. {friend} {_=joys}. "Then I wish for {gift=treasures.a}, and for all this to be gone." And so it
was, and the {gift} was {_=colours}.
|"And the third?" asked the {helper}. It was so small, and the evening was so cold. "I wish that you had a home,"
said {hero}<how>. The {helper} [had never been given a wish before|did not know what to say|turned {_=colours}]. Then
it cried, and with the first tear everything was as before.]

[#ending The {helper} still comes by now and then, and {hero} asks it for nothing at all. At this very moment they are
{fun} together.
|"What did you learn?" asked {friend}. "Never to wish before breakfast," said {hero}<how>.
|But one thing was forgotten. If you look {_=place/spots}, you can still see a bit of it: {w1.short@ordering}, only
very small.
|"So you have nothing left," said {friend}<how>. "I have {meal}," said {hero}. "That will do."
|<end who=friend>]
""",
}
